"""Run two hundred jobs of all kinds on one server: whether anything accumulates, and whether the base is still unchanged.

    python -m benchmarks.robustness.soak [--jobs N] [--minutes N]

The jobs are, in turn, trainings, interruptions at every stage, errors, and images with one concept, with several, and of a
comparison. After every twenty jobs, the first of which load everything that is used, a node of `spy.py` counts what the process
holds. Writes `results/soak.md`; the exit status is 1 if memory grows by more than 2 % from the first count to the last, if anything
else grows, if an interruption did not stop its graph, or if an image differs from the one that the server generated at first.
Memory is measured after the allocator has returned its free memory: how much of that it keeps is random, some hundred MB up or down
from one count to the next. The server drops results that the next graph does not need (--cache-classic): by default the host keeps
those of all graphs as long as there is memory, which would dominate the measurement.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.lab import RESULTS
from scripts.harness.graphs import Graph, Link, latents
from scripts.harness.moments import Moment, base_with_spy, progress, queued_until
from scripts.harness.server import GraphError, Server
from scripts.setup import bootstrap, steps

JOBS, SETTLED = 200, 20
GROWTH = 1.02
MONSTER, ROBOT = "demo-monster.safetensors", "demo-robot.safetensors"
SEEDS = (1, 2, 3)
STEPS = 40
"""Number of steps of jobs that are interrupted."""


# ---- graphs --------------------------------------------------------------------------------------------------------------------


def picture(seed: int, *concepts: str, steps: int = 2) -> tuple[Graph, Link]:
    """Return a graph that samples a latent with these concepts, or with only the base, and the link to the latent."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    loaded = [graph.load(name) for name in concepts]
    if loaded:
        model, clip = graph.apply(model, clip, graph.combine(*loaded) if len(loaded) > 1 else loaded[0])
    text = "a <demo-monster> and a <demo-robot>" if concepts else "a monster and a robot"
    return graph, graph.sample(model, graph.text(clip, text), graph.text(clip, ""), steps=steps, seed=seed)


def lesson(seed: int, **widgets: object) -> tuple[Graph, str]:
    """Return a graph that trains from one picture, and the id of its training node."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(1)
    small = {"steps": 1, "batch": 1, "at_once": 1, "seed": seed}
    train = graph.train(model, clip, vae, images, masks, **small | widgets)
    graph.add("PreviewImage", images=[train, 2])
    return graph, train


def comparison(seed: int, steps: int = 1) -> tuple[Graph, str]:
    """Return a graph that compares two biases, and the id of its node."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    model, clip = graph.apply(model, clip, graph.load(MONSTER))
    empty = [graph.add("EmptyLatentImage", width=64, height=64, batch_size=1), 0]
    sweep = graph.add(
        "PerfusionSweep", model=model, vae=vae, positive=graph.text(clip, "a <demo-monster>"), negative=graph.text(clip, ""),
        latent_image=empty, biases="0.3 0.6", across="temperature", values="0.15", trigger="", seed=seed, seeds=1, steps=steps,
        cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
    )  # fmt: skip
    graph.add("PreviewImage", images=[sweep, 0])
    return graph, sweep


def mistake(seed: int) -> Graph:
    """Return a graph with a node that fails: in turn on applying, on training and on saving."""
    if seed % 3 == 0:
        graph, _ = picture(seed)
        model, clip, _ = graph.checkpoint()
        model, clip = graph.apply(*graph.apply(model, clip, graph.load(MONSTER)), graph.load(MONSTER))
        graph.add("PreviewAny", source=graph.text(clip, "a"))
    elif seed % 3 == 1:
        graph, train = lesson(seed)
        graph.nodes[train]["inputs"]["masks"] = [graph.add("SolidMask", value=0.0, width=64, height=64), 0]
    else:
        graph = Graph()
        graph.save(graph.combine(graph.load(MONSTER), graph.load(ROBOT)), "never")
    return graph


# ---- interruptions -------------------------------------------------------------------------------------------------------------


