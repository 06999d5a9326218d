"""Measure fidelity to the training pictures and to the prompt, for this method, other methods, and ablations of this method.

    python -m benchmarks.fidelity [PART ...] [--minutes N] [--servers N]
    python -m benchmarks.fidelity --again METHOD INDIVIDUAL KIND
    python -m benchmarks.fidelity --quick [--out DIR]
    python -m benchmarks.fidelity --checkpoint FILE --pictures DIR --superclass WORD --clip FILE [--prompts FILE] [--out DIR]

Trains concepts and generates images in a real server, lets judges score the images, and writes tables and plots into `results/`.
All scores are kept in a JSON file there and nothing is measured twice: it can be interrupted at any time (or stops after
`--minutes`) and resumes where it was. It trains some hundreds of concepts, which takes a day on two cores. Settings are chosen on
the development concepts; reported numbers are measured on the test concepts. `--again` measures one concept by one method again,
without the kept scores and training runs, and prints both: at most ten minutes. `--quick` takes a minute or two: the demo's concept
from its committed pictures, two methods, few images. With `--checkpoint`, it measures a user's own checkpoint and pictures instead
(see `real`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.fidelity import characters, concepts, confirmation, groups, real, sheet
from benchmarks.fidelity.bench import OWN_PARTS, Bench, quick, whole
from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.trials import SCORES, Bed, Store, Workshop, room
from benchmarks.lab import Lab, open_labs
from demo.base import PACKED
from scripts.setup import bootstrap

Part = tuple[str, Callable[[Bench, Workshop], bool], Callable[[Bench], list[str]]]
PARTS: dict[str, Part] = {
    "tuning": ("Tuning: four candidates for each method", lambda b, s: s.run(b.tuning_trials()), Bench.tuning_page),
    "levers": (
        "Which settings improve likeness, and what they cost",
        lambda b, s: s.run(b.lever_trials()),
        Bench.lever_page,
    ),
    "fidelity": ("All methods", lambda b, s: s.run(b.fidelity_trials()), Bench.fidelity_page),
    "confirmation": ("The best methods on further characters", confirmation.run, confirmation.page),
    "unnamed": ("Prompts that do not name the concept", lambda b, s: s.run(b.unnamed_trials()), Bench.unnamed_page),
    "sheet": (
        "Images",
        lambda b, s: sheet.run(s, b.shown(), b.out),
        lambda b: sheet.page(b.store.kept, b.out),
    ),
    "groups": (
        "Two and three concepts in one image",
        lambda b, s: groups.run(s, b.recipes(), b.out),
        lambda b: groups.page(b.store.kept, b.recipes(), b.out),
    ),
    "ablations": (
        "Ablations: one part changed at a time",
        lambda b, s: s.run(b.ablation_trials()),
        Bench.ablation_page,
    ),
    "lengths": ("How long to train", lambda b, s: b.lengths().run(s), lambda b: b.lengths().page(b.store, b.out)),
}
"""Maps a part's name to its title, the function that measures it (returns False if time is up), and that of its page's lines."""


ALONE = "levers"
"""The part that has a page of its own; all others are on one page."""


def report(bench: Bench, part: str) -> None:
    """Write the page of a part with everything measured so far."""
    alone = part == ALONE
    heading, command = (PARTS[part][0], f"benchmarks.fidelity {part}") if alone else ("Fidelity", "benchmarks.fidelity")
    page = [f"# {heading}", "", f"Written by `python -m {command}`.", ""]
    for name in [part] if alone else [each for each in PARTS if each != ALONE]:
        title, _, lines = PARTS[name]
        told = lines(bench)
        if told:
            page += [*([] if alone else [f"## {title}", ""]), *told, "", *took(bench.store, name)]
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / f"{part if alone else 'fidelity'}.md").write_text("\n".join(page), encoding="utf-8")


def took(store: Store, name: str) -> list[str]:
    """Return the page's lines on the time that a part took, and the commit that measured it last; empty if that is unknown."""
    found = store.kept.get(f"took/{name}")
    if not found:
        return []
    return [
        f"*Took {found['seconds'] / 60:.0f} minutes of one server in total; last run at commit {found['commit']}. All training "
        "runs use seed 0.*",
        "",
    ]


