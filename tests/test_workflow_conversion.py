"""Saved workflows become the prompts that the page would send, and a real server takes them."""

from __future__ import annotations

import copy
import importlib.metadata
import json
from pathlib import Path

import pytest
from PIL import Image

from scripts.harness.server import GraphError, Server
from scripts.harness.workflow import WorkflowError, find_node, set_widget, to_prompt


def node(number: int, kind: str, inputs=(), outputs=(), values=(), **more) -> dict:
    """A node as the page saves it; inputs are (name, type, link), outputs are types."""
    return {
        "id": number,
        "type": kind,
        "mode": 0,
        "inputs": [{"name": name, "type": type_, "link": link} for name, type_, link in inputs],
        "outputs": [{"name": type_, "type": type_} for type_ in outputs],
        "widgets_values": values if isinstance(values, dict) else list(values),
        **more,
    }


def workflow(nodes: list[dict], *links: tuple) -> dict:
    """Links are (id, from node, output, to node, input)."""
    return {"nodes": nodes, "links": [[*link, "*"] for link in links], "version": 0.4}


def picture(number: int, color: int, size: int = 8) -> dict:
    return node(number, "EmptyImage", outputs=["IMAGE"], values=[size, size, 1, color])


def invert(number: int, link: int | None, **more) -> dict:
    return node(number, "ImageInvert", [("image", "IMAGE", link)], ["IMAGE"], **more)


def save(number: int, link: int | None, **more) -> dict:
    return node(number, "SaveImage", [("images", "IMAGE", link)], values=["conversion"], **more)


def chain(**middle) -> dict:
    """Picture → invert → save."""
    return workflow([picture(1, 255), invert(2, 1, **middle), save(3, 2)], (1, 1, 0, 2, 0), (2, 2, 0, 3, 0))


def inputs(prompt: dict, number: int) -> dict:
    return prompt[str(number)]["inputs"]


@pytest.fixture(scope="module")
def default_workflow() -> dict:
    """The text-to-image workflow that the page opens with, as ComfyUI's own package carries it."""
    files = importlib.metadata.files("comfyui-workflow-templates-json") or []
    path = next((Path(str(file.locate())) for file in files if file.name == "default.json"), None)
    if path is None:
        pytest.skip("this ComfyUI has no template default.json")
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_hosts_own_text_to_image_workflow(default_workflow, object_info):
    prompt = to_prompt(default_workflow, object_info)
    assert {number: step["class_type"] for number, step in prompt.items()} == {
        "3": "KSampler",
        "4": "CheckpointLoaderSimple",
        "5": "EmptyLatentImage",
        "6": "CLIPTextEncode",
        "7": "CLIPTextEncode",
        "8": "VAEDecode",
        "9": "SaveImage",
    }
    assert inputs(prompt, 3) == {
        "seed": 685468484323813,
        "steps": 20,
        "cfg": 8,
        "sampler_name": "euler",
        "scheduler": "normal",
        "denoise": 1,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    assert inputs(prompt, 7) == {"text": "text, watermark", "clip": ["4", 1]}
    assert prompt["3"]["_meta"] == {"title": "KSampler"}


def test_a_chain_runs_on_the_server(server: Server, object_info):
    history = server.run(to_prompt(chain(), object_info))
    [path] = server.outputs(history)
    with Image.open(path) as image:
        assert image.size == (8, 8)
        assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 0)  # blue, inverted


def test_a_bypassed_node_hands_its_input_on(object_info):
    prompt = to_prompt(chain(mode=4), object_info)
    assert "2" not in prompt
    assert inputs(prompt, 3)["images"] == ["1", 0]


def test_a_bypassed_node_hands_on_by_type(object_info):
    apply = node(
        2,
        "LoraLoader",
        [("model", "MODEL", 1), ("clip", "CLIP", 2)],
        ["MODEL", "CLIP"],
        ["some.safetensors", 1.0, 1.0],
        mode=4,
    )
    loader = node(1, "CheckpointLoaderSimple", outputs=["MODEL", "CLIP", "VAE"], values=["some.safetensors"])
    text = node(3, "CLIPTextEncode", [("clip", "CLIP", 3)], ["CONDITIONING"], ["a teddy"])
    drawn = workflow([loader, apply, text], (1, 1, 0, 2, 0), (2, 1, 1, 2, 1), (3, 2, 1, 3, 0))
    assert inputs(to_prompt(drawn, object_info), 3) == {"text": "a teddy", "clip": ["1", 1]}


def test_a_muted_node_leaves_its_consumer_without_input(server: Server, object_info):
    prompt = to_prompt(chain(mode=2), object_info)
    assert "2" not in prompt
    assert "images" not in inputs(prompt, 3)
    with pytest.raises(GraphError) as told:
        server.run(prompt)
    assert told.value.node_class == "SaveImage"
    assert "Required input is missing" in told.value.messages[0]


