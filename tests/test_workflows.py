"""The workflows that ship, run through a real server as the page would send them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from perfusion_core.concept import Concept
from scripts.server import Server
from scripts.workflow import BYPASS, find_node, set_widget, to_prompt

WORKFLOWS = Path(__file__).parents[1] / "workflows"


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def taught(server: Server, object_info: dict) -> tuple[dict, Path]:
    """The training workflow, shortened, and the concept that it saved."""
    workflow = read("train_a_concept")
    set_widget(workflow, "PerfusionTrain", "steps", 3, object_info)
    set_widget(workflow, "PerfusionTrain", "batch", 2, object_info)
    history = server.run(to_prompt(workflow, object_info))
    return history, server.base / "models" / "perfusion" / "teddy_00001.safetensors"


def test_the_training_workflow_teaches_and_shows(server: Server, taught: tuple[dict, Path]) -> None:
    history, path = taught
    assert Concept.load(path).trigger == "<my-teddy>"
    assert len(server.outputs(history, kind="temp")) == 2


def test_the_using_workflow_draws_the_concept_and_bypassed_the_base(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    drawn = {}
    for name, prompt, mode in (("concept", "a <my-teddy>", 0), ("word", "a teddy", 0), ("base", "a teddy", BYPASS)):
        workflow = read("use_concepts")
        assert find_node(workflow, "PerfusionLoadConcept")["widgets_values"] == [taught[1].name]
        find_node(workflow, "PerfusionApply")["mode"] = mode
        set_widget(workflow, "Prompt", "text", prompt, object_info)
        set_widget(workflow, "KSampler", "steps", 4, object_info)
        (path,) = server.outputs(server.run(to_prompt(workflow, object_info)))
        with Image.open(path) as image:
            assert image.size == (64, 64)
            drawn[name] = image.convert("RGB").tobytes()
    assert drawn["word"] == drawn["base"] != drawn["concept"]


def test_the_workflow_for_a_word_alone_saves_one_that_edits_nothing(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    workflow = read("teach_a_word_alone")
    set_widget(workflow, "PerfusionTrain", "steps", 3, object_info)
    set_widget(workflow, "PerfusionTrain", "batch", 2, object_info)
    server.run(to_prompt(workflow, object_info))
    word, concept = Concept.load(taught[1].with_name("teddy-word_00001.safetensors")), Concept.load(taught[1])
    assert not word.values and concept.values and word.trigger == "<teddy-word>" != concept.trigger
    assert torch.equal(word.superclass_encoding, concept.superclass_encoding)
    # Both started as the plain word, and have learned.
    moved = word.word["clip_l"] - concept.word["clip_l"]
    assert 0 < moved.abs().max() < 1e-3


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_names_what_the_server_has(path: Path, object_info: dict) -> None:
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        assert node["type"] == "MarkdownNote" or node["type"] in object_info
