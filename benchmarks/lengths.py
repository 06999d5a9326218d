"""How long to train: both scores along a training, at several learning rates, on the concepts that settings are chosen on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import plots
from benchmarks.concepts import Concept
from benchmarks.emoji import prompts
from benchmarks.fronts import Curve
from benchmarks.methods import Recipe, Use
from benchmarks.trials import Store, Trial

EVERY, LAST = 50, 400
RATES: dict[str, float] = {"a third of the rates": 1 / 3, "the rates as tuned": 1.0, "three times the rates": 3.0}
"""Name -> what both learning rates are multiplied by."""


@dataclass(frozen=True)
class Lengths:
    """What is measured: `recipe` at each of RATES, each EVERY steps up to LAST."""

    recipe: Recipe
    use: Use
    values: tuple[float, ...]
    concepts: tuple[Concept, ...]

    def trials(self, share: float, step: int) -> list[Trial]:
        """One for each concept."""
        rates = {name: self.recipe.widgets[name] * share for name in ("word_rate", "output_rate")}
        recipe = replace(self.recipe, widgets={**self.recipe.widgets, **rates, "steps": LAST, "save_every": EVERY})
        return [Trial(each, recipe, self.use, self.values, prompts(each), at=step) for each in self.concepts]

    def all_trials(self) -> Iterable[Trial]:
        """Rate by rate."""
        return (trial for share in RATES.values() for step in steps() for trial in self.trials(share, step))

    def curves(self, store: Store) -> dict[str, dict[int, Curve]]:
        """Rate's name -> step -> curve; those that were measured whole."""
        found = {name: {step: Curve.of(store, self.trials(share, step)) for step in steps()} for name, share in RATES.items()}
        return {name: each for name, each in found.items() if all(curve is not None for curve in each.values())}

    def page(self, store: Store, out: Path) -> list[str]:
        """The table and the plot."""
        curves = self.curves(store)
        if not curves:
            return []
        plots.over_steps({name: along(each) for name, each in curves.items()}, out / "lengths.png")
        lines = [f"| {name} | {step} | {curve.at_best()} |" for name, each in curves.items() for step, curve in each.items()]
        return [
            f"On the {len(self.concepts)} development concepts, at the best value of the dial at each step. The rates fall to 0 at "
            f"step {LAST}, as always.",
            "",
            "![Both scores over training steps](lengths.png)",
            "",
            "| rates | step | best value | text | design | harmonic mean |",
            "| --- | --- | --- | --- | --- | --- |",
            *lines,
        ]


def steps() -> range:
    """Those that are measured."""
    return range(EVERY, LAST + 1, EVERY)


def along(curves: Mapping[int, Curve]) -> tuple[list[int], list[float], list[float]]:
    """Steps, and text and design at the best value of the dial at each."""
    best = [(each.means(), each.best()) for each in curves.values()]
    return list(curves), [float(text[i]) for (text, _), i in best], [float(design[i]) for (_, design), i in best]
