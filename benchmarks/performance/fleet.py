"""Measure many concepts on Ray: whether a fleet that loses a worker gives the same result as training alone, and scheduling costs.

    python -m benchmarks.performance.fleet [--steps 300] [--concepts 10000] [--part same|cost]

`same` trains every second test concept on two workers, one of which is killed in the middle of a training run, then each alone on a
server, and compares the files. `cost` schedules many concepts whose training is a short wait, and saves a real file for each. Each
part writes its section of `results/fleet.md`; with `--part`, the other one is left unchanged.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.fidelity import concepts
from benchmarks.fidelity.methods import PERFUSION, WIDGETS, Recipe, teach
from benchmarks.fidelity.trials import Store
from benchmarks.lab import RESULTS
from demo.world import SIDE
from perfusion_fleet import command, index, schedule
from perfusion_fleet.table import Job
from perfusion_fleet.worker import Answer
from scripts.harness.graphs import Graph
from scripts.harness.moments import forget_finished
from scripts.harness.server import Server
from scripts.setup import bootstrap

BASE, WORKERS, SEED = "fleet-base", 2, 0
TAUGHT = {"-".join(concept): concept for concept in concepts.TEST[::2]}
"""Maps names to concepts."""
ALIKE = {**os.environ, "OMP_NUM_THREADS": "1"}
"""The fleet's environment: on CPUs, rounding depends on the number of threads, and the server uses one."""
GOES_ON = 25
"""The first step from which a lost training run can resume."""
WAIT, FEW = 0.01, 100
"""Duration of a simulated training run in seconds, and the small number of concepts with which a large one is compared."""
CONTENT = bootstrap.ROOT / "demo" / "concepts" / "demo-monster.safetensors"


# ---- equality with training alone ------------------------------------------------------------------------------------------------


def same(steps: int) -> dict[str, object]:
    """Train the concepts both ways and return the results."""
    concepts.check_packages()
    setup = bootstrap.locate()
    base = bootstrap.fresh_base(setup, BASE)
    middle = lay_out(base / "input", steps)
    start = time.monotonic()
    lost = run_fleet(setup, base)
    fleet = time.monotonic()
    teach_alone(setup, base, steps)
    alone = time.monotonic()
    folders = base / "models" / "perfusion", base / "out"
    pairs = [[load_file(folder / f"{name}.safetensors") for folder in folders] for name in TAUGHT]
    equal = sum(one.keys() == two.keys() and all(one[key].equal(two[key]) for key in one) for one, two in pairs)
    shutil.copyfile(base / "out" / "sheet-1.png", RESULTS / "fleet.png")
    return {
        "steps": steps, "middle": middle, "concepts": len(TAUGHT), "lost": lost, "equal": equal,
        "tries": max(each["tries"] for each in json.loads((base / "out" / "index.json").read_text(encoding="utf-8"))),
        "fleet": fleet - start, "alone": alone - fleet,
    }  # fmt: skip


