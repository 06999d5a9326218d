"""The measurements of the fidelity benchmark and the lines of their pages, over one store of scores; see `__main__`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.fidelity import characters, plots
from benchmarks.fidelity.ablations import ABLATIONS, NEAR, Ablation, Change
from benchmarks.fidelity.concepts import MEASURED, Concept, individual
from benchmarks.fidelity.fronts import Curve, cells, lead, lead_of, ranged, rows
from benchmarks.fidelity.lengths import Lengths
from benchmarks.fidelity.levers import FINE_HALF, FINE_LEVERS, LEVERED, LEVERS, VALUES
from benchmarks.fidelity.methods import AFTERWARDS, METHODS, PERFUSION, Method, Recipe, Use
from benchmarks.fidelity.trials import SEEDS, Prompt, Store, Trial, bytes_key
from benchmarks.lab import RESULTS
from demo import world
from demo.individuals import NAMES

TUNED_ON: tuple[Concept, ...] = (("development-0", "monster"), ("development-0", "blob"))
LEVELS = (0.95, 0.98, 0.99)
"""Text scores from which on likeness is compared, as shares of the superclass's text score, which nearly all methods reach."""
DESCRIBED = "described in words, no training"
OURS, WORD_ALONE, BY_NAME = "Perfusion", "superclass only, no training", "characters that the base model knows by name"
VARIANTS = {
    "Perfusion, keys in fine layers, half locked": ("Key-locking", "in fine layers, half locked"),
    "Perfusion, keys at the word, half locked": ("Key-locking", "at the word"),
    "Perfusion, keys at the word, three quarters locked": ("Key-locking", "at the word, three quarters locked"),
    "Perfusion, one picture": ("One picture", "one"),
    "Perfusion, keys locked globally": ("Global key-locking", "global"),
}
"""Maps a name in the tables of all methods to an ablation and its variant."""
SCORED = (
    "*Recognised*: a classifier picks the right character out of 240 of its kind. *Likeness*: the mean of this and of the share of "
    "the character's features that appear. *Text*: the share of what the prompt asks for, including the kind, that appears."
)
SIMILAR = (
    "*Likeness*: the mean cosine similarity of CLIP's embeddings of a generated image and of the training pictures. *Text*: that "
    "of the image and the prompt with the superclass."
)
NAMED = 2
"""Number of characters of each kind that are asked for by the name that the base model knows."""
OWN_PARTS = ("fidelity", "unnamed", "sheet", "ablations")
QUICK = (OURS, "Textual Inversion")
QUICK_WIDGETS: dict[str, object] = {"steps": 40, "batch": 2}
"""Widgets in which the quick run's training runs differ from the tuned methods."""


