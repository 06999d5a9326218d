"""Which settings improve likeness at the same text score: changed one at a time, on development characters, with their cost."""

from __future__ import annotations

from benchmarks.fidelity.ablations import Change, locked
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import NO_MASK, PLAIN
from demo.individuals import STYLES
from scripts.generate.make_workflows import TRAINING

LEVERED: tuple[Concept, ...] = tuple(("development-0", kind) for kind in STYLES)
VALUES = (0.4, 0.5)
"""Values of the bias at which a lever is measured unless it names others."""
AS_TUNED = "the demo's settings"
FINE_HALF = "keys in fine layers, half locked"


AT_THE_WORD: dict[str, object] = {"lock": "word"}
FINE: dict[str, object] = {"lock": "fine"}


def rates(word: float, output: float) -> dict[str, object]:
    """Return the widgets that multiply the demo's learning rates by these factors."""
    return {"word_rate": word * TRAINING["word_rate"], "output_rate": output * TRAINING["output_rate"]}


PAPER: dict[str, object] = {"train_bias": 0.75, "train_temperature": 0.1}

LEVERS: dict[str, Change] = {
    AS_TUNED: Change(),
    "keys trained": Change({"lock": "trained"}),
    "captions, keys trained": Change({"lock": "trained"}, {"captioned": 1.0}),
    "keys at the word, unlocked": Change(AT_THE_WORD, use=locked(0)),
    "keys at the word, a quarter locked": Change(AT_THE_WORD, use=locked(0.25)),
    "keys at the word, half locked": Change(AT_THE_WORD),
    "keys at the word, three quarters locked": Change(AT_THE_WORD, use=locked(0.75)),
    "captions, keys at the word, unlocked": Change(AT_THE_WORD, {"captioned": 1.0}, locked(0)),
    "captions, keys at the word, half locked": Change(AT_THE_WORD, {"captioned": 1.0}),
    FINE_HALF: Change(FINE, use=locked(0.5)),
}
"""Maps a name to what it changes of the demo's settings."""

FINE_LEVERS: dict[str, Change] = {
    FINE_HALF: Change(FINE, use=locked(0.5)),
    "unlocked": Change(FINE, use=locked(0)),
    "captions": Change(FINE, {"captioned": 1.0}),
    "the paper's gates": Change({**FINE, **PAPER}, values=(0.5, 0.6)),
    "a bias of 0.5 in training": Change({**FINE, "train_bias": 0.5}, values=(0.5, 0.6)),
    "no masks": Change(FINE, {"masks": NO_MASK}),
    "mask not squared": Change(FINE, {"masks": PLAIN}),
    "no min-SNR": Change({**FINE, "min_snr": 0.0}),
    "gradient through the target input": Change({**FINE, "target_gradient": True}),
    "two vectors": Change({**FINE, "initial_word": "{0} {0}"}),
    "four vectors": Change({**FINE, "initial_word": "{0} {0} {0} {0}"}),
    "a third of the word's rate": Change({**FINE, **rates(0.3, 1)}),
    "three times the word's rate": Change({**FINE, **rates(3, 1)}),
    "half the outputs' rate": Change({**FINE, **rates(1, 0.5)}),
    "twice the outputs' rate": Change({**FINE, **rates(1, 2)}),
    "twice the steps": Change({**FINE, "steps": 2 * TRAINING["steps"]}),
}
"""Maps a name to what it changes of FINE_HALF. In `initial_word`, {0} stands for the superclass."""
