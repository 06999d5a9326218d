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


@dataclass(frozen=True)
class Ablation:
    """The expected outcome and the variants; the first variant is the one that the others are compared with."""

    expected: str
    variants: dict[str, Change]
    every: int = 1
    """The ablation is measured on one in `every` concepts."""
    behind: tuple[str, ...] = ()
    """Variants that are behind the first one in the paper's Fig. 9."""


NEAR = (0.2, 0.4, 0.5)
"""Biases near the best one, for variants that are measured on all concepts."""

ABLATIONS: dict[str, Ablation] = {
    "Key-locking": Ablation(
        "The paper (Fig. 9): locked keys are in front, trained ones overfit.",
        {"locked": Change(), "trained": Change({"lock": "trained"}), "at the word": Change({"lock": "word"})},
        behind=("trained",),
    ),
    "One picture": Ablation(
        "The paper (Fig. 9): one picture alone overfits slightly.",
        {"all": Change(), "one": Change(recipe={"pictures": 1}, values=NEAR)},
        behind=("one",),
    ),
    "Mask": Ablation(
        "The paper (Fig. 9): with a mask the text is kept better.",
        {
            "given": Change(),
            "none": Change(recipe={"masks": NO_MASK}),
            "found by Find Object": Change(recipe={"masks": FOUND}),
        },
        behind=("none",),
    ),
    "Bias in training": Ablation(
        "The paper (Fig. 9): a higher bias in training is in front.",
        {f"{bias:g}": Change({"train_bias": bias}) for bias in (0.75, 0.5, 0.3)},
        behind=("0.5", "0.3"),
    ),
    "Temperature at inference": Ablation(
        "The paper (Fig. 9): a higher one than in training (0.1 there) is in front, 0.15 tends to be best.",
        {f"{t:g}": Change(use={"settings": {"temperature": t}}) for t in (0.15, 0.05, 0.1, 0.3)},
        behind=("0.1", "0.05"),
    ),
    "Strength for a dial": Ablation(
        "Concept Settings has two dials: how early the gate opens, and the share of the edit.",
        {"bias": Change(), "strength": Change(use={"dial": "strength"}, values=(0.2, 0.4, 0.6, 0.8, 1.0))},
    ),
    "Bias found by the model": Ablation(
        "Find Bias finds one for each concept and prompt; its own dial is how far the prompt is to be followed.",
        {"the same for all": Change(), "found": Change(use={"dial": FOLLOWED}, values=(0.75, 0.8, 0.85, 0.9, 0.93))},
    ),
    "Pictures shown small": Ablation(
        "Train Concept can show pictures at half their size at times; here a character is as large beside another as alone.",
        {"never": Change(), "half of the time": Change({"small": 0.5})},
    ),
    "Concept files of few bits": Ablation(
        "Half and a third of the size of half precision.",
        {"16 bit": Change(), "8 bit": Change(use={"bits": 8}), "4 bit": Change(use={"bits": 4})},
    ),
    "Gradient through the target input": Ablation(
        "Without it each step takes the place of the edit for fixed, though it follows the word.",
        {"no": Change({"target_gradient": False}), "yes": Change({"target_gradient": True})},
        every=2,
    ),
    "Global key-locking": Ablation(
        "The paper: more varied scenes.",
        {"local": Change(), "global": Change(use={"lock": "global"}, values=NEAR)},
        every=2,
    ),
    "Form of the edit": Ablation(
        "Exact mode leaves prompts without the concept untouched; the paper's form does not.",
        {"exact": Change(), "paper": Change({"edit_mode": "paper"}, use={"mode": "paper"})},
        every=2,
    ),
    "Positions of the covariance": Ablation(
        "Followers of the paper differ.",
        {"unpadded": Change(), "all": Change(recipe={"positions": "all"}), "content": Change(recipe={"positions": "content"})},
        every=2,
    ),
    "Mask squared": Ablation(
        "Followers of the paper differ.",
        {"squared": Change(), "plain": Change(recipe={"masks": PLAIN})},
        every=2,
    ),
}
