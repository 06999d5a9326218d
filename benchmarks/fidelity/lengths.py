"""How long to train: both scores along a training, at several learning rates, on the concepts that settings are chosen on.

And whether Train Concept, told to keep the best, keeps what is near the best by these scores, which it knows nothing of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fidelity import plots
from benchmarks.fidelity.characters import prompts
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.fronts import Curve
from benchmarks.fidelity.methods import Recipe, Use
from benchmarks.fidelity.trials import Store, Trial, Workshop
from perfusion_core.concept import Concept as Taught
from perfusion_core.judgement import LEAST, Judgement

EVERY, LAST = 100, 400
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
        given = self.recipe.all_widgets()
        rates = {name: given[name] * share for name in ("word_rate", "output_rate")}
        recipe = replace(self.recipe, widgets={**self.recipe.widgets, **rates, "steps": LAST, "save_every": EVERY, "keep": "best"})
        return [Trial(each, recipe, self.use, self.values, prompts(each), at=step) for each in self.concepts]

    def at_all_steps(self, share: float) -> list[Trial]:
        """At one of RATES."""
        return [trial for step in steps() for trial in self.trials(share, step)]

    def run(self, shop: Workshop) -> bool:
        """Measure what is missing, and note what Train Concept thought of it; False if there was no time for all of it."""
        for share in RATES.values():
            if not shop.run(self.at_all_steps(share)):
                return False
            for trial in self.at_all_steps(share):
                if judged_key(trial) not in shop.store.kept:
                    told = Taught.load(shop.lab.server.base / "models" / "perfusion" / shop.taught(trial)).training
                    shop.store.keep({judged_key(trial): {name: told[name] for name in ("held_out_loss", "followed")}})
        return True

    def curves(self, store: Store) -> dict[str, dict[int, Curve]]:
        """Rate's name -> step -> curve; those that were measured whole."""
        whole = {
            name: share
            for name, share in RATES.items()
            if all(judged_key(trial) in store.kept and not store.missing(trial) for trial in self.at_all_steps(share))
        }
        return {name: {step: Curve.of(store, self.trials(share, step)) for step in steps()} for name, share in whole.items()}

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
            "",
            "What Train Concept keeps of these when told to keep the best: the least held-out loss of those that follow prompts "
            f"as far as {LEAST}. Harmonic means of each concept at the rate's best value of the dial.",
            "",
            "| rates | concept | kept step | harmonic mean | best step | harmonic mean | last step's |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *[line for share in RATES if share in curves for line in self.kept_lines(store, share, curves[share])],
        ]

    def kept_lines(self, store: Store, rate: str, curves: Mapping[int, Curve]) -> list[str]:
        """What is kept of each concept, beside the best."""
        dial = max((max(curve.harmonic()), curve.best()) for curve in curves.values())[1]
        lines = []
        for i, concept in enumerate(self.concepts):
            means = {step: (curve.text[dial, i].mean(), curve.design[dial, i].mean()) for step, curve in curves.items()}
            scores = {step: 2 * text * design / max(text + design, 1e-9) for step, (text, design) in means.items()}
            judged = {step: judgement(store, self.trials(RATES[rate], step)[i]) for step in curves}
            kept, best = next(iter(judged)), max(scores, key=lambda step: scores[step])
            for step in judged:
                kept = step if judged[step].beats(judged[kept]) else kept
            told = f"{kept} | {scores[kept]:.2f} | {best} | {scores[best]:.2f} | {scores[max(scores)]:.2f}"
            lines.append(f"| {rate} | {' '.join(concept)} | {told} |")
        return lines


def judged_key(trial: Trial) -> str:
    """Of what Train Concept thought of a concept at a step."""
    return f"judged/{trial.name()}/{trial.at}"


def judgement(store: Store, trial: Trial) -> Judgement:
    """What it thought."""
    told = store.kept[judged_key(trial)]
    return Judgement(told["held_out_loss"], told["followed"])


def steps() -> range:
    """Those that are measured."""
    return range(EVERY, LAST + 1, EVERY)


def along(curves: Mapping[int, Curve]) -> tuple[list[int], list[float], list[float]]:
    """Steps, and text and design at the best value of the dial at each."""
    best = [(each.means(), each.best()) for each in curves.values()]
    return list(curves), [float(text[i]) for (text, _), i in best], [float(design[i]) for (_, design), i in best]