def interruptions(seed: int) -> dict[str, tuple[dict, Moment]]:
    """Return by stage the graph to interrupt and the event on which it is interrupted."""
    measured, _ = lesson(seed, steps=STEPS)
    previewed, _ = lesson(seed, steps=STEPS, preview_every=2)
    taught, train = lesson(seed, steps=STEPS)
    shown, showing = lesson(seed, steps=STEPS, preview_every=2)
    sampled, latent = picture(seed, MONSTER, steps=STEPS)
    sampled.add("SaveLatent", samples=latent, filename_prefix="latents/never")
    compared, sweep = comparison(seed, STEPS)
    first, _ = lesson(seed, steps=STEPS)
    return {
        "immediately": (first.nodes, lambda told: told["type"] in ("execution_start", "executing", "progress_state")),
        "while the text encoder is measured": (
            measured.nodes,
            lambda told: told["type"] == "progress" and told["data"]["max"] > 999,
        ),
        "while the first preview is sampled": (previewed.nodes, lambda told: told["type"] == "preview"),
        "during training": (taught.nodes, progress(train, STEPS, 3)),
        "while the concept so far is sampled": (shown.nodes, progress(showing, STEPS, 1)),
        "during sampling": (sampled.nodes, progress(latent[0], STEPS, 3)),
        "during a comparison": (compared.nodes, progress(sweep, 2 * STEPS, STEPS + 3)),
    }


def stop(server: Server, prompt: str) -> bool:
    """Interrupt a graph repeatedly until it ends; return whether it ended by the interruption."""
    end = time.monotonic() + 120
    while prompt not in server.get(f"/history/{prompt}") and time.monotonic() < end:
        server.interrupt(prompt)
        time.sleep(0.1)
    try:
        server.wait(prompt, 1)
    except GraphError as error:
        return error.interrupted
    return False


# ---- the run -------------------------------------------------------------------------------------------------------------------


@dataclass
class Soak:
    """Runs jobs on a server and records how they went."""

    server: Server
    first: dict[tuple, torch.Tensor] = field(default_factory=dict)
    done: Counter = field(default_factory=Counter)
    stopped: Counter = field(default_factory=Counter)
    right: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    after: str = ""
    """Stage at which the last graph was interrupted, until an image is generated after it."""

    def draws(self, seed: int, *concepts: str) -> bool:
        """Sample a latent and return whether it is bit-identical to the first one with this seed and these concepts."""
        graph, latent = picture(seed, *concepts)
        (found,) = latents(self.server, graph, latent)
        wanted = self.first.setdefault((seed, *concepts), found)
        return torch.equal(found, wanted)

    def look(self, number: int) -> dict[str, int]:
        """Return the counts of what the process holds while only the base is in use."""
        graph, latent = picture(SEEDS[0])
        spy = graph.add("MeasuringSpy", samples=latent, asked=number)
        return json.loads(self.server.run(graph.nodes)["outputs"][spy]["text"][0])

    def drawing(self, number: int, *concepts: str) -> None:
        """Sample with these concepts and record whether the result is right."""
        same = self.draws(SEEDS[number % len(SEEDS)], *concepts)
        if not same:
            self.wrong.append(f"job {number}, a picture with {concepts}, after {self.after or 'another job'}")
        if self.after:
            self.right[self.after] += same
        self.after = ""

    def apply(self, number: int) -> None:
        """Sample with one concept."""
        self.drawing(number, MONSTER)

    def combine(self, number: int) -> None:
        """Sample with two concepts."""
        self.drawing(number, MONSTER, ROBOT)

    def train(self, number: int) -> None:
        """Run a training."""
        self.server.run(lesson(number)[0].nodes)

    def sweep(self, number: int) -> None:
        """Run a comparison."""
        self.server.run(comparison(number)[0].nodes)

    def error(self, number: int) -> None:
        """Run a graph that must fail."""
        try:
            self.server.run(mistake(number).nodes)
        except GraphError as error:
            if not error.interrupted:
                return
        self.wrong.append(f"job {number} should have failed")

    def interrupt(self, number: int) -> None:
        """Interrupt a graph at the next stage; if the covariance was deleted for this, restore it."""
        every = interruptions(number)
        self.after = list(every)[self.done["interrupt"] % len(every)]
        graph, moment = every[self.after]
        kept = {}
        if "measured" in self.after:
            kept = {path: path.read_bytes() for path in (self.server.base / "models/perfusion/.work").glob("covariance-*")}
            for path in kept:
                path.unlink()
        self.stopped[self.after] += stop(self.server, queued_until(self.server, graph, moment))
        for path, content in kept.items():
            path.write_bytes(content)


