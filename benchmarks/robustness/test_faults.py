"""Tests of faults of disks and machines: a short version of `benchmarks/robustness/faults.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfusion_core.concept import Concept
from perfusion_core.safe_files import FileTakenError, read
from scripts.harness.graphs import Graph, latents
from scripts.harness.moments import progress, queued_until
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import ROOT

RUN = """
import sys
from benchmarks.robustness import killed
wrong = 0
for name, kind in killed.kinds().items():
    found = killed.run(kind)
    print(name, found.points(), dict(found.counts), *found.wrong, sep="\\n")
    wrong += bool(found.wrong) or found.points() < 10
sys.exit(wrong)
"""
MONSTER, ROBOT = "demo-monster.safetensors", "demo-robot.safetensors"


@pytest.mark.skipif(sys.platform == "win32", reason="a process forks and kills itself as Unix has it")
def test_a_program_killed_while_it_writes_leaves_the_old_file_or_the_new_one() -> None:
    """Runs in a separate process, because it forks."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", RUN], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_what_came_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    concept, path = Concept.load(ROOT / "demo" / "concepts" / MONSTER), tmp_path / "concept.safetensors"
    concept.save(path, torch.float32, overwrite=False)
    with pytest.raises(FileTakenError):
        replace(concept, superclass="cat").save(path, overwrite=False)
    assert Concept.load(path).superclass == "monster" and [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_disk_without_second_names_takes_new_files_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", unknown)
    test_what_came_meanwhile_is_not_written_over(tmp_path)


def test_a_server_killed_while_it_teaches_goes_on_from_its_last_checkpoint(server: Server) -> None:
    """The result must be bit-identical to that of an undisturbed training."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(1)
    train = graph.train(model, clip, vae, images, masks, steps=27, batch=1, at_once=1, seed=11)
    graph.save([train, 0], "killed", overwrite=True)
    path = server.base / "models" / "perfusion" / "killed.safetensors"
    queued_until(server, graph.nodes, progress(train, 27, 26))
    server.kill()
    server.start()
    server.run(graph.nodes)
    assert "Training continues from step 25." in server.log()
    resumed, _ = read(path, 2**20)
    path.unlink()
    server.free()
    server.run(graph.nodes)
    undisturbed, _ = read(path, 2**20)
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_a_folder_of_concepts_that_is_deleted_comes_again(server: Server) -> None:
    folder, aside = server.base / "models" / "perfusion", server.base / "aside"

    def saving(name: str) -> dict:
        graph = Graph()
        graph.save(graph.load(name), "after")
        return graph.nodes

    server.object_info()  # the host has seen the folder
    folder.rename(aside)
    try:
        with pytest.raises(GraphError, match="There is no concept 'demo-monster"):
            server.run(saving(MONSTER))
        assert "(no concept saved yet)" in str(server.object_info()["PerfusionLoadConcept"])
        folder.mkdir()
        shutil.copyfile(aside / MONSTER, folder / MONSTER)
        server.run(saving(MONSTER))
        assert Concept.load(folder / "after_00001.safetensors").superclass == "monster"
    finally:
        shutil.rmtree(folder)
        aside.rename(folder)


def test_a_file_of_the_same_time_is_read_again_if_its_size_is_another(server: Server) -> None:
    folder = server.base / "models" / "perfusion"
    path = folder / "same-time.safetensors"

    def drawn() -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        model, clip = graph.apply(model, clip, graph.load(path.name))
        (latent,) = latents(server, graph, graph.sample(model, graph.text(clip, "a <it>"), graph.text(clip, ""), steps=1))
        return latent

    found = []
    for name, dtype in ((MONSTER, torch.float32), (ROBOT, torch.float16)):
        replace(Concept.load(folder / name), trigger="<it>").save(path, dtype)
        os.utime(path, ns=(10**18, 10**18))
        found.append(drawn())
    assert not torch.equal(*found)