def again(name: str, concept: Concept) -> None:
    """Measure one concept by one method again, in an empty folder, and print both scores."""
    concepts.check_packages()
    kept, setup = whole(), bootstrap.locate()
    (trial,) = kept.trials(METHODS[name], kept.best(name), [concept])
    with open_labs(setup, bootstrap.fresh_base(setup, "again"), 1) as labs:
        store = Store(labs[0].server.base / "scores.json")
        Workshop(labs, characters.CharacterBed(labs[0].judges), store).run([trial])
    for value in trial.values:
        for told, scores in (("kept", kept.store.get(trial, value)), ("anew", store.get(trial, value))):
            means = {part: round(float(getattr(scores, part).mean()), 3) for part in SCORES} if scores else "not measured"
            print(f"{name}, {' '.join(concept)}, dial {value:g}, {told}: {means}")


def main() -> None:
    """Run the requested measurements and write the page after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all of them, if none is named")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start nothing new after so long")
    parser.add_argument("--servers", type=int, default=1, help="number of servers in parallel; on CPUs that is faster than one")
    parser.add_argument("--quick", action="store_true", help="the demo's concept by two methods: a minute or two")
    parser.add_argument("--out", type=Path, help="where the results of --quick go, or those for your own pictures")
    parser.add_argument(
        "--again", nargs=3, metavar=("METHOD", "INDIVIDUAL", "KIND"), help="measure one concept by one method again"
    )
    real.add_arguments(parser)
    arguments = parser.parse_args()
    if arguments.again:
        name, *concept = arguments.again
        known = [*concepts.DEVELOPMENT, *concepts.TEST]
        if name not in METHODS or tuple(concept) not in known:
            parser.error(
                f"expected one of the methods {', '.join(METHODS)}, and an individual such as test-0 with its kind, but got "
                f"{name!r} and {' '.join(concept)!r}"
            )
        again(name, tuple(concept))
        return
    setup = bootstrap.locate()
    bench, bed, parts = own(arguments, setup) if arguments.checkpoint else of_the_world(arguments)
    checkpoint = arguments.checkpoint or setup.base / "models" / "checkpoints" / bootstrap.CHECKPOINT
    # The digest of the demo's base is that of the packed file: the expanded one differs between processors in its last bits.
    digest = bench.store.belongs_to(arguments.checkpoint or PACKED)
    # The quick run's concepts are kept with its results, so that a new output folder means new trainings.
    base = bench.out / "server" if arguments.quick else room(digest)
    bootstrap.stocked_base(setup, base, checkpoint)
    with open_labs(setup, base, arguments.servers) as labs:
        shop = Workshop(labs, bed(labs[0]), bench.store, time.time() + 60 * arguments.minutes)
        for name in parts:
            shop.part = name
            try:
                done = PARTS[name][1](bench, shop)
            finally:
                report(bench, name)
            if not done:
                print(f"{name} is not finished yet; run this again to go on")
                return


Plan = tuple[Bench, Callable[[Lab], Bed], list[str]]
"""The bench, the constructor of its bed, and the parts to measure."""


def of_the_world(arguments: argparse.Namespace) -> Plan:
    """Return the plan for the demo's world: the full benchmark or the quick run."""
    if arguments.quick:
        bench = quick(arguments.out or bootstrap.CACHE / "fidelity-quick")
        return bench, lambda lab: characters.DemoBed(lab.judges), ["fidelity"]
    concepts.check_packages()
    return whole(), lambda lab: characters.CharacterBed(lab.judges), arguments.parts or list(PARTS)


def own(arguments: argparse.Namespace, setup: bootstrap.Setup) -> Plan:
    """Return the plan for a user's own checkpoint and pictures."""
    real.check(arguments)
    shown, asked = real.files(arguments.pictures), real.prompts(arguments.prompts)
    out = arguments.out or arguments.pictures.with_name(f"results-{arguments.pictures.name}")
    concept = (arguments.pictures.name, arguments.superclass)
    recipes = real.candidates(arguments.steps, arguments.batch, len(shown))
    bench = Bench(Store(out / "fidelity.json"), out, (concept,), lambda _: asked, recipes, recognises=False)
    bed = real.RealBed(arguments.checkpoint.name, arguments.side, tuple(shown), real.Clip(setup.comfyui, arguments.clip))
    return bench, lambda _: bed, [part for part in arguments.parts or OWN_PARTS if part in OWN_PARTS]


if __name__ == "__main__":
    main()
