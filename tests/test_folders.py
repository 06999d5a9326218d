"""Folders that a user has given to ComfyUI for concepts: the pack reads all of them, and writes into the first alone."""

from __future__ import annotations

from pathlib import Path

from perfusion_core.captions import captions
from perfusion_core.concept import Concept
from scripts.harness.graphs import Graph
from scripts.harness.server import Server
from scripts.setup import bootstrap

MONSTER, THEIRS = "demo-monster.safetensors", "theirs.safetensors"


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_extra_model_paths_are_read_and_written(setup: bootstrap.Setup, tmp_path: Path) -> None:
    base = bootstrap.fresh_base(setup, "folders-base")
    own, given = base / "models" / "perfusion", tmp_path / "shared" / "concepts"
    given.mkdir(parents=True)
    (own / "demo-robot.safetensors").rename(given / THEIRS)
    config = tmp_path / "paths.yaml"
    config.write_text(f"mine:\n  base_path: {tmp_path / 'shared'}\n  perfusion: concepts\n", encoding="utf-8")
    before = files_in(own)
    graph = Graph()
    for i, name in enumerate((MONSTER, THEIRS)):
        graph.add(
            "PerfusionSaveConcept", concept=graph.load(name), filename_prefix=f"saved-{i}", overwrite=True, precision="float32"
        )
    measured = graph.add("PerfusionCovariance", clip=graph.checkpoint()[1], captions="\n".join(captions(200)), positions="unpadded")
    graph.add("PreviewAny", source=[measured, 1])
    with Server(setup, base=base, arguments=["--extra-model-paths-config", str(config)]) as server:
        server.run(graph.nodes)
    assert files_in(own) == before
    assert {name.split("-")[0] for name in files_in(given) - {THEIRS}} == {"saved", ".work/covariance"}
    assert [Concept.load(given / f"saved-{i}.safetensors").superclass for i in range(2)] == ["monster", "robot"]
