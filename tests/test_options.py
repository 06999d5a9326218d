"""Training Options, in a real server: captions, cut-outs, shapes and previews."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.parse
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from perfusion_core.concept import Concept
from scripts.harness.graphs import FEW_STEPS, Graph, Link, concepts
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import CHECKPOINT

TRIGGER = "<opted>"
CAPTIONS = ("a photo of <opted> on the grass", "{} in a forest, {sunny|rainy}")
_counter = itertools.count()


def learned(server: Server, *trainings: dict) -> list[dict[str, torch.Tensor]]:
    """What short trainings learn, each given the files of its pictures, further inputs of Train Concept and its options."""
    graph, names = Graph(), []
    model, clip, vae = graph.checkpoint()
    for given in trainings:
        loaded = [graph.add("LoadImage", image=name) for name in given.get("pictures", ("monster-0.png", "monster-1.png"))]
        images, masks = batch(graph, "image", [[key, 0] for key in loaded]), batch(graph, "mask", [[key, 1] for key in loaded])
        inputs = {"masks": masks, "steps": 2, "batch": 2, "trigger": TRIGGER} | given.get("inputs", {})
        options = given.get("options")
        inputs["options"] = None if options is None else graph.options(**{"preview_steps": FEW_STEPS} | options)
        names.append(f"opted-{next(_counter)}")
        graph.save([graph.train(model, clip, vae, images, **inputs), 0], names[-1])
    server.run(graph.nodes)
    found = [Concept.load(server.base / "models" / "perfusion" / f"{name}_00001.safetensors") for name in names]
    return [{"word": one.word["clip_l"], **one.values} for one in found]


def batch(graph: Graph, kind: str, links: list[Link]) -> Link:
    """Join pictures or masks."""
    return [graph.add(f"Batch{kind.title()}sNode", **{f"{kind}s__{kind}{i}": link for i, link in enumerate(links)}), 0]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two concepts are the same to the bit."""
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def cut_out(server: Server, name: str) -> str:
    """Write a picture of the demo with its alpha the other way round: transparent where the character is not."""
    with Image.open(server.base / "input" / name) as image:
        pixels = np.array(image)
    pixels[..., 3] = 255 - pixels[..., 3]
    Image.fromarray(pixels).save(server.base / "input" / f"cut-{name}")
    return f"cut-{name}"


def stretched(server: Server, name: str) -> str:
    """Write a picture of the demo twice as wide."""
    with Image.open(server.base / "input" / name) as image:
        image.resize((2 * image.width, image.height)).save(server.base / "input" / f"wide-{name}")
    return f"wide-{name}"


def test_options_as_they_are_change_nothing_and_each_changes_what_it_is_for(server: Server) -> None:
    wide = [stretched(server, f"monster-{i}.png") for i in (0, 1)]
    captions = {"captions": "\n".join(CAPTIONS)}
    given = [
        {},
        {"options": {"preview_steps": 3, "preset": "SDXL"}},
        {"options": captions},
        {"options": captions | {"captioned": 0.0}},
        {"options": {"templates": "{}\n\n<opted> alone"}},
        {"pictures": wide},
        {"pictures": wide, "options": {"shape": "whole"}},
        {"options": {"shape": "whole"}},
    ]
    plain, usual, captioned, never, templates, cut, whole, square = learned(server, *given)
    assert same(plain, usual) and same(plain, never) and same(plain, square)
    others = [plain, captioned, templates, cut, whole]
    assert not any(same(one, other) for one, other in itertools.combinations(others, 2))


def test_cut_outs_are_what_painted_masks_are(server: Server) -> None:
    """The masks are equal, so the concepts are, to the bit; and a mask the wrong way round is said."""
    names = ["monster-0.png", "monster-1.png"]
    cut = [cut_out(server, name) for name in names]
    log = len(server.log())
    painted, turned = learned(server, {"pictures": names}, {"pictures": cut, "options": {"invert_masks": True}})
    assert same(painted, turned) and "look inverted" not in server.log()[log:]
    (wrong,) = learned(server, {"pictures": cut})
    assert not same(painted, wrong) and "2 of 2 masks are white along the rim" in server.log()[log:]
    assert "Turn invert_masks on in Training Options" in server.log()[log:]
    log = len(server.log())
    learned(server, {"pictures": names, "options": {"invert_masks": True}, "inputs": {"steps": 1, "batch": 1}})
    assert "Turn invert_masks off in Training Options" in server.log()[log:]


