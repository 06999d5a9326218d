"""The best methods once more, on further test characters: every setting, also the dial's value, is fixed before.

The values of the dials, and which locks are of interest, were chosen on the test concepts of the tables of all methods, which
flatters methods with more to choose from. Nothing is chosen here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.fidelity.bench import Bench
from benchmarks.fidelity.concepts import FURTHER
from benchmarks.fidelity.fronts import Curve, lead_of, ranged
from benchmarks.fidelity.trials import SEEDS, Trial, Workshop

FIRST = "Perfusion, keys in fine layers, half locked"
"""The method whose leads over the others are told."""
CONFIRMED = (FIRST, "LoRA", "Perfusion", "fine-tune with a prior loss", "fine-tune", "Textual Inversion")


def trials(bench: Bench) -> dict[str, list[Trial]]:
    """Return each method's trials of the further concepts, at the best value of its dial on the test concepts."""
    tuned, curves = bench.tuned(), bench.curves()
    return {name: further(bench, tuned[name][0], curves[name]) for name in CONFIRMED if name in curves}


def further(bench: Bench, like: Trial, curve: Curve) -> list[Trial]:
    """Return trials of the further concepts that are trained and used as `like`, at the best value of a curve's dial."""
    value = curve.values[curve.best()]
    return [replace(like, concept=each, values=(value,), prompts=bench.prompts(each)) for each in FURTHER]


def run(bench: Bench, shop: Workshop) -> bool:
    """Measure what is missing, method by method; return False if time ran out."""
    return shop.run(trial for each in trials(bench).values() for trial in each)


def page(bench: Bench) -> list[str]:
    """Return the page's lines: a table of the methods that were measured on all further concepts."""
    found = {name: Curve.of(bench.store, each) for name, each in trials(bench).items()}
    curves = {name: curve for name, curve in found.items() if curve is not None}
    if FIRST not in curves:
        return []
    first, lines = curves[FIRST], []
    for name, curve in curves.items():
        text, likeness = curve.intervals[:, 0]
        shares = [ranged(curve.text.mean(), text), ranged(curve.likeness.mean(), likeness)]
        shares += [ranged(curve.harmonic()[0], curve.harmonic_interval(0)), f"{curve.both().mean():.2f}"]
        leads = [str(lead_of(differences)) for differences in apart(first, curve)] if curve is not first else ["", ""]
        lines.append(f"| {' | '.join([name, f'{curve.values[0]:g}', *shares, *leads])} |")
    return [
        f"The methods trained as above, on {len(FURTHER)} further test characters, on which nothing was trained before. The dial "
        f"has the value that is best above, so nothing is chosen here. {len(bench.prompts(FURTHER[0]))} prompts and {SEEDS} seeds "
        f"for each character; in brackets 95 % intervals over characters. *Ahead in likeness*, *in both*: how far *{FIRST}* is "
        "ahead of the method: the mean over characters with its 95 % interval, and the number of characters on which it is ahead.",
        "",
        "| method | dial | text | likeness | harmonic mean | both | ahead in likeness | ahead in both |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *lines,
    ]


def apart(one: Curve, other: Curve) -> list[np.ndarray]:
    """Return the differences in likeness and in *both* of two curves with a single value, one for each concept, [C] each."""
    likeness = (one.likeness - other.likeness)[0].mean((1, 2))
    return [likeness, (one.both() - other.both())[0].mean(1)]
