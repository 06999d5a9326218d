"""Sixteen processes finish trainings at the same moment, many times: first the same training, then each its own.

Each does what *Train Concept* does with a training's files at its end. Every one must succeed, and exactly one
complete set of files must be kept.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from perfusion_fleet.inside import enter_pack, part

PROCESSES, ROUNDS = 16, 200
PATIENCE = 300
"""Seconds after which a process that waits for the others gives up."""
SIZE = 200_000
"""Bytes of a checkpoint."""


def files_of(digest: str) -> dict[str, bytes]:
    """Return the files of a training, in the order in which they are removed: name -> content."""
    content = digest.encode() * (SIZE // len(digest))
    return {f"training-{digest}.safetensors": content, f"best-{digest}.safetensors": content[: SIZE // 10]}


def end(work: Path, digest: str) -> None:
    """Write the last checkpoint of a training, then finish it."""
    finished, files = part("nodes.training.finished"), files_of(digest)

    def write(folder: Path) -> None:
        for name, content in reversed(files.items()):
            scratch = folder / f".{name}-{os.getpid()}.part"
            scratch.write_bytes(content)
            scratch.replace(folder / name)

    write(work)
    finished.keep(work, tuple(files), write)


def run_process(number: int, works: list[Path], same: bool, barrier: Barrier, faults: Any) -> None:
    """Finish one training in each folder, in step with the other processes; put the text of errors into `faults`."""
    enter_pack()
    for work in works:
        barrier.wait(PATIENCE)
        try:
            end(work, "same" if same else f"own{number:02}")
        except Exception:  # the node would have failed with any of them
            faults.put(traceback.format_exc())
        barrier.wait(PATIENCE)


def wrong_in(work: Path) -> str:
    """Return what is wrong in a folder after all processes have finished; empty if it contains one complete set of files."""
    left = sorted(path.name for path in work.iterdir() if path.is_file())
    kept = list((work / "finished").iterdir())
    if left or len(kept) != 1 or not kept[0].is_dir():
        return f"beside the set that is kept there is {left}, and {len(kept)} sets are kept"
    found = {path.name: path.read_bytes() for path in kept[0].iterdir()}
    digests = {name.partition("-")[2].removesuffix(".safetensors") for name in found}
    return "" if len(digests) == 1 and found == files_of(digests.pop()) else f"the set is not whole: {sorted(found)}"


def run(rounds: int, same: bool, folder: Path) -> list[str]:
    """Run the rounds, each in a subfolder, and return all that went wrong."""
    works = [folder / f"{i:04}" / ".work" for i in range(rounds)]
    for work in works:
        work.mkdir(parents=True)
        enter_pack()
        end(work, "before")
    context = multiprocessing.get_context("spawn")
    barrier, faults = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=run_process, args=(i, works, same, barrier, faults)) for i in range(PROCESSES)]
    for process in processes:
        process.start()
    told = []
    while any(process.is_alive() for process in processes) or not faults.empty():
        while not faults.empty():
            told.append(faults.get())
        time.sleep(0.05)
    told += [f"a process ended with {process.exitcode}" for process in processes if process.exitcode]
    return told + [wrong for work in works if (wrong := wrong_in(work))]


def main() -> int:
    """Run both kinds and print the result; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    failed = False
    for same in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            wrong = run(rounds, same, Path(folder))
        what = "the same training" if same else "a training each"
        print(f"{PROCESSES} processes ended {what}, {rounds} times: {len(wrong)} of {PROCESSES * rounds} ends went wrong.")
        print(*wrong[:5], sep="\n", end="\n" if wrong else "")
        failed |= bool(wrong)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