def run(server: Server, jobs: int, minutes: float) -> tuple[Soak, list[dict[str, int]], float]:
    """Run all jobs, or as many as fit into the time.

    Returns:
        The record of the jobs, the counts of what the process held after every SETTLED jobs, and the duration in seconds.
    """
    soak, looks = Soak(server), []
    kinds: list[Callable[[int], None]] = [
        soak.train, soak.interrupt, soak.apply, soak.error, soak.combine, soak.sweep, soak.error, soak.apply,
    ]  # fmt: skip
    for seed, concepts in itertools.product(SEEDS, ((), (MONSTER,), (MONSTER, ROBOT))):
        soak.draws(seed, *concepts)
    start = time.monotonic()
    for number in range(jobs):
        kind = kinds[number % len(kinds)]
        kind(number)
        soak.done[kind.__name__] += 1
        over = time.monotonic() - start > 60 * minutes
        if (number + 1) % SETTLED == 0 or number + 1 == jobs or over:
            looks.append(soak.look(number))
            print(f"{number + 1} jobs, {time.monotonic() - start:.0f} s, {looks[-1]}", flush=True)
        if over:
            break
    for seed in SEEDS:
        if not soak.draws(seed):
            soak.wrong.append(f"the base at the end, seed {seed}")
    return soak, looks, time.monotonic() - start


def good(soak: Soak, looks: list[dict[str, int]]) -> bool:
    """Whether all jobs went as expected, every interruption was followed by a right image, and nothing grew."""
    before, after = looks[0], looks[-1]
    grown = [name for name in before if name != "resident" and after[name] > before[name] * (GROWTH if name == "in use" else 1)]
    return not soak.wrong and not grown and soak.stopped == soak.right and before["ModelPatcher"] > 0


def page(soak: Soak, looks: list[dict[str, int]], jobs: int, seconds: float) -> str:
    """Return the page with the results."""
    before, after, kept = looks[0], looks[-1], [look["resident"] >> 20 for look in looks]
    share = 100 * (after["in use"] / before["in use"] - 1)
    counted = [f"| {name} | {before[name]} | {after[name]} |" for name in before if name not in ("resident", "in use")]
    interrupted = [f"| {name} | {soak.stopped[name]} | {soak.right[name]} |" for name in interruptions(0)]
    return "\n".join(
        [
            "# Soak",
            "",
            f"Written by `python -m benchmarks.robustness.soak --jobs {jobs}`: one server, {jobs} jobs in "
            f"{seconds / 60:.0f} minutes: " + ", ".join(f"{count} × {name}" for name, count in soak.done.items()) + ".",
            "",
            f"Jobs that did not go as expected: {len(soak.wrong)} of {jobs}. Throughout the run, images from the base model, from "
            "one concept and from two are generated again and compared bit by bit with those from before the first job. Rows with "
            "class names count live objects.",
            "",
            f"| | after {SETTLED} jobs | after {jobs} |",
            "| --- | --- | --- |",
            f"| memory after freeing what is unused | {before['in use'] >> 20} MB | {after['in use'] >> 20} MB ({share:+.1f} %) |",
            f"| memory before that ({min(kept)} to {max(kept)} MB over all checks) | {kept[0]} MB | {kept[-1]} MB |",
            *counted,
            "",
            "| interrupted | stopped | next image correct |",
            "| --- | --- | --- |",
            *interrupted,
            "",
            *soak.wrong,
        ]
    )


def main() -> int:
    """Run the jobs and write the page; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=JOBS)
    parser.add_argument("--minutes", type=float, default=30, help="after which no further job begins")
    arguments = parser.parse_args()
    steps.stop_when_terminated()
    setup = bootstrap.locate()
    base = base_with_spy(setup, "soak-base")
    with Server(setup, base=base, threads=1, arguments=["--cache-classic"]) as server:
        soak, looks, seconds = run(server, arguments.jobs, arguments.minutes)
    told = page(soak, looks, soak.done.total(), seconds)
    print(told)
    (RESULTS / "soak.md").write_text(told, encoding="utf-8")
    return 0 if good(soak, looks) else 1


if __name__ == "__main__":
    sys.exit(main())
