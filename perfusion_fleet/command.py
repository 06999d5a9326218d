"""The command line: `perfusion-train CONCEPTS --checkpoint NAME`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from perfusion_core import PerfusionError
from perfusion_core.printable import printable
from perfusion_core.safe_files import write_bytes
from perfusion_fleet import index, table
from perfusion_fleet.inside import ROOT
from perfusion_fleet.table import Job
from perfusion_fleet.worker import Place

DONE, SOME_FAILED, REFUSED, STOPPED = 0, 1, 2, 130
"""Exit codes."""
PRECISIONS = ("half", "float32", "8 bit", "4 bit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        return run(parser().parse_args(arguments))
    except PerfusionError as error:
        say(*f"Failed: {error}".splitlines())
        return REFUSED
    except KeyboardInterrupt:
        say(
            "Interrupted. Run the same command again: saved concepts are kept, and unfinished training runs resume from their last "
            "checkpoint; one is made every 25 steps."
        )
        return STOPPED


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="perfusion-train", description="Trains many concepts in parallel with Ray; see docs/fleet.md."
    )
    for name, told in {
        "concepts": {"type": Path, "help": "a folder with one folder of pictures per concept, or a .csv or .json table"},
        "--checkpoint": {"required": True, "help": "the model to train on, as listed by Load Checkpoint"},
        "--comfyui": {
            "type": Path,
            "help": "ComfyUI's folder; by default COMFYUI_PATH, or else the one whose custom_nodes contains this pack",
        },
        "--models": {
            "type": Path,
            "help": "the folder that contains models/ (ComfyUI's --base-directory); by default ComfyUI's folder",
        },
        "--out": {
            "type": Path,
            "help": "where to write concepts and index; by default models/perfusion/NAME, where NAME is the name of CONCEPTS",
        },
        "--workers": {
            "type": int,
            "help": "number of parallel workers; by default one per graphics card, or one per machine with --cpu",
        },
        "--cpu": {"action": "store_true", "help": "train on CPUs"},
        "--address": {"default": "local", "help": "address of a Ray cluster, such as auto or HOST:6379; by default this machine"},
        "--precision": {"choices": PRECISIONS, "default": "half", "help": "precision of the files, as in Save Concept"},
    }.items():
        made.add_argument(name, **told)
    return made


def run(options: argparse.Namespace) -> int:
    """Check all jobs, train those that are not saved yet, write the index, and return the exit code.

    Raises:
        PerfusionError: Ray is missing or cannot be reached, or the options, jobs or files are invalid.
    """
    if importlib.util.find_spec("ray") is None:
        raise PerfusionError(f"perfusion-train needs Ray; install it with: {sys.executable} -m pip install -e '{ROOT}[fleet]'")
    if options.workers is not None and options.workers < 1:
        raise PerfusionError(
            f"perfusion-train needs at least 1 worker, but --workers is {options.workers}; raise it or leave it out."
        )
    from perfusion_fleet import schedule

    comfyui = host_folder(options.comfyui)
    base = (options.models or comfyui).resolve()
    out = (options.out or output_folder(options.concepts, base)).resolve()
    jobs, faults = table.read(options.concepts)
    schedule.connect(options.address, options.workers, options.cpu)
    try:
        workers = schedule.started(
            Place(str(comfyui), str(base), options.checkpoint, options.cpu, options.precision), options.workers
        )
        say(f"Checking {options.concepts} and starting {len(workers)} worker{'s' if len(workers) > 1 else ''}.")
        faults += schedule.checked(workers[0], jobs)
        if faults:
            raise PerfusionError(f"The concepts in {options.concepts} cannot be trained:", *faults)
        entries = taught(workers, jobs, out)
    finally:
        schedule.ray.shutdown()
    index.write(out, entries)
    failed = sum(each.state == index.FAILED for each in entries)
    say(f"{len(entries) - failed} of {len(entries)} concepts are in {out}; see index.md there for the full list.")
    return SOME_FAILED if failed else DONE


def output_folder(concepts: Path, base: Path) -> Path:
    """Return the folder for the concepts of a folder or table unless another one is named; `base` contains the host's `models`."""
    told = concepts.resolve()
    return base / "models" / "perfusion" / (told.name if told.is_dir() else told.stem)


def host_folder(named: Path | None) -> Path:
    """Return ComfyUI's folder: `named`, else COMFYUI_PATH, else the one that contains this pack.

    Raises:
        PerfusionError: the folder contains no main.py.
    """
    told = named or (Path(os.environ["COMFYUI_PATH"]) if os.environ.get("COMFYUI_PATH") else ROOT.parents[1])
    folder = told.expanduser().resolve()
    if not (folder / "main.py").is_file():
        raise PerfusionError(f"{folder} is not ComfyUI's folder: it contains no main.py; specify the right one with --comfyui.")
    return folder


def taught(workers: list[Any], jobs: Sequence[Job], out: Path) -> list[index.Entry]:
    """Train the jobs that are not saved in `out` yet, save them there, and return an index entry per job, in the jobs' order."""
    from perfusion_fleet import schedule

    kept = [job for job in jobs if index.file_of(out, job.name).exists()]
    entries = {job.name: index.entry(out, job, index.KEPT) for job in kept}
    left = [job for job in jobs if job.name not in entries]
    say(f"Concepts: {len(jobs)} in total, {len(kept)} already saved, {len(left)} to train.")
    told = progress(len(left))
    for outcome in schedule.outcomes(workers, left, say):
        if not outcome.answer.fault:
            write_bytes(index.file_of(out, outcome.job.name), outcome.answer.content)
        state = index.FAILED if outcome.answer.fault else index.TRAINED
        made = index.entry(out, outcome.job, state, outcome.seconds, outcome.tries, outcome.answer.fault)
        entries[made.name] = made
        told(made)
    return [entries[job.name] for job in jobs]


def progress(total: int) -> Callable[[index.Entry], None]:
    """Return a function that reports each finished concept and an estimate of the remaining time."""
    began, done = time.monotonic(), 0

    def told(made: index.Entry) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - began) / done * (total - done)
        what = f"failed: {made.fault}" if made.state == index.FAILED else f"loss {made.loss}, {made.seconds:.0f} s"
        say(f"[{done}/{total}] {made.name}: {what}" + (f" (about {timedelta(seconds=round(left))} left)" if done < total else ""))

    return told


def say(*lines: str) -> None:
    """Print lines, made printable, and flush them, so that they appear immediately in a pipe too."""
    print(*map(printable, lines), sep="\n", flush=True)
