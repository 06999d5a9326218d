"""Which settings improve likeness at the same text score: changed one at a time, on development characters, with their cost."""

from __future__ import annotations

from benchmarks.fidelity.ablations import Change
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import NO_MASK, PLAIN
from demo.individuals import STYLES
from scripts.generate.make_workflows import TRAINING

LEVERED: tuple[Concept, ...] = tuple(("development-0", kind) for kind in STYLES)
VALUES = (0.4, 0.5)
"""Values of the bias at which every lever is measured."""
AS_TUNED = "the demo's settings"


AT_THE_WORD: dict[str, object] = {"lock": "word"}


def rates(word: float, output: float) -> dict[str, object]:
    """Return the widgets that multiply the demo's learning rates by these factors."""
    return {"word_rate": word * TRAINING["word_rate"], "output_rate": output * TRAINING["output_rate"]}


def locked(share: float) -> dict[str, object]:
    """Return the use in which keys that were trained at the word are locked to the superclass to this degree."""
    return {"settings": {"key_lock": float(share)}}


PAPER: dict[str, object] = {"train_bias": 0.75, "train_temperature": 0.1}
SHARP = {"settings": {"temperature": 0.1}}

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
    "at the word, the paper's gates": Change({**AT_THE_WORD, **PAPER}, use=SHARP, values=(0.5, 0.6)),
    "at the word, a bias of 0.5 in training": Change({**AT_THE_WORD, "train_bias": 0.5}, values=(0.5, 0.6)),
    "at the word, no masks": Change(AT_THE_WORD, {"masks": NO_MASK}),
    "at the word, mask not squared": Change(AT_THE_WORD, {"masks": PLAIN}),
    "at the word, no min-SNR": Change({**AT_THE_WORD, "min_snr": 0.0}),
    "at the word, gradient through the target input": Change({**AT_THE_WORD, "target_gradient": True}),
    "at the word, two vectors": Change({**AT_THE_WORD, "initial_word": "{0} {0}"}),
    "at the word, four vectors": Change({**AT_THE_WORD, "initial_word": "{0} {0} {0} {0}"}),
    "at the word, a third of the word's rate": Change({**AT_THE_WORD, **rates(0.3, 1)}),
    "at the word, three times the word's rate": Change({**AT_THE_WORD, **rates(3, 1)}),
    "at the word, half the outputs' rate": Change({**AT_THE_WORD, **rates(1, 0.5)}),
    "at the word, twice the outputs' rate": Change({**AT_THE_WORD, **rates(1, 2)}),
    "at the word, twice the steps": Change({**AT_THE_WORD, "steps": 2 * TRAINING["steps"]}),
}
"""Each is measured at VALUES. In `initial_word`, {0} stands for the superclass."""
