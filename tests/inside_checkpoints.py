"""The files of a training while processes end it, in the real host: run by test_finished.py in the host's own interpreter.

`python -m tests.inside_checkpoints COMFYUI` prints one JSON object of what was found.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from perfusion_fleet import inside

inside.enter_with_pack(Path(sys.argv[1]))

import torch  # noqa: E402

checkpoints, finished = inside.part("nodes.training.checkpoints"), inside.part("nodes.training.finished")
State = inside.part("perfusion_core.training.state").TrainingState
Settings = inside.part("perfusion_core.training.settings").Settings
ONE, OTHER = "0" * 32, "1" * 32


def state_after(steps: int) -> object:
    """The state of a training of one layer."""
    state = State({"clip_l": torch.ones(1, 4)}, {"layer": torch.ones(3)}, {}, torch.ones(4), torch.ones(4), [0.5] * steps)
    state.optimizer.steps = steps
    return state


def judged(followed: float) -> object:
    """A concept of it with a judgement."""
    concept = state_after(9).concept(torch.eye(4, dtype=torch.float64), "<it>", "thing", "sd1", Settings())
    return replace(concept, training={**concept.training, "held_out_loss": 0.1, "followed": followed})


def at_the_end(digest: str) -> object:
    """The files of a training in a process that is about to end it."""
    files = checkpoints.Checkpoints(digest)
    files.resume(state_after(0))
    files.keep(state_after(9))
    files.keep_best(judged(0.9))
    return files


def as_another_process() -> None:
    """Forget what this process ended."""
    checkpoints._ended_here.clear()


def main(work: Path) -> dict:
    """Everything that is measured."""
    checkpoints.work_folder = lambda: work
    found: dict[str, object] = {}

    def listed() -> list[str]:
        names = {path.relative_to(work).as_posix().replace(path.parent.name, "set") for path in work.rglob("*.safetensors")}
        return sorted(name.replace(ONE, "one").replace(OTHER, "other") for name in names)

    def resumed() -> list:
        files = checkpoints.Checkpoints(ONE)
        step = files.resume(state_after(0)).step
        return [step, bool(files.best)]

    first, second = at_the_end(ONE), at_the_end(ONE)
    first.finish(state_after(9))
    found["best while another ends"] = second.best.training["followed"]
    second.finish(state_after(9))
    found["kept"] = listed()
    found["asked for again"] = resumed()
    as_another_process()
    found["after a crash"] = resumed()

    at_the_end(OTHER).finish(state_after(9))
    found["kept of another"] = listed()
    as_another_process()
    found["once another ended"] = resumed()

    def full(*_: object) -> None:
        raise OSError("there is no room")

    files, finished.keep = at_the_end(ONE), full
    files.finish(state_after(9))
    found["with a full disk"] = listed()
    numbers = judged(math.nan), replace(judged(0.9), training={"likeness": math.nan, "prompted": 0.9})
    found["judged as NaN"] = [not each.beats(each) and str(each) for each in map(checkpoints.judgement_of, numbers)]
    schedule = inside.part("nodes.training.schedule").Schedule(100, 20, 25, judged=True)
    found["due on resuming"] = [[event.name for event in schedule.due_on_resuming(step)] for step in (0, 30, 50)]
    return found


with tempfile.TemporaryDirectory() as folder:
    measured = main(Path(folder))
print(json.dumps(measured))