def test_previews_show_what_is_asked_for(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    how = {"preview_sampler": "lcm", "preview_scheduler": "sgm_uniform", "preview_steps": 2, "preview_cfg": 1.5}
    options = graph.options(preview_prompts="a {} on the beach\n<opted> at night\none {}", preview_negative="grass", **how)
    inputs = {"steps": 2, "batch": 1, "preview_every": 1, "trigger": TRIGGER, "options": options}
    train = graph.train(model, clip, vae, images, masks, **inputs)
    shown = [graph.add("PreviewImage", images=[train, i]) for i in (2, 3)]
    history = server.run(graph.nodes)
    pictures, (sheet,) = (server.outputs(history, node, "temp") for node in shown)
    found = {Path(picture).read_bytes() for picture in pictures}
    assert len(pictures) == len(found) == 3
    with Image.open(sheet) as image:
        # A row for each prompt, a column for the plain word, step 1 and the concept; each picture is 192 pixels a side.
        assert image.height > 3 * 192 and 3 * 192 < image.width < 4 * 192


def test_previews_without_options_suit_a_distilled_model(server: Server) -> None:
    """They are those of options for LCM, to the bit, once the model samples that way."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    distilled = [graph.add("ModelSamplingDiscrete", model=model, sampling="lcm", zsnr=False), 0]
    how = {"preview_sampler": "lcm", "preview_scheduler": "sgm_uniform", "preview_steps": 6, "preview_cfg": 1.5}
    images, masks = graph.pictures(1)
    inputs = {"steps": 1, "batch": 1, "preview_every": 1, "trigger": TRIGGER}
    trained = [
        graph.train(base, clip, vae, images, masks, options=options, **inputs)
        for base, options in ((distilled, None), (distilled, graph.options(**how)), (model, graph.options(**how)))
    ]
    shown = [graph.add("PreviewImage", images=[each, 2]) for each in trained]
    history = server.run(graph.nodes)
    usual, asked, other = (Path(server.outputs(history, node, "temp")[0]).read_bytes() for node in shown)
    assert usual == asked != other


def test_the_page_gets_the_preset_that_suits_a_checkpoint(server: Server) -> None:
    """From the shapes of a file's first cross-attention, whatever its other layers are."""
    folder: Path = server.base / "models" / "diffusion_models"
    folder.mkdir(parents=True, exist_ok=True)

    def answer(name: str) -> str:
        return json.loads(server.get(f"/perfusion/preset?name={urllib.parse.quote(name)}"))["preset"]

    def made(key: str, *shape: int) -> str:
        """The preset for a file with a layer of this shape, and one that reads nothing."""
        save_file({key: torch.zeros(shape, dtype=torch.float16), "out.weight": torch.zeros(1)}, folder / "made.safetensors")
        return answer("diffusion_models/made.safetensors")

    key = "{}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert answer(f"checkpoints/{CHECKPOINT}") == "demo"
    assert made(key.format("model.diffusion_model."), 640, 768) == "SD1.5" and made(key.format(""), 320, 1024) == "SD2"
    assert made("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", 640, 2048) == "SDXL"
    assert made(key.format(""), 768, 1280) == "" and made("transformer_blocks.0.attn2.to_k.weight", 512, 2048) == ""
    (folder / "made.safetensors").write_bytes(b"no checkpoint")
    wrong = {
        "diffusion_models/made.safetensors": "cannot be read as a safetensors file",
        "checkpoints/missing.safetensors": "There is no",
        "checkpoints/../perfusion/demo-monster.safetensors": "There is no",
        "perfusion/demo-monster.safetensors": "There is no",
    }
    for name, sentence in wrong.items():
        with pytest.raises(urllib.error.HTTPError) as refused:
            answer(name)
        assert refused.value.code == 400 and sentence in json.loads(refused.value.read())["error"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"captions": "a <opted>"}, ["2 pictures and 1 captions", "one line for each"]),
        ({"captions": "a <opted>\na table"}, ["Caption 2 of 2", "contain <opted> exactly once", "a table"]),
        (
            {"captions": f"a <opted>\na <opted> {'by a red house, ' * 20}"},
            ["Caption 2 of 2 is too long for one prompt of 77 tokens; shorten it: 'a <opted> by a red house"],
        ),
        ({"templates": "a {} and <opted>"}, ["Template 1 of 1", "once"]),
        ({"preview_prompts": "the beach"}, ["Preview prompt 1 of 1", "once"]),
        ({"captioned": 2.0}, ["captioned", "max"]),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(server: Server, options: dict, words: list[str]) -> None:
    known, log = concepts(server), len(server.log())
    with pytest.raises(GraphError) as failure:
        learned(server, {"options": options})
    assert all(word in str(failure.value) for word in words) and "\n" not in str(failure.value).strip()
    assert concepts(server) == known and "Training processes" not in server.log()[log:]