def lay_out(folder: Path, steps: int) -> int:
    """Write the input folders of the concepts; return the step at which each is saved midway, which shows its progress."""
    for file in folder.glob("*.png"):
        file.unlink()  # the demo's own pictures
    for name, concept in TAUGHT.items():
        concepts.pictures(concept, folder / name, side=SIDE)
        (folder / name / "concept.json").write_text(json.dumps({"superclass": concept[1]}), encoding="utf-8")
    middle = max(steps // 2, min(steps - 1, GOES_ON + 1))
    told = {**WIDGETS[PERFUSION], "steps": steps, "size": SIDE, "seed": SEED, "save_every": middle}
    (folder / "concept.json").write_text(json.dumps(told), encoding="utf-8")
    return middle


def teach_alone(setup: bootstrap.Setup, base: Path, steps: int) -> None:
    """Train each concept in a graph on a server; SystemExit if it resumes from the fleet's last training run."""
    forget_finished(base)
    with Server(setup, base=base, threads=1) as server:
        for name, (_, kind) in TAUGHT.items():
            graph = Graph()
            shown = [f"{name}/{kind}-{i}.png" for i in range(4)]
            teach(graph, graph.checkpoint(), Recipe(widgets={"steps": steps}), kind, shown, SIDE, SEED, name)
            server.run(graph.nodes, timeout=36000)
        if "Training continues from" in server.log():
            raise SystemExit("a concept was not trained from its first step")


def run_fleet(setup: bootstrap.Setup, base: Path) -> int:
    """Run the command, kill its first worker in the middle of the first training run, and return the number of lost runs."""
    options = ["--comfyui", setup.comfyui, "--models", base, "--out", base / "out", "--checkpoint", bootstrap.CHECKPOINT]
    options += ["--workers", WORKERS, "--precision", "float32", *([] if has_cards() else ["--cpu"])]
    arguments = [str(part) for part in (setup.python, "-m", "perfusion_fleet", base / "input", *options)]
    lost, ready = 0, 0
    with subprocess.Popen(arguments, cwd=bootstrap.ROOT, stdout=subprocess.PIPE, text=True, env=ALIKE) as running:
        for line in running.stdout or ():
            print(line, end="", flush=True)
            lost += line.startswith("A worker was lost")
            if line.startswith("A worker is ready: process"):
                ready += 1
                if ready == 1:
                    kill_in_training(int(line.split()[5]), base / "models" / "perfusion" / "steps", running)
    if running.returncode:
        raise SystemExit(f"the fleet ended with exit code {running.returncode}")
    return lost


def kill_in_training(process: int, steps: Path, running: subprocess.Popen) -> None:
    """Kill a worker once its first concept, which is the first by name, has been saved midway."""
    first = min(TAUGHT)
    while not list(steps.glob(f"{first}-*/*.safetensors")):
        if running.poll() is not None:
            raise SystemExit("the fleet ended before a worker could be killed")
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    print(f"killed process {process}", flush=True)


def has_cards() -> bool:
    """Whether Ray would find a GPU for each worker."""
    import torch

    return torch.cuda.device_count() >= WORKERS


# ---- scheduling cost -------------------------------------------------------------------------------------------------------------


class Waiting:
    """A worker that waits instead of training, and returns a real concept's file."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def ready(self) -> str:
        """Return the worker's name."""
        return f"process {os.getpid()}"

    def teach(self, job: Job) -> Answer:
        """Wait, then return the file."""
        time.sleep(WAIT)
        return Answer(self.content)


def cost(count: int) -> dict[str, object]:
    """Schedule, save and index `count` concepts as the command does, and return the measurements."""
    schedule.connect(schedule.LOCAL, WORKERS, cpu=True)
    try:
        actor = schedule.ray.remote(max_restarts=-1)(Waiting)
        workers = [actor.remote(CONTENT.read_bytes()) for _ in range(WORKERS)]
        pass_through(workers, FEW)
        few = peak()
        seconds, indexing = pass_through(workers, count)
    finally:
        schedule.ray.shutdown()
    return {
        "count": count, "seconds": seconds, "overhead": seconds / count - WAIT / WORKERS, "indexing": indexing, "few": few,
        "peak": peak(),
    }  # fmt: skip


def pass_through(workers: list, count: int) -> tuple[float, float]:
    """Return the seconds that it takes to process and save `count` concepts, and to write their index."""
    pictures = tuple(f"/pictures/of/this/concept/picture-{i}.png" for i in range(4))
    jobs = [
        Job(f"concept-{i:05}", pictures, ("",) * 4, "monster", f"<concept-{i:05}>", "", "", {"seed": i, "steps": 300})
        for i in range(count)
    ]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.monotonic()
        entries = command.taught(workers, jobs, Path(folder))
        middle = time.monotonic()
        index.write(Path(folder), entries)
        end = time.monotonic()
        states = {each.state for each in entries}
    if states != {index.TRAINED}:
        raise SystemExit(f"expected all to be trained, but they were {states}")
    return middle - start, end - middle


def peak() -> float:
    """Return this process's peak memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# ---- the page --------------------------------------------------------------------------------------------------------------------


def page(kept: dict[str, dict]) -> list[str]:
    """Return the lines of results/fleet.md."""
    lines = ["# Many concepts on Ray", "", "Written by `python -m benchmarks.performance.fleet`.", ""]
    return lines + (page_same(kept["same"]) if "same" in kept else []) + (page_cost(kept["cost"]) if "cost" in kept else [])


def page_same(found: dict) -> list[str]:
    """Return the section on `same`."""
    return [
        "## Identical to training one at a time",
        "",
        f"{found['concepts']} test concepts of the world of characters, {found['steps']} steps each, on {WORKERS} workers of one "
        f"machine. One of the workers is killed after step {found['middle']} of its first training run. Then each concept is "
        "trained alone, in a graph on a server.",
        "",
        "| concepts | training runs lost with their worker | most workers for one concept | bit-identical to training alone |",
        "|---|---|---|---|",
        f"| {found['concepts']} | {found['lost']} | {found['tries']} | {found['equal']} |",
        "",
        f"The fleet took {found['fleet']:.0f} s including its start; trained alone, the concepts took {found['alone']:.0f} s. The "
        "fleet's contact sheet:",
        "",
        "![The concepts' previews with their names and losses](fleet.png)",
        "",
    ]


def page_cost(found: dict) -> list[str]:
    """Return the section on `cost`."""
    return [
        "## What scheduling costs",
        "",
        f"{found['count']} concepts on {WORKERS} workers; in place of training, each waits {WAIT * 1000:.0f} ms. Each concept is "
        f"a real file of {CONTENT.stat().st_size / 1024:.0f} KB, which is saved and read again for the index, as in any fleet.",
        "",
        "| concepts | seconds | per concept, beyond the wait | index and sheets | driver's memory | "
        f"increase over {FEW} concepts |",
        "|---|---|---|---|---|---|",
        f"| {found['count']} | {found['seconds']:.0f} | {found['overhead'] * 1000:.1f} ms | {found['indexing']:.0f} s | "
        f"{found['peak']:.0f} MB | {found['peak'] - found['few']:.0f} MB |",
        "",
    ]


def main() -> None:
    """Run the requested parts and write the page after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="steps of each training run of `same`")
    parser.add_argument("--concepts", type=int, default=10000, help="number of concepts that `cost` schedules")
    parser.add_argument("--part", choices=["same", "cost"], help="by default both")
    options = parser.parse_args()
    store = Store(RESULTS / "fleet.json")
    parts: dict[str, Callable[[], dict]] = {
        "same": lambda: same(options.steps),
        "cost": lambda: cost(options.concepts),
    }
    for name, measured in parts.items():
        if options.part in (None, name):
            store.keep({name: measured()})
            (RESULTS / "fleet.md").write_text("\n".join(page(store.kept)), encoding="utf-8")


if __name__ == "__main__":
    main()