@dataclass(frozen=True)
class Bench:
    """The measurements and their pages, over one store, which holds all scores."""

    store: Store
    out: Path
    concepts: tuple[Concept, ...]
    prompts: Callable[[Concept], tuple[Prompt, ...]]
    candidates: Mapping[str, tuple[Recipe, ...]]
    """Maps each method to the recipes among which it is tuned."""
    every: int = 1
    """Only one in `every` values of a dial is measured."""
    known: bool = False
    """Whether characters that the base model knows by name are measured as well."""
    recognises: bool = True
    """Whether judges recognise the concept; otherwise both scores are similarities of CLIP's embeddings."""

    def trials(
        self, method: Method, recipe: Recipe | None, concepts: Iterable[Concept], values: tuple[float, ...] = ()
    ) -> list[Trial]:
        """Return one trial for each concept, at the values of the method's dial unless others are given."""
        chosen = values or method.values[:: self.every]
        return [Trial(concept, recipe, method.use, chosen, self.prompts(concept)) for concept in concepts]

    def curve(self, method: Method, recipe: Recipe | None, concepts: Iterable[Concept]) -> Curve | None:
        """Return the curve over these concepts, or None unless all of them were measured."""
        return Curve.of(self.store, self.trials(method, recipe, concepts))

    # ---- tuning --------------------------------------------------------------------------------------------------------------

    def tuning_trials(self) -> list[Trial]:
        """Return trials of all candidates of all methods on the tuning concepts, interleaved so that all methods progress alike."""
        turns = zip(*([(name, recipe) for recipe in found] for name, found in self.candidates.items()), strict=True)
        found = [pair for turn in turns for pair in turn]
        found += [(name, recipe) for name in self.candidates for recipe in self.afterwards(name)]
        return quickest_first([trial for name, recipe in found for trial in self.candidate(name, recipe)])

    def afterwards(self, name: str) -> tuple[Recipe, ...]:
        """Return a method's recipes that are shown beside its candidates; none outside of the demo's world."""
        return AFTERWARDS.get(name, ()) if self.known else ()

    def candidate(self, name: str, recipe: Recipe) -> list[Trial]:
        """Return the trials that a method's candidate is chosen by: every second value of the dial."""
        method = METHODS[name]
        return self.trials(method, recipe, TUNED_ON, method.values[1::2] or method.values)

    def best(self, name: str) -> Recipe:
        """Return the candidate with the best harmonic mean at the best value of its dial; the first if none was measured yet."""
        curves = [(Curve.of(self.store, self.candidate(name, recipe)), recipe) for recipe in self.candidates[name]]
        found = [(curve.harmonic().max(), recipe) for curve, recipe in curves if curve is not None]
        return max(found, key=lambda pair: pair[0])[1] if found else self.candidates[name][0]

    def tuning_page(self) -> list[str]:
        """Return the page's lines on tuning: all measured candidates."""
        lines = []
        for name, found in self.candidates.items():
            later = self.afterwards(name)
            for recipe in (*found, *later):
                curve = Curve.of(self.store, self.candidate(name, recipe))
                if curve is not None:
                    told = ", ".join(f"{key} {value}" for key, value in recipe.widgets.items() if key != "edit_mode") or "–"
                    taken = "tried afterwards" if recipe in later else "yes" if recipe == self.best(name) else ""
                    lines.append(f"| {name} | {told} | {curve.at_best()} | {taken} |")
        if not lines:
            return []
        return [
            f"Each method had {len(self.candidates[OURS])} candidate settings, each used to train {len(TUNED_ON)} development "
            "concepts. The candidate with the best harmonic mean of both scores, at the best of every second dial value, was "
            "chosen.",
            "",
            "Every step of every method evaluates the model on 4 pictures; a fine-tune with a prior loss evaluates it on 4 more, "
            "generated from the superclass. No method is shown mirrored pictures, because all characters face the same way. Only "
            "concepts trained with Train Concept (Perfusion, Textual Inversion and the static edit) use masks. The guidance, the "
            "number of steps, the batch size and the defaults of Train Concept were chosen for Perfusion, on development "
            "characters, so the other methods may do better with others.",
            "",
            "*LoRA* is ComfyUI's own Train LoRA, with its loss (of the denoised latents), its constant learning rate and a fixed "
            "caption for each picture. Given a batch of 4, it averages its predictions for each picture over all 4 captions, which "
            "takes 16 evaluations; here it gets one picture at a time and adds up 4 gradients, and each picture twice, so that all "
            "eight training prompts occur. All trainers compute in bfloat16 on machines where that is fast, otherwise in float32. "
            "The fine-tune learns all weights of the UNet, which stay in float32; its strength is the share of its weights in a "
            "mix with the base model's. *Described in words* is the base model with the character's description in place of a "
            "name.",
            "",
            "| method | settings changed | best value | text | likeness | harmonic mean | chosen |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        ]

    # ---- all methods ---------------------------------------------------------------------------------------------------------

    def tuned(self) -> dict[str, list[Trial]]:
        """Return the trials of the superclass and of every tuned method, on all concepts."""
        found = {WORD_ALONE: self.trials(NOTHING, None, self.concepts)}
        found |= {DESCRIBED: [described(concept) for concept in self.concepts]} if self.known else {}
        found |= {name: self.trials(METHODS[name], self.best(name), self.concepts) for name in self.candidates}
        if self.known:
            found |= {name: self.variant(ABLATIONS[part].variants[each], self.concepts) for name, (part, each) in VARIANTS.items()}
        return found

    def variant(self, change: Change, concepts: Iterable[Concept]) -> list[Trial]:
        """Return the trials of Perfusion as tuned with one thing changed."""
        recipe, use = change.of(self.best(OURS), METHODS[OURS].use)
        return self.trials(replace(METHODS[OURS], use=use), recipe, concepts, change.values)

    def by_name(self) -> list[Trial]:
        """Return the trials of characters that the base model knows by name; empty outside of the demo's world."""
        return [named(kind, i) for i in range(NAMED) for kind in NAMES] if self.known else []

    def fidelity_trials(self) -> list[Trial]:
        """Return the trials of `tuned` and `by_name`, ordered by concept, so that all methods progress alike."""
        plain, *each = self.tuned().values()
        return plain + self.by_name() + quickest_first([trial for turn in zip(*each, strict=True) for trial in turn])

    def curves(self) -> dict[str, Curve]:
        """Return the curves of all methods that were measured on all concepts."""
        found = {name: Curve.of(self.store, trials) for name, trials in self.tuned().items()}
        return {name: curve for name, curve in found.items() if curve is not None}

    def levels(self) -> dict[float, float]:
        """Map each of LEVELS to the absolute text score; empty if the superclass was not measured."""
        plain = self.curve(NOTHING, None, self.concepts)
        return {level: level * float(plain.means()[0][0]) for level in LEVELS} if plain else {}

    def fidelity_page(self) -> list[str]:
        """Return the page's lines on all methods: the fronts and leads."""
        curves = self.curves()
        if not curves:
            return []
        title = f"{len(self.concepts)} {'characters' if self.known else 'concepts'} that the model does not know"
        plots.pareto(curves, self.reach(), title, self.out / "fidelity.png", plots.LEAST if self.known else None)
        corner = f"The plot shows text from {plots.LEAST[0]:g} and likeness from {plots.LEAST[1]:g} on. " if self.known else ""
        lines = [
            f"{len(self.concepts)} concepts, {len(self.prompts(self.concepts[0]))} prompts, {SEEDS} seeds; in brackets 95 % "
            f"intervals over concepts (Student's t). {SCORED if self.recognises else SIMILAR}",
            "",
            "![Likeness over text, a line for each method](fidelity.png)",
            "",
            f"{corner}The number next to the best point of a method is the value of its dial.",
            "",
            *self.summary(curves),
            "",
            "All values of all dials:",
            "",
            "| method | dial | text | likeness | harmonic mean |",
            "| --- | --- | --- | --- | --- |",
            *rows(curves),
        ]
        lines += ["", *self.leads(curves)] if OURS in curves and WORD_ALONE in curves else []
        again = f'`python -m benchmarks.fidelity --again "{OURS}" {" ".join(self.concepts[0])}`'
        row = f"To measure one row again (ten minutes at most): {again}." if self.known else ""
        kinds = ["", *self.kinds(curves)] if self.known else []
        return [*lines, *kinds, *self.beside(curves), *self.elsewhere(), "", row]

    def summary(self, curves: Mapping[str, Curve]) -> list[str]:
        """Return the table of all methods at the best value of their dials."""
        lines, trials = [], self.tuned()
        known = self.reach()
        for name, curve in [*curves.items(), *([(BY_NAME, known)] if known else [])]:
            i, (text, likeness) = curve.best(), curve.means()
            size = self.store.kept.get(bytes_key(trials[name][0]) if name in trials else "")
            columns = [name, f"{curve.values[i]:g}", f"{size['bytes'] / 1000:,.0f} kB" if size else ""]
            columns += [f"{likeness[i]:.2f}", f"{text[i]:.2f}", ranged(curve.harmonic()[i], curve.harmonic_interval(i))]
            columns += [f"{curve.identity[i].mean():.2f}", f"{curve.both()[i].mean():.2f}"] if self.recognises else []
            lines.append(f"| {' | '.join(columns)} |")
        headings = ["method", "dial", "file", "likeness", "text", "harmonic mean"]
        headings += ["recognised", "both"] if self.recognises else []
        told = ["At the best value of each dial, which is chosen on these images."]
        if self.recognises:
            told.append("*Both*: the share of images in which the concept is recognised and all that the prompt asks for is there.")
        if self.known:
            told.append(
                "*Keys in fine layers, unlocked* was tuned by itself; Perfusion's other rows use the settings of *Perfusion*."
            )
        return [
            " ".join(told),
            "",
            f"| {' | '.join(headings)} |",
            f"| {' | '.join('---' for _ in headings)} |",
            *lines,
        ]

    def reach(self) -> Curve | None:
        """Return the scores of characters that the base model knows by name, or None if they were not measured."""
        return Curve.of(self.store, self.by_name()) if self.by_name() else None

    def elsewhere(self) -> list[str]:
        """Return links to the pages whose measurements explain these numbers."""
        pages = {
            "base.md": "How well the base model itself follows prompts",
            "small_things.md": "What preserves a character's small details",
        }
        told = [f"{what}: [{name}]({name})." for name, what in pages.items() if (self.out / name).exists()]
        return ["", " ".join(told)] if told else []

    def beside(self, curves: Mapping[str, Curve]) -> list[str]:
        """Compare prompts for the concept alone with prompts that ask for another character too; empty if no prompt does."""
        beside = [bool(prompt.other) for prompt in self.prompts(self.concepts[0])]
        if not any(beside):
            return []
        lines = []
        for name, curve in curves.items():
            i = curve.best()
            parts = [
                scores[i][:, [other == there for there in beside]].mean()
                for other in (False, True)
                for scores in (curve.text, curve.likeness, curve.both())
            ]
            lines.append(f"| {name} | {curve.values[i]:g} | {' | '.join(f'{part:.2f}' for part in parts)} |")
        return [
            "",
            "At the best value of each dial, for prompts with the concept alone and for prompts with a second character, where the "
            "image is twice as wide:",
            "",
            "| method | dial | alone: text | likeness | both | with a second: text | likeness | both |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *lines,
        ]

    def leads(self, curves: dict[str, Curve]) -> list[str]:
        """Return the table of Perfusion's lead over each other method where text is high."""
        levels = self.levels()
        lines = [
            "How much higher Perfusion's likeness is, each method at the dial value with the highest likeness among those with at "
            "least this text (given as a share of the superclass's): the mean over concepts with its 95 % interval (Student's t), "
            "and the number of concepts on which Perfusion is ahead. –: one of the two does not reach this text. The intervals do "
            "not cover the choice of prompts or the training seed, which is 0 for all.",
            "",
            f"| against | {' | '.join(f'{share:.0%} of its text ({level:.2f})' for share, level in levels.items())} |",
            f"| --- | {' | '.join('---' for _ in levels)} |",
        ]
        for name, curve in curves.items():
            if name not in (WORD_ALONE, OURS):
                found = [lead(curves[OURS], curve, level) for level in levels.values()]
                lines.append(f"| {name} | {' | '.join(str(each or '–') for each in found)} |")
        return lines

    def kinds(self, curves: Mapping[str, Curve]) -> list[str]:
        """Return the table of likeness for each kind of character, which methods treat very differently."""
        kinds, lines = {kind: [kind == each for _, each in self.concepts] for _, kind in self.concepts}, []
        for name, curve in curves.items():
            likeness = curve.likeness[curve.best()]
            parts = [likeness[its].mean() for its in kinds.values()]
            lines.append(f"| {name} | {' | '.join(f'{part:.2f}' for part in parts)} |")
        return [
            "Likeness for each kind of character, at the best value of each dial:",
            "",
            f"| method | {' | '.join(kinds)} |",
            f"| --- | {' | '.join('---' for _ in kinds)} |",
            *lines,
        ]

    def shown(self) -> list[tuple[str, list[Trial], Curve]]:
        """Return what the contact sheet shows: name, trials and curve of each measured method."""
        trials = self.tuned()
        return [(name, trials[name], curve) for name, curve in self.curves().items()]

    # ---- prompts that do not name the concept ---------------------------------------------------------------------------------

    def unnamed(self) -> dict[str, list[Trial]]:
        """Return trials of every measured method at the best value of its dial, with the superclass in the concept's place."""
        found = {}
        for name, trials, curve in self.shown():
            if name == DESCRIBED:
                continue
            value = curve.values[curve.best()]
            found[name] = [
                replace(
                    trial, values=(value,), prompts=tuple(replace(p, text=p.text.format(trial.concept[1])) for p in trial.prompts)
                )
                for trial in trials
            ]
        return found

    def unnamed_trials(self) -> list[Trial]:
        """Return the trials of `unnamed` in one list."""
        return [trial for trials in self.unnamed().values() for trial in trials]

    def unnamed_page(self) -> list[str]:
        """Return the page's lines on what each method does to prompts with the superclass."""
        curves = together(self.store, self.unnamed())
        if len(curves) < 2:
            return []
        return [
            "The same prompts with the superclass in place of the trigger word, while the concept is applied. Ideally, text is the "
            f"same as for the untrained model and the concept does not show. Measured on {count_of(curves)} concepts.",
            "",
            "| method | dial | text | likeness |",
            "| --- | --- | --- | --- |",
            *(f"| {name} | {cells(curve, 0)} |" for name, curve in curves.items()),
        ]

    # ---- ablations -----------------------------------------------------------------------------------------------------------

    def variants(self, ablation: Ablation) -> dict[str, list[Trial]]:
        """Return the trials of each variant of an ablation."""
        found = {}
        for name, change in ablation.variants.items():
            # The first variant is measured at all values among the methods.
            values = change.values or (NEAR if found else ())
            # The first half of the concepts has one of each kind.
            found[name] = self.variant(replace(change, values=values), self.concepts[: len(self.concepts) // ablation.every])
        return found

    def ablation_trials(self) -> list[Trial]:
        """Return the trials of all ablations: first on half of the concepts, then on the rest.

        If the benchmark is interrupted early, all variants were measured on the same concepts.
        """
        found = [trials for ablation in ABLATIONS.values() for trials in self.variants(ablation).values()]
        half = -(-len(self.concepts) // 2)
        return [trial for trials in found for trial in trials[:half]] + [trial for trials in found for trial in trials[half:]]

    def ablation_page(self) -> list[str]:
        """Return the page's lines on the effect of each part of the method."""
        measured = {name: together(self.store, self.variants(ablation)) for name, ablation in ABLATIONS.items()}
        told = [line for name, curves in measured.items() for line in self.ablation_lines(name, curves)]
        if not told:
            return []
        return [
            "Perfusion as tuned, and with one thing changed. *Lead*: how much higher its likeness is than that of the first "
            f"variant in its group, each at the best of those dial values with at least {min(LEVELS):.0%} of the superclass's text "
            "(only values at which both were measured, if one has fewer): the mean over concepts with its 95 % interval "
            "(Student's t), and the number of concepts with a higher likeness; – if one of them does not reach this text. *Both*: "
            "the share of images in which the concept is recognised and all that the prompt asks for is there, at the best value.",
            "",
            *self.orderings(measured),
            *told,
        ]

    def orderings(self, measured: Mapping[str, Mapping[str, Curve]]) -> list[str]:
        """Return the table that compares the paper's orderings with those measured here."""
        lines = []
        for name, curves in measured.items():
            ablation = ABLATIONS[name]
            first = next(iter(ablation.variants))
            for each in ablation.behind if first in curves else ():
                if each in curves:
                    told, verdict = compared(curves[each], curves[first], list(self.levels().values()))
                    lines.append(f"| {name} | {each} behind {first} | {told} | {verdict} | {count_of(curves)} |")
        if not lines:
            return []
        return [
            "### The orderings of the paper's Fig. 9",
            "",
            "*Seen*: the interval of the lead lies entirely on the paper's side of 0. *Undecided*: it contains 0.",
            "",
            "| part | in the paper | lead | here | concepts |",
            "| --- | --- | --- | --- | --- |",
            *lines,
            "",
        ]

    def ablation_lines(self, name: str, curves: Mapping[str, Curve]) -> list[str]:
        """Return the page's lines on one ablation; empty unless at least two variants were measured."""
        if len(curves) < 2:
            return []
        first, levels, lines = next(iter(curves.values())), list(self.levels().values()), []
        for each, curve in curves.items():
            ahead = "" if curve is first else compared(curve, first, levels)[0]
            lines.append(f"| {each} | {curve.at_best()} | {curve.both()[curve.best()].mean():.2f} | {ahead} |")
        return [
            f"### {name}",
            "",
            f"{ABLATIONS[name].expected} Measured on {count_of(curves)} concepts.",
            "",
            "| variant | best value | text | likeness | harmonic mean | both | lead |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *lines,
            "",
        ]

    # ---- levers --------------------------------------------------------------------------------------------------------------

    def levers(self, table: Mapping[str, Change]) -> dict[str, list[Trial]]:
        """Return the trials of each lever of a table: the demo's settings with this changed."""
        found, ours = {}, METHODS[OURS]
        for name, change in table.items():
            recipe, use = change.of(ours.candidates[0], ours.use)
            found[name] = self.trials(replace(ours, use=use), recipe, LEVERED, change.values or VALUES)
        return found

    def lever_trials(self) -> list[Trial]:
        """Return the trials of all levers."""
        return [trial for table in (LEVERS, FINE_LEVERS) for trials in self.levers(table).values() for trial in trials]

    def lever_page(self) -> list[str]:
        """Return the page's lines on which settings improve likeness at the same text score."""
        of_settings, of_fine = self.lever_table(LEVERS), self.lever_table(FINE_LEVERS)
        if not of_settings:
            return []
        return [
            f"The demo's settings with something changed, on {len(LEVERED)} development characters, one of each kind, with "
            f"{len(self.prompts(LEVERED[0]))} prompts and {SEEDS} seeds each, at the better of two biases. *Recognised*: a "
            "classifier picks the right character out of 240 of its kind. *Details*: the share of the character's features that "
            "appear. *Text*: the share of what the prompts ask for that appears. *With a second character*: the same, for the "
            "prompts that ask for one. *Both*: the share of images in which the character is recognised and all that the prompt "
            "asks for is there. *Harmonic mean*: of likeness (the mean of *recognised* and *details*) and text. *Lead*: how far "
            "its harmonic mean is ahead of the first row's: the mean over characters with its 95 % interval (Student's t), and "
            "the number of characters on which it is ahead.",
            "",
            *of_settings,
            *(["", f"With {FINE_HALF}, and one thing more changed:", "", *of_fine] if of_fine else []),
        ]

    def lever_table(self, table: Mapping[str, Change]) -> list[str]:
        """Return the table of those levers that were measured; empty if the first was not, which the others are compared with."""
        trials = self.levers(table)
        curves = {name: curve for name, each in trials.items() if (curve := Curve.of(self.store, each))}
        first = next(iter(table))
        if first not in curves:
            return []
        lines = [
            "| changed | bias | recognised | details | text | with a second character | both | harmonic mean | lead | file |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for name, curve in curves.items():
            i, (text, likeness) = curve.best(), curve.means()
            sizes = [self.store.kept.get(bytes_key(trial), {}) for trial in trials[name]]
            size = np.mean([each.get("bytes", np.nan) for each in sizes])
            details = 2 * likeness[i] - curve.identity[i].mean()
            beside = curve.text[i][:, [bool(prompt.other) for prompt in trials[name][0].prompts]].mean()
            shares = (curve.identity[i].mean(), details, text[i], beside, curve.both()[i].mean())
            ahead = "" if name == first else str(lead_of(curve.harmonic_of_each() - curves[first].harmonic_of_each()))
            columns = [name, f"{curve.values[i]:g}", *(f"{share:.2f}" for share in shares), f"{curve.harmonic()[i]:.3f}", ahead]
            lines.append(f"| {' | '.join([*columns, f'{size / 1000:.0f} kB'])} |")
        return lines

    def recipes(self) -> dict[str, Recipe | None]:
        """Map each method of `tuned` to the recipe that it was tuned to; the superclass has none."""
        return {name: trials[0].recipe for name, trials in self.tuned().items()}

    def lengths(self) -> Lengths:
        """Return the measurement of Perfusion over the course of its training."""
        return Lengths(self.best(OURS), METHODS[OURS].use, METHODS[OURS].values, TUNED_ON)


def together(store: Store, groups: Mapping[str, list[Trial]]) -> dict[str, Curve]:
    """Return curves of groups of trials that cover the same concepts in the same order.

    Groups without a completely measured trial are left out. The curves are over the concepts on which all others were measured.
    """
    begun = {name: trials for name, trials in groups.items() if not all(store.missing(trial) for trial in trials)}
    each = list(zip(*begun.values(), strict=True))
    both = [i for i, trials in enumerate(each) if not any(store.missing(trial) for trial in trials)]
    return {name: Curve.of(store, [trials[i] for i in both]) for name, trials in begun.items()} if both else {}


def compared(curve: Curve, first: Curve, levels: list[float]) -> tuple[str, str]:
    """Return a curve's lead over another one at the lowest text level as text, and the verdict on whether it is behind.

    If one was measured at fewer values of the same dial, only these count, since more values give more to choose from.
    """
    if set(curve.values) <= set(first.values):
        first = first.at(curve.values)
    found = lead(curve, first, min(levels)) if levels else None
    if found is None:
        return "–", "one of them does not reach the text"
    low, high = found.interval
    if not (low > 0 or high < 0):
        direction = "paper's" if found.mean < 0 else "other"
        return str(found), f"undecided, in the {direction} direction"
    return str(found), "seen" if high < 0 else "the opposite"


def count_of(curves: Mapping[str, Curve]) -> int:
    """Return the number of concepts that curves are over."""
    return next(iter(curves.values())).likeness.shape[1]


NOTHING = Method(Use(""), (0.0,), ())


def named(kind: str, index: int) -> Trial:
    """Return the trial of a character that the base model knows, by its name in the prompts of a concept."""
    concept = (f"base-{index}", kind)
    asked = tuple(replace(each, text=each.text.format(NAMES[kind][index])) for each in characters.prompts(concept))
    return Trial(concept, None, NOTHING.use, NOTHING.values, asked)


def described(concept: Concept) -> Trial:
    """Return the trial of a character that the base model does not know, with its description in the prompts of a concept."""
    one = individual(concept)
    said = {part: one.said(part) for part in one.variants}
    if one.kind == "robot" and said["head"]:
        said["pattern"] = ""  # captions of robots never have both
    second = one.colours[1] if said["head"] and one.tinted else ""
    words = world.Said(one.kind, colour=one.colours[0], second=second, **said).text()
    asked = tuple(
        replace(each, text=each.text.format(words).replace("a orange", "an orange")) for each in characters.prompts(concept)
    )
    return Trial(concept, None, NOTHING.use, NOTHING.values, asked)


def quickest_first(trials: list[Trial]) -> list[Trial]:
    """Sort trials of other trainers than Train Concept to the end, because they take several times as long."""
    return sorted(trials, key=lambda trial: trial.recipe is not None and trial.recipe.teacher != PERFUSION)


def whole() -> Bench:
    """Return the full benchmark: the test concepts and all methods with all their candidates."""
    candidates = {name: method.candidates for name, method in METHODS.items()}
    return Bench(Store(RESULTS / "fidelity.json"), RESULTS, MEASURED, characters.prompts, candidates, known=True)


def quick(out: Path) -> Bench:
    """Return the quick benchmark: the demo's concept and two methods, as tuned except for QUICK_WIDGETS."""
    tuned = whole()
    best = {name: tuned.best(name) for name in QUICK}
    recipes = {name: (replace(recipe, widgets=recipe.widgets | QUICK_WIDGETS),) for name, recipe in best.items()}
    return Bench(Store(out / "fidelity.json"), out, (characters.DEMO,), lambda _: characters.QUICK, recipes, every=3)