def test_notes_are_left_out_and_reroutes_are_followed(object_info):
    drawn = workflow(
        [
            picture(1, 255),
            node(2, "Reroute", [("", "*", 1)], ["IMAGE"]),
            node(3, "Reroute", [("", "*", 2)], ["IMAGE"]),
            save(4, 3),
            node(5, "MarkdownNote", values=["hello"]),
            node(6, "Note", values=["hello"]),
        ],
        (1, 1, 0, 2, 0),
        (2, 2, 0, 3, 0),
        (3, 3, 0, 4, 0),
    )
    prompt = to_prompt(drawn, object_info)
    assert set(prompt) == {"1", "4"}
    assert inputs(prompt, 4)["images"] == ["1", 0]


def test_a_primitive_gives_its_value(object_info):
    image = picture(1, 255)
    image["inputs"] = [{"name": "width", "type": "INT", "link": 1, "widget": {"name": "width"}}]
    drawn = workflow([image, node(2, "PrimitiveNode", outputs=["INT"], values=[32, "fixed"])], (1, 2, 0, 1, 0))
    assert inputs(to_prompt(drawn, object_info), 1) == {"width": 32, "height": 8, "batch_size": 1, "color": 255}


def test_growing_inputs_reach_the_node(server: Server, object_info):
    batch = node(
        3,
        "BatchImagesNode",
        [("images.image0", "IMAGE", 1), ("images.image1", "IMAGE", 2), ("images.image2", "IMAGE", None)],
        ["IMAGE"],
    )
    drawn = workflow([picture(1, 255), picture(2, 0), batch, save(4, 3)], (1, 1, 0, 3, 0), (2, 2, 0, 3, 1), (3, 3, 0, 4, 0))
    prompt = to_prompt(drawn, object_info)
    assert inputs(prompt, 3) == {"images.image0": ["1", 0], "images.image1": ["2", 0]}
    assert len(server.outputs(server.run(prompt))) == 2


def test_a_combo_that_brings_inputs_of_its_own(server: Server, object_info):
    values = ["scale dimensions", 16, 24, "disabled", "area"]
    resize = node(2, "ResizeImageMaskNode", [("input", "IMAGE,MASK", 1)], ["IMAGE"], values)
    drawn = workflow([picture(1, 255), resize, save(3, 2)], (1, 1, 0, 2, 0), (2, 2, 0, 3, 0))
    prompt = to_prompt(drawn, object_info)
    assert inputs(prompt, 2) == {
        "resize_type": "scale dimensions",
        "resize_type.width": 16,
        "resize_type.height": 24,
        "resize_type.crop": "disabled",
        "scale_method": "area",
        "input": ["1", 0],
    }
    [path] = server.outputs(server.run(prompt), node_id=3)
    with Image.open(path) as image:
        assert image.size == (16, 24)


def test_values_by_name_and_values_not_saved(object_info):
    by_name = node(1, "EmptyImage", outputs=["IMAGE"], values={"width": 16, "color": 7})
    assert inputs(to_prompt(workflow([by_name]), object_info), 1) == {"width": 16, "height": 512, "batch_size": 1, "color": 7}
    short = node(1, "EmptyImage", outputs=["IMAGE"], values=[16])
    assert inputs(to_prompt(workflow([short]), object_info), 1) == {"width": 16, "height": 512, "batch_size": 1, "color": 0}


def test_the_upload_button_is_not_sent(object_info):
    load = node(1, "LoadImage", outputs=["IMAGE", "MASK"], values=["a.png", "image"])
    assert inputs(to_prompt(workflow([load]), object_info), 1) == {"image": "a.png"}


def test_setting_a_widget(default_workflow, object_info):
    changed = copy.deepcopy(default_workflow)
    set_widget(changed, 3, "steps", 4, object_info)
    set_widget(changed, "EmptyLatentImage", "width", 64, object_info)
    assert find_node(changed, 3)["widgets_values"] == [685468484323813, "randomize", 4, 8, "euler", "normal", 1]
    assert inputs(to_prompt(changed, object_info), 5)["width"] == 64
    with pytest.raises(WorkflowError, match="no widget 'speed'"):
        set_widget(changed, 3, "speed", 4, object_info)
    with pytest.raises(WorkflowError, match="2 nodes"):
        find_node(changed, "CLIPTextEncode")


def test_what_the_page_would_not_save_is_refused(default_workflow, object_info):
    handmade = copy.deepcopy(default_workflow)
    find_node(handmade, 3)["widgets_values"].remove("randomize")
    with pytest.raises(WorkflowError, match="after 'seed'"):
        to_prompt(handmade, object_info)
    with pytest.raises(WorkflowError, match="does not know"):
        to_prompt(workflow([node(1, "NoSuchNode")]), object_info)


def test_a_node_that_fails_tells_its_class_and_message(server: Server, object_info):
    images = [picture(1, 255), picture(2, 0, 16)]
    stitch = node(3, "LoadImage", outputs=["IMAGE", "MASK"], values=["no-such-file.png"])
    drawn = workflow([*images, stitch, save(4, 1)], (1, 3, 0, 4, 0))
    with pytest.raises(GraphError) as told:
        server.run(to_prompt(drawn, object_info))
    assert told.value.node_class == "LoadImage"
    assert "no-such-file.png" in str(told.value)
