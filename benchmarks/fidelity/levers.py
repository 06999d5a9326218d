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


def rates(word: float, output: float) -> Change:
    """Return the change that multiplies the demo's learning rates by these factors."""
    return Change({"word_rate": word * TRAINING["word_rate"], "output_rate": output * TRAINING["output_rate"]})


def locked(share: float) -> dict[str, object]:
    """Return the use in which keys that were trained at the word are locked to the superclass to this degree."""
    return {"settings": {"key_lock": float(share)}}


PAPER: dict[str, object] = {"train_bias": 0.75, "train_temperature": 0.1}
SHARP = {"settings": {"temperature": 0.1}}

LEVERS: dict[str, Change] = {
    AS_TUNED: Change(),
    "keys trained": Change({"lock": "trained"}),
    "captions, keys trained": Change({"lock": "trained"}, {"captioned": 1.0}),
    "keys at the word, unlocked": Change({"lock": "word"}, use=locked(0)),
    "keys at the word, a quarter locked": Change({"lock": "word"}, use=locked(0.25)),
    "keys at the word, half locked": Change({"lock": "word"}),
    "keys at the word, three quarters locked": Change({"lock": "word"}, use=locked(0.75)),
    "captions, keys at the word, unlocked": Change({"lock": "word"}, {"captioned": 1.0}, locked(0)),
    "captions, keys at the word, half locked": Change({"lock": "word"}, {"captioned": 1.0}),
    "the paper's gates, keys trained": Change({"lock": "trained", **PAPER}, use=SHARP, values=(0.5, 0.6)),
    "captions": Change(recipe={"captioned": 1.0}),
    "captions, no masks": Change(recipe={"captioned": 1.0, "masks": NO_MASK}),
    "keys trained, no masks": Change({"lock": "trained"}, {"masks": NO_MASK}),
    "no masks": Change(recipe={"masks": NO_MASK}),
    "a word of two vectors": Change({"initial_word": "{0} {0}"}),
    "a word of four vectors": Change({"initial_word": "{0} {0} {0} {0}"}),
    "gradient through the target input": Change({"target_gradient": True}),
    "mask not squared": Change(recipe={"masks": PLAIN}),
    "no min-SNR": Change({"min_snr": 0.0}),
    "twice the steps": Change({"steps": 2 * TRAINING["steps"]}),
    "three times the word's rate": rates(3, 1),
    "half the outputs' rate": rates(1, 0.5),
    "twice the outputs' rate": rates(1, 2),
}
"""Each is measured at VALUES. In `initial_word`, {0} stands for the superclass."""
