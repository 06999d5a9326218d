"""Perfusion with one thing changed at a time: the paper's ablations (Fig. 9), and choices in which other implementations differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from benchmarks.fidelity.methods import FOLLOWED, FOUND, NO_MASK, PLAIN, Recipe, Use


@dataclass(frozen=True)
class Change:
    """The differences from a recipe, its widgets and its use."""

    widgets: dict[str, object] = field(default_factory=dict)
    recipe: dict[str, object] = field(default_factory=dict)
    use: dict[str, object] = field(default_factory=dict)
    values: tuple[float, ...] = ()
    """Values of the dial, if the change sweeps others."""

    def of(self, recipe: Recipe, use: Use) -> tuple[Recipe, Use]:
        """Return the recipe and the use with this change applied."""
        widgets = {**recipe.widgets, **self.widgets}
        return replace(recipe, **{**self.recipe, "widgets": widgets}), replace(use, **self.use)


def locked(share: float) -> dict[str, object]:
    """Return the use in which keys that were trained at the word are locked to the superclass to this degree."""
    return {"settings": {"key_lock": float(share)}}


@dataclass(frozen=True)
class Ablation:
    """The expected outcome and the variants; the first variant is the one that the others are compared with."""

    expected: str
    variants: dict[str, Change]
    every: int = 1
    """The ablation is measured on one in `every` concepts."""
    behind: tuple[str, ...] = ()
    """Variants that are behind the first one in the paper's Fig. 9."""


NEAR = (0.4, 0.5)
"""Biases near the best one, at which variants are measured."""
WIDER = (0.2, *NEAR)
"""Those of variants that are in the tables of all methods."""

ABLATIONS: dict[str, Ablation] = {
    "Key-locking": Ablation(
        "The paper (Fig. 9): locked keys do better; trained ones overfit.",
        {
            "locked": Change(),
            "trained": Change({"lock": "trained"}),
            "at the word": Change({"lock": "word"}),
            "in fine layers, unlocked": Change({"lock": "fine"}, use=locked(0.0)),
            "in fine layers, half locked": Change({"lock": "fine"}, use=locked(0.5), values=WIDER),
            "at the word, three quarters locked": Change({"lock": "word"}, use=locked(0.75), values=WIDER),
        },
        behind=("trained",),
    ),
    "One picture": Ablation(
        "The paper (Fig. 9): training on a single picture overfits slightly.",
        {"all": Change(), "one": Change(recipe={"pictures": 1}, values=WIDER)},
        behind=("one",),
    ),
    "Mask": Ablation(
        "The paper (Fig. 9): with masks, prompts are followed better.",
        {
            "given": Change(),
            "none": Change(recipe={"masks": NO_MASK}),
            "found by Find Object": Change(recipe={"masks": FOUND}),
        },
        behind=("none",),
    ),
    "Bias in training": Ablation(
        "The paper (Fig. 9): a higher training bias does better. Each is used with biases around its own.",
        {
            f"{bias:g}": Change({"train_bias": bias}, values=values)
            for bias, values in ((0.75, (0.5, 0.6, 0.7)), (0.5, (0.3, 0.4, 0.5)), (0.3, (0.25, 0.3, 0.4)))
        },
        behind=("0.5", "0.3"),
    ),
    "Temperature at inference": Ablation(
        "The paper (Fig. 9): a temperature higher than in training (0.1, here too) does better; 0.15 tends to be best.",
        {
            f"{t:g}": Change({"train_temperature": 0.1}, use={"settings": {"temperature": t}}, values=NEAR)
            for t in (0.15, 0.05, 0.1, 0.3)
        },
        behind=("0.1", "0.05"),
    ),
    "Strength as the dial": Ablation(
        "Concept Settings has two dials: the bias, which sets how easily the gate opens, and the strength, which is the share "
        "of the edit that is applied.",
        {"bias": Change(), "strength": Change(use={"dial": "strength"}, values=(0.6, 0.8, 1.0))},
        every=2,
    ),
    "Bias found by the model": Ablation(
        "Find Bias finds a bias for each concept and prompt; its own dial is how closely the prompt should be followed.",
        {"the same for all": Change(), "found": Change(use={"dial": FOLLOWED}, values=(0.8, 0.85, 0.9))},
        every=2,
    ),
    "Pictures shown small": Ablation(
        "Train Concept can show pictures at half their size some of the time. In these prompts, a character is drawn just as large "
        "next to another one as on its own, so no gain is expected.",
        {"never": Change(), "half of the time": Change({"small": 0.5})},
        every=2,
    ),
    "Low-precision concept files": Ablation(
        "About half and a third of the size of a half-precision file.",
        {"16 bit": Change(), "8 bit": Change(use={"bits": 8}), "4 bit": Change(use={"bits": 4})},
    ),
    "Gradient through the target input": Ablation(
        "Without it, each step treats the target input, where the edit acts, as fixed, although it moves with the word.",
        {"no": Change(), "yes": Change({"target_gradient": True})},
        every=2,
    ),
    "Global key-locking": Ablation(
        "According to the paper, global key-locking gives more varied scenes.",
        {"local": Change(), "global": Change(use={"lock": "global"}, values=WIDER)},
        every=2,
    ),
    "Form of the edit": Ablation(
        "Exact mode leaves prompts without the concept untouched; the paper's form does not.",
        {"exact": Change(), "paper": Change({"edit_mode": "paper"}, use={"mode": "paper"})},
        every=2,
    ),
    "Tokens included in the covariance": Ablation(
        "Other implementations of the paper differ here.",
        {"unpadded": Change(), "all": Change(recipe={"positions": "all"}), "content": Change(recipe={"positions": "content"})},
        every=2,
    ),
    "Mask squared": Ablation(
        "Other implementations of the paper differ here.",
        {"squared": Change(), "plain": Change(recipe={"masks": PLAIN})},
        every=2,
    ),
}
