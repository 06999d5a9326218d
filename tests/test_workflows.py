"""The workflows that ship, run through a real server as the page would send them."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from demo import make_pictures, world
from demo.world import SIDE
from perfusion_core.concept import Concept
from scripts.generate import foreign_file
from scripts.generate.make_workflows import SD15_PREFIX, for_sd15
from scripts.harness.server import Server
from scripts.harness.workflow import BYPASS, NEVER, find_node, set_widget, to_prompt
from tests.older import renamed

WORKFLOWS = Path(__file__).parents[1] / "workflows"
OLD = Path(__file__).parent / "data" / "workflows"
"""As they were saved with earlier versions: they must load for ever."""


def read(name: str) -> dict:
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def taught(server: Server, object_info: dict) -> tuple[dict, Path]:
    """The training workflow, shortened, and the concept that it saved."""
    workflow = read("train_a_concept")
    set_widget(workflow, "PerfusionTrain", "steps", 3, object_info)
    set_widget(workflow, "PerfusionTrain", "batch", 2, object_info)
    history = server.run(to_prompt(workflow, object_info))
    return history, server.base / "models" / "perfusion" / "monster_00001.safetensors"


def test_the_training_workflow_teaches_and_shows(server: Server, taught: tuple[dict, Path]) -> None:
    history, path = taught
    assert Concept.load(path).trigger == "<my-monster>"
    assert len(server.outputs(history, kind="temp")) == 2


def test_the_using_workflow_draws_the_concept_and_bypassed_the_base(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    drawn = {}
    for name, prompt, mode in (("concept", "a <my-monster>", 0), ("word", "a monster", 0), ("base", "a monster", BYPASS)):
        workflow = read("use_concepts")
        assert find_node(workflow, "PerfusionLoadConcept")["widgets_values"] == [taught[1].name]
        find_node(workflow, "PerfusionApply")["mode"] = mode
        set_widget(workflow, "Prompt", "text", prompt, object_info)
        set_widget(workflow, "KSampler", "steps", 4, object_info)
        (path,) = server.outputs(server.run(to_prompt(workflow, object_info)))
        with Image.open(path) as image:
            assert image.size == (SIDE, SIDE)
            drawn[name] = image.convert("RGB").tobytes()
    assert drawn["word"] == drawn["base"] != drawn["concept"]


def test_the_comparing_workflow_shows_what_the_settings_do(server: Server, object_info: dict, taught: tuple[dict, Path]) -> None:
    workflow = read("compare_settings")
    assert find_node(workflow, "PerfusionLoadConcept")["widgets_values"] == [taught[1].name]
    set_widget(workflow, "PerfusionSweep", "steps", 2, object_info)
    # The gate nearly everywhere open, at its edge, and shut.
    set_widget(workflow, "PerfusionSweep", "biases", "-5, 0.4, 9", object_info)
    set_widget(workflow, "PerfusionSweep", "values", "0.05, 0.15", object_info)
    history = server.run(to_prompt(workflow, object_info))
    with Image.open(server.outputs(history)[0]) as grid:
        assert grid.width > 4 * 192 and grid.height > 3 * 192
    drawn = []
    for path in server.outputs(history, kind="temp"):
        with Image.open(path) as image:
            drawn.append(image.convert("RGB").tobytes())
    opened, edge, shut = drawn[:4], drawn[4:8], drawn[8:]
    assert len(drawn) == 12 and shut[:2] == shut[2:] and opened[:2] == opened[2:]
    assert len(set(edge)) == 4 and not set(edge) & set(opened + shut)


def test_the_importing_workflow_draws_and_saves_what_the_other_file_holds(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    foreign_file.write(server.base, taught[1], foreign_file.FOREIGN)
    drawn = {}
    for name in ("import_a_concept", "use_concepts"):
        workflow = read(name)
        set_widget(workflow, "KSampler", "steps", 4, object_info)
        (path,) = server.outputs(server.run(to_prompt(workflow, object_info)))
        with Image.open(path) as image:
            drawn[name] = np.asarray(image.convert("RGB"), dtype=int)
    assert np.abs(drawn["import_a_concept"] - drawn["use_concepts"]).max() <= 2
    saved, original = (Concept.load(taught[1].with_name(name)) for name in ("imported_00001.safetensors", taught[1].name))
    assert (saved.trigger, saved.superclass, saved.layers) == (original.trigger, original.superclass, original.layers)
    assert all(torch.equal(saved.values[layer], original.values[layer]) for layer in original.values)


def test_the_exporting_workflow_writes_what_the_stock_nodes_read(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    workflow = read("export_a_concept")
    for sampler in (node for node in workflow["nodes"] if node["type"] == "KSampler"):
        # A number of its own: of a picture that another graph has drawn already, not every ComfyUI tells.
        set_widget(workflow, sampler["id"], "steps", 5, object_info)
    history = server.run(to_prompt(workflow, object_info))
    export = str(find_node(workflow, "PerfusionExport")["id"])
    report = history["outputs"][export]["text"][0]
    assert "write embedding:monster_00001 instead of <my-monster>" in report and "approximation error" in report
    lora, word = (load_file(server.base / "models" / kind / "monster_00001.safetensors") for kind in ("loras", "embeddings"))
    assert len(lora) == 3 * 2 * 7 and {tensor.shape[0] for name, tensor in lora.items() if "lora_down" in name} == {1}
    assert torch.equal(word["emb_params"].half(), Concept.load(taught[1]).word["clip_l"].half())
    drawn = []
    for path in server.outputs(history):
        with Image.open(path) as image:
            drawn.append(image.convert("RGB").tobytes())
    assert len(drawn) == 2 and drawn[0] != drawn[1]


def test_the_workflow_for_a_word_alone_saves_one_that_edits_nothing(
    server: Server, object_info: dict, taught: tuple[dict, Path]
) -> None:
    workflow = read("teach_a_word_alone")
    set_widget(workflow, "PerfusionTrain", "preview_every", 0, object_info)
    set_widget(workflow, "PerfusionTrain", "steps", 3, object_info)
    set_widget(workflow, "PerfusionTrain", "batch", 2, object_info)
    server.run(to_prompt(workflow, object_info))
    word, concept = Concept.load(taught[1].with_name("monster-word_00001.safetensors")), Concept.load(taught[1])
    assert not word.values and concept.values and word.trigger == "<monster-word>" != concept.trigger
    assert torch.equal(word.superclass_encoding, concept.superclass_encoding)
    # Both started as the plain word, and have learned: Adam moves nothing by more than its rate a step.
    moved = word.word["clip_l"] - concept.word["clip_l"]
    assert 0 < moved.abs().max() < 3 * (word.training["word_rate"] + concept.training["word_rate"])


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=int)


def own_colour(server: Server) -> np.ndarray:
    """The mean colour of the monster in its training pictures."""
    taught = [np.asarray(Image.open(server.base / "input" / f"monster-{i}.png")) for i in range(4)]
    return np.concatenate([each[each[..., 3] < 128][:, :3] for each in taught]).mean(0)


def shortened(name: str, object_info: dict, *titles: str) -> dict:
    """A workflow with four steps in these samplers."""
    workflow = read(name)
    for title in titles or ("KSampler",):
        set_widget(workflow, title, "steps", 4, object_info)
    return workflow


def test_the_locking_workflow_draws_two_pictures_that_differ_by_the_trigger_word_alone(server: Server, object_info: dict) -> None:
    drawn = {}
    for word in ("<demo-monster>", "monster"):
        workflow = shortened("lock_keys_globally", object_info, "Local lock", "Global lock")
        for title in ("Prompt, local lock", "Prompt, global lock"):
            set_widget(workflow, title, "text", f"a photo of a {word} in the snow", object_info)
        local, locked = (pixels(path) for path in server.outputs(server.run(to_prompt(workflow, object_info))))
        drawn[word] = np.abs(local - locked).max()
    assert drawn["monster"] == 0 and drawn["<demo-monster>"] > 20


def test_the_seeing_workflow_shows_three_words(server: Server, object_info: dict) -> None:
    history = server.run(to_prompt(shortened("see_attention", object_info), object_info))
    saved, masks = (server.outputs(history, kind=kind) for kind in ("output", "temp"))
    assert sorted(pixels(path).shape[0] == SIDE for path in saved) == [False, True] and len(masks) == 3
    assert all(pixels(mask).max() == 255 and pixels(mask).std() > 5 for mask in masks)


def taught_in_two_steps(server: Server, workflow: dict, object_info: dict) -> dict:
    """The history of a training workflow that is cut to two steps and saves one concept."""
    for name in ("steps", "batch"):
        set_widget(workflow, "PerfusionTrain", name, 2, object_info)
    known = set((server.base / "models" / "perfusion").glob("monster_*"))
    history = server.run(to_prompt(workflow, object_info))
    (saved,) = set((server.base / "models" / "perfusion").glob("monster_*")) - known
    assert Concept.load(saved).training["steps"] == 2
    return history


def test_the_unpainted_workflow_finds_monsters_and_teaches(server: Server, object_info: dict) -> None:
    workflow = read("train_without_painting")
    set_widget(workflow, "PerfusionTrain", "preview_every", 0, object_info)
    history = taught_in_two_steps(server, workflow, object_info)
    masks = server.outputs(history, find_node(workflow, "PerfusionFindObject")["id"], "temp")
    assert len(masks) == 4 and all(0.1 < (pixels(mask) > 127).mean() < 0.7 for mask in masks)


def test_the_captioned_workflow_teaches_and_previews_two_prompts(server: Server, object_info: dict) -> None:
    workflow = read("train_with_captions")
    set_widget(workflow, "PerfusionTrainingOptions", "preview_steps", 2, object_info)
    history = taught_in_two_steps(server, workflow, object_info)
    (sheet,) = server.outputs(history, find_node(workflow, "The concept, step by step")["id"], "temp")
    high, wide, _ = pixels(sheet).shape
    # A row for each prompt; the plain word and the concept.
    assert min(high, wide) > 2 * 192 and max(high, wide) < 3 * 192


def test_the_inspecting_workflow_reports_on_both_concepts(server: Server, object_info: dict) -> None:
    workflow = read("inspect_gates")
    history = server.run(to_prompt(workflow, object_info))
    (text,) = history["outputs"][str(find_node(workflow, "In words")["id"])]["text"]
    assert all(f"{trigger}: its gate opens to 0.9" in text for trigger in ("<demo-monster>", "<demo-robot>"))
    assert "In 7 layers" in text and "compete" not in text
    assert pixels(server.outputs(history)[0]).shape[0] > 200


def test_the_places_workflow_needs_its_regions(server: Server, object_info: dict) -> None:
    workflow = shortened("two_places", object_info)
    (placed,) = server.outputs(server.run(to_prompt(workflow, object_info)))
    assert pixels(placed).shape == (SIDE, 2 * SIDE, 3)
    for node in workflow["nodes"]:
        if node["type"] == "MaskComposite":
            node["mode"] = NEVER
    (free,) = server.outputs(server.run(to_prompt(workflow, object_info)))
    assert np.abs(pixels(placed) - pixels(free)).max() > 20


def test_the_scheduling_workflow_draws_three_pictures(server: Server, object_info: dict) -> None:
    titles = ("All the way", "From 0.3 on", "A bias that rises")
    workflow = shortened("schedule_a_concept", object_info, *titles)
    always, late, rising = (pixels(path) for path in server.outputs(server.run(to_prompt(workflow, object_info))))
    assert min(np.abs(one - other).max() for one, other in itertools.combinations((always, late, rising), 2)) > 20


def test_the_layout_workflow_draws_the_concept_with_and_without_the_layout(server: Server, object_info: dict) -> None:
    """With locked keys and one seed the concept by itself is laid out much the same; `inference.md` has what the node adds."""
    titles = ("The plain word", "The concept in its layout", "The concept by itself")
    workflow = read("keep_layout")
    for title in titles:
        set_widget(workflow, title, "steps", 8, object_info)
    history = server.run(to_prompt(workflow, object_info))
    keys = [find_node(workflow, f"Picture: {title}")["id"] for title in titles]
    first, kept, free = (pixels(server.outputs(history, key)[0]) for key in keys)
    assert np.abs(kept - free).max() > 20
    plain, *concept = (np.linalg.norm(each[32:80, 32:64].mean((0, 1)) - own_colour(server)) for each in (first, kept, free))
    assert max(concept) < 0.5 * plain


def test_the_other_layout_workflow_puts_the_concept_in_a_pictures_place(server: Server, object_info: dict) -> None:
    workflow = read("keep_layout_of_a_picture")
    history = server.run(to_prompt(workflow, object_info))
    titles = ("The picture again", "The concept in its layout")
    keys = [find_node(workflow, f"Picture: {title}")["id"] for title in titles]
    again, kept = (pixels(server.outputs(history, key)[0]) for key in keys)
    # As demo.make_pictures draws the picture, without its monster.
    empty = world.background("on the beach", random.Random(5), make_pictures.SIDE, make_pictures.SIDE)
    with Image.open(server.base / "input" / "plain-monster.png") as image:
        shown, behind = (np.asarray(each.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=int) for each in (image, empty))
    inside = np.abs(shown - behind).max(2) > 40
    assert np.abs(again - shown)[inside].mean() < 40 and np.abs(again - shown)[~inside].mean() < 15
    changed = np.abs(kept - shown).mean(2)
    assert changed[inside].mean() > 2.5 * changed[~inside].mean()
    # In the place of the picture's monster there are the concept's colours.
    own = own_colour(server)
    now, before = kept[inside].mean(0), shown[inside].mean(0)
    assert np.linalg.norm(now - own) < np.linalg.norm(now - before)


@pytest.mark.parametrize("path", sorted(WORKFLOWS.glob("*.json")), ids=lambda path: path.stem)
def test_a_workflow_names_what_the_server_has(path: Path, object_info: dict) -> None:
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        assert node["type"] == "MarkdownNote" or node["type"] in object_info


@pytest.mark.parametrize("name", sorted(path.stem for path in WORKFLOWS.glob(f"{SD15_PREFIX}*.json")))
def test_a_workflow_for_sd15_is_the_other_but_for_its_numbers(name: str, object_info: dict) -> None:
    own, other = (to_prompt(read(each), object_info) for each in (name, name.removeprefix(SD15_PREFIX)))
    assert {key: node["class_type"] for key, node in own.items()} == {key: node["class_type"] for key, node in other.items()}
    for key, node in own.items():
        before = other[key]["inputs"]
        assert node["inputs"] == before | for_sd15(node["class_type"], {k: v for k, v in before.items() if not isinstance(v, list)})
    texts = json.dumps(own)
    assert "demo-" not in texts and f'": {SIDE}' not in texts and "v1-5-pruned" in texts


@pytest.mark.parametrize("path", sorted(OLD.glob("*/*.json")), ids=lambda path: path.stem)
def test_a_workflow_saved_with_an_older_version_still_fits(path: Path, object_info: dict) -> None:
    """Widgets are saved by position: none may have been put between others, taken away, or given another meaning."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    prompt = to_prompt(workflow, object_info)
    for node in workflow["nodes"]:
        info = object_info.get(node["type"])
        assert node["type"] == "MarkdownNote" or info is not None, node["type"]
        if not node["type"].startswith("Perfusion"):
            continue
        assert [output["name"] for output in node["outputs"]] == info["output_name"][: len(node["outputs"])]
        specs = {name: spec for group in ("required", "optional") for name, spec in info["input"].get(group, {}).items()}
        for name, value in prompt[str(node["id"])]["inputs"].items():
            if isinstance(value, list) or name not in specs:
                continue
            kind, options = specs[name][0], specs[name][1]
            if kind in ("INT", "FLOAT"):
                assert isinstance(value, int | float) and options["min"] <= value <= options["max"], (node["type"], name)
            elif kind == "COMBO" and name not in ("concept_name", "file_name"):
                assert value in options["options"], (node["type"], name)


def test_an_older_workflow_runs(server: Server, object_info: dict, taught: tuple[dict, Path]) -> None:
    workflow = renamed(json.loads((OLD / "0.1.0" / "use_concepts.json").read_text(encoding="utf-8")))
    set_widget(workflow, "KSampler", "steps", 2, object_info)
    assert len(server.outputs(server.run(to_prompt(workflow, object_info)))) == 1
