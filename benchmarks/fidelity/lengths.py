"""Measure how long to train: both scores over a training, at several learning rates, on the concepts used for tuning.

Also measures whether the step that Train Concept keeps with `keep` "best" is close to the best one by these scores, which Train
Concept does not see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fidelity import plots
from benchmarks.fidelity.characters import prompts
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.fronts import Curve, harmonic_mean
from benchmarks.fidelity.methods import Recipe, Use
from benchmarks.fidelity.trials import Store, Trial, Workshop
from perfusion_core.concept import Concept as Taught
from perfusion_core.judgement import MIN_ADHERENCE, Judgement

EVERY, LAST = 100, 400
RATES: dict[str, float] = {"a third of the rates": 1 / 3, "the rates as tuned": 1.0, "three times the rates": 3.0}
"""Maps a name to the factor of both learning rates."""


@dataclass(frozen=True)
class Lengths:
    """The measurement: `recipe` at each of RATES, every EVERY steps up to LAST."""

    recipe: Recipe
    use: Use
    values: tuple[float, ...]
    concepts: tuple[Concept, ...]

    def trials(self, share: float, step: int) -> list[Trial]:
        """Return one trial for each concept, at a factor of the rates and a training step."""
        given = self.recipe.all_widgets()
        rates = {name: given[name] * share for name in ("word_rate", "output_rate")}
        recipe = replace(self.recipe, widgets={**self.recipe.widgets, **rates, "steps": LAST, "save_every": EVERY, "keep": "best"})
        return [Trial(each, recipe, self.use, self.values, prompts(each), at=step) for each in self.concepts]

    def at_all_steps(self, share: float) -> list[Trial]:
        """Return the trials of all steps at one of RATES."""
        return [trial for step in steps() for trial in self.trials(share, step)]

    def run(self, shop: Workshop) -> bool:
        """Measure what is missing and store Train Concept's own judgement of it; return False if time ran out."""
        for share in RATES.values():
            if not shop.run(self.at_all_steps(share)):
                return False
            for trial in self.at_all_steps(share):
                if judged_key(trial) not in shop.store.kept:
                    told = Taught.load(shop.lab.server.base / "models" / "perfusion" / shop.taught(trial)).training
                    shop.store.keep({judged_key(trial): {name: told[name] for name in ("held_out_loss", "followed")}})
        return True

    def curves(self, store: Store) -> dict[str, dict[int, Curve]]:
        """Return curves by the rates' name and by step, for those rates that were measured completely."""
        whole = {
            name: share
            for name, share in RATES.items()
            if all(judged_key(trial) in store.kept and not store.missing(trial) for trial in self.at_all_steps(share))
        }
        return {name: {step: Curve.of(store, self.trials(share, step)) for step in steps()} for name, share in whole.items()}

    def page(self, store: Store, out: Path) -> list[str]:
        """Write the plot and return the page's lines."""
        curves = self.curves(store)
        if not curves:
            return []
        plots.over_steps({name: along(each) for name, each in curves.items()}, out / "lengths.png")
        lines = [f"| {name} | {step} | {curve.at_best()} |" for name, each in curves.items() for step, curve in each.items()]
        return [
            f"Results on the {len(self.concepts)} development concepts, at the best dial value for each step. As in every training "
            f"run, the learning rates fall to 0 at the last step, here step {LAST}.",
            "",
            "![Both scores over training steps](lengths.png)",
            "",
            "| rates | step | best value | text | likeness | harmonic mean |",
            "| --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
            "The step that Train Concept keeps with **keep** `best`: of the steps whose prompt-following score is at least "
            f"{MIN_ADHERENCE}, the one with the lowest held-out loss. Harmonic means are per concept, at the best dial value for "
            "that rate.",
            "",
            "| rates | concept | kept step | its harmonic mean | best step | its harmonic mean | last step's harmonic mean |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *[line for share in RATES if share in curves for line in self.kept_lines(store, share, curves[share])],
        ]

    def kept_lines(self, store: Store, rate: str, curves: Mapping[int, Curve]) -> list[str]:
        """Return a table row for each concept: the step that is kept, the best and the last one, with harmonic means."""
        dial = max((max(curve.harmonic()), curve.best()) for curve in curves.values())[1]
        lines = []
        for i, concept in enumerate(self.concepts):
            means = {step: (curve.text[dial, i].mean(), curve.likeness[dial, i].mean()) for step, curve in curves.items()}
            scores = {step: harmonic_mean(text, likeness) for step, (text, likeness) in means.items()}
            judged = {step: judgement(store, self.trials(RATES[rate], step)[i]) for step in curves}
            kept, best = next(iter(judged)), max(scores, key=lambda step: scores[step])
            for step in judged:
                kept = step if judged[step].beats(judged[kept]) else kept
            told = f"{kept} | {scores[kept]:.2f} | {best} | {scores[best]:.2f} | {scores[max(scores)]:.2f}"
            lines.append(f"| {rate} | {' '.join(concept)} | {told} |")
        return lines


def judged_key(trial: Trial) -> str:
    """Return the store's key for Train Concept's judgement of a concept at a step."""
    return f"judged/{trial.name()}/{trial.at}"


def judgement(store: Store, trial: Trial) -> Judgement:
    """Return Train Concept's judgement of a concept at a step."""
    told = store.kept[judged_key(trial)]
    return Judgement(told["held_out_loss"], told["followed"])


def steps() -> range:
    """Return the training steps that are measured."""
    return range(EVERY, LAST + 1, EVERY)


def along(curves: Mapping[int, Curve]) -> tuple[list[int], list[float], list[float]]:
    """Return the steps, and for each the text and the likeness at the best value of the dial."""
    best = [(each.means(), each.best()) for each in curves.values()]
    return list(curves), [float(text[i]) for (text, _), i in best], [float(likeness[i]) for (_, likeness), i in best]
