"""The training that ended last: what is kept of it, what another process may do meanwhile, and what a killed one leaves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from perfusion_fleet import inside
from scripts.setup.bootstrap import Setup
from tests.measuring import measure

NAMES = ("training-x", "best-x")


@pytest.fixture(scope="module")
def finished() -> ModuleType:
    inside.enter_pack()
    return inside.part("nodes.training.finished")


def writing(*names: str) -> Callable[[Path], None]:
    """Writes these files, with their own names in them."""
    return lambda folder: [(folder / name).write_text(name) for name in names] and None


def held(work: Path) -> list[str]:
    """The files in the folder and below, with their sets' names left out."""
    return sorted(f"{path.parent.parent.name}/{path.name}" for path in work.rglob("*") if path.is_file())


def test_a_training_that_ends_is_kept_in_place_of_the_one_before(finished: ModuleType, tmp_path: Path) -> None:
    work = tmp_path / ".work"
    for names in (("training-y", "best-y"), NAMES):
        work.mkdir(exist_ok=True)
        for name in names:
            (work / name).write_text("as it was")
        finished.keep(work, names, writing(*names))
        (only,) = finished.kept(work)
        assert sorted(path.name for path in only.iterdir()) == sorted(names) and list(work.iterdir()) == [work / "finished"]
        assert all((only / name).read_text() == name for name in names)


def test_what_another_process_removed_or_keeps_is_no_hindrance(finished: ModuleType, tmp_path: Path) -> None:
    def while_another_ends(folder: Path) -> None:
        finished.keep(tmp_path, NAMES, writing(*NAMES))
        writing(*NAMES)(folder)

    finished.keep(tmp_path, NAMES, while_another_ends)
    # The one that began to end last is kept.
    assert len(finished.kept(tmp_path)) == 1 and held(tmp_path) == ["finished/best-x", "finished/training-x"]
    finished.remove(finished.kept(tmp_path)[0])
    finished.remove(tmp_path / "finished" / "gone")
    assert finished.kept(tmp_path) == [] and finished.kept(tmp_path / "nowhere") == []


def test_what_cannot_be_written_leaves_all_as_it_was(finished: ModuleType, tmp_path: Path) -> None:
    finished.keep(tmp_path, (), writing("training-y"))
    (tmp_path / "training-x").write_text("as it was")

    def full(folder: Path) -> None:
        (folder / "training-x").write_text("hal")
        raise OSError("there is no room")

    with pytest.raises(OSError, match="no room"):
        finished.keep(tmp_path, NAMES, full)
    assert held(tmp_path) == sorted([f"{tmp_path.parent.name}/training-x", "finished/training-y"])
    assert (tmp_path / "training-x").read_text() == "as it was"


def test_what_a_killed_process_left_is_removed_once_it_is_old(finished: ModuleType, tmp_path: Path) -> None:
    now, token = time.time_ns(), "0" * 16
    for at in (now - finished.DAY - 10**9, now):
        (tmp_path / "finished" / f".{at:020}-{token}").mkdir(parents=True)
    (tmp_path / "finished" / "mine").mkdir()
    finished.keep(tmp_path, NAMES, writing(*NAMES))
    left = {path.name for path in (tmp_path / "finished").iterdir()} - {path.name for path in finished.kept(tmp_path)}
    assert left == {f".{now:020}-{token}", "mine"}
    shutil.rmtree(tmp_path / "finished")
    finished.keep(tmp_path, NAMES, writing(*NAMES))


@pytest.fixture(scope="module")
def measured(setup: Setup) -> dict:
    return measure(setup.python, "inside_checkpoints", setup.comfyui)


def test_two_processes_end_the_same_training_with_its_best_concept(measured: dict) -> None:
    assert measured["best while another ends"] == 0.9
    assert measured["kept"] == ["finished/set/best-one.safetensors", "finished/set/training-one.safetensors"]


def test_an_ended_training_resumes_at_its_end_in_another_process_alone(measured: dict) -> None:
    assert measured["asked for again"] == [0, False] and measured["after a crash"] == [9, True]
    assert measured["kept of another"] == ["finished/set/best-other.safetensors", "finished/set/training-other.safetensors"]
    assert measured["once another ended"] == [0, False]


def test_a_training_counts_as_done_though_its_files_cannot_be_put_away(measured: dict) -> None:
    assert {"best-one.safetensors", "training-one.safetensors"} <= {name.split("/")[-1] for name in measured["with a full disk"]}
    assert len(measured["with a full disk"]) == 4


def test_a_judgement_that_is_not_a_number_counts_as_the_worst(measured: dict) -> None:
    assert measured["judged as NaN"] == ["Judgement(loss=0.1, followed=-inf)", "PictureJudgement(likeness=-inf, prompted=0.9)"]


def test_a_resumed_training_is_judged_and_saved_as_it_would_have_been(measured: dict) -> None:
    assert measured["due on resuming"] == [[], ["PREVIEW"], ["PREVIEW", "JUDGEMENT", "SAVING"]]
