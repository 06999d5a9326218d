"""A small Wan through a real server: its latents have five dimensions, its VAE is one of videos, and a picture is one frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from perfusion_core.concept import Concept
from scripts.harness.graphs import TRIGGER, Graph, concepts, latents
from scripts.harness.server import Server

CAPTIONS = "\n".join(f"a {what} {where}" for what in ("monster", "red cup", "dog") for where in ("on grass", "at night", "in snow"))


class Small(Graph):
    """A graph with a small Wan, as `base` its MODEL, CLIP and VAE."""

    def __init__(self) -> None:
        super().__init__()
        key = self.add("TestSmallWan")
        self.base = [key, 0], [key, 1], [key, 2]

    def frame(self, model: list, clip: list, text: str) -> list:
        """A picture's latents: a video of one frame."""
        empty = self.add("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1)
        key = self.add(
            "KSampler", model=model, positive=self.text(clip, text), negative=self.text(clip, ""), latent_image=[empty, 0], seed=1,
            steps=2, cfg=3.0, sampler_name="uni_pc", scheduler="simple", denoise=1.0,
        )  # fmt: skip
        return [key, 0]


@pytest.fixture(scope="module")
def taught(server: Server) -> tuple[Path, list[Path]]:
    """A concept that was taught and saved, and the pictures of it that the training gave."""
    graph = Small()
    model, clip, vae = graph.base
    images, masks = graph.pictures(2)
    measured = graph.add("PerfusionCovariance", clip=clip, model=model, captions=CAPTIONS, captions_file="", positions="all")
    shown = graph.options(preview_steps=1, preview_sampler="euler", preview_scheduler="simple")
    trained = graph.train(
        model, clip, vae, images, masks, steps=2, batch=2, at_once=2, preview_every=2, keep="best", word_rate=1e-2, output_rate=5.0,
        covariance=[measured, 0], options=shown,
    )  # fmt: skip
    graph.save([trained, 0], "frame")
    sheet = graph.add("PreviewImage", images=[trained, 2])
    history, (path,) = server.run(graph.nodes), [each for each in concepts(server) if each.name.startswith("frame")]
    return path, server.outputs(history, sheet, "temp")


def test_a_picture_is_taught_as_one_frame(taught: tuple[Path, list[Path]]) -> None:
    concept = Concept.load(taught[0])
    assert concept.family == "wan" and concept.layers == {"blocks.0.cross_attn": 256, "blocks.1.cross_attn": 256}
    assert concept.training["steps"] == 2 and len(taught[1]) == 1


def test_frames_are_drawn_with_the_concept_and_without_its_word_as_by_the_base(
    server: Server, taught: tuple[Path, list[Path]]
) -> None:
    graph = Small()
    model, clip, vae = graph.base
    applied, knowing = graph.apply(model, clip, graph.load(taught[0].name))
    ours, base = (applied, knowing), (model, clip)
    said = [(*ours, "a monster"), (*base, "a monster"), (*ours, f"a {TRIGGER}"), (model, knowing, f"a {TRIGGER}")]
    drawn = [graph.frame(*each) for each in said]
    graph.add("SaveImage", images=[graph.add("VAEDecode", samples=drawn[2], vae=vae), 0], filename_prefix="frame")
    plain, untouched, concept, word = latents(server, graph, *drawn)
    assert plain.shape == (1, 16, 1, 8, 8)
    assert torch.equal(plain, untouched) and (concept - word).abs().max() > 0.01 * word.abs().max()


def test_settings_are_compared_and_gates_inspected(server: Server, taught: tuple[Path, list[Path]]) -> None:
    graph = Small()
    model, clip, vae = graph.base
    applied, knowing = graph.apply(model, clip, graph.load(taught[0].name))
    positive, negative = graph.text(knowing, f"a {TRIGGER}"), graph.text(knowing, "")
    empty = graph.add("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1)
    swept = graph.add(
        "PerfusionSweep", model=applied, vae=vae, positive=positive, negative=negative, latent_image=[empty, 0], biases="0.2, 0.6",
        across="temperature", values="0.15", trigger="", seed=1, seeds=1, steps=1, cfg=3.0, sampler_name="euler",
        scheduler="simple", denoise=1.0,
    )  # fmt: skip
    compared = graph.add("PreviewImage", images=[swept, 1])
    said = graph.add("PreviewAny", source=[graph.add("PerfusionInspect", model=applied, positive=positive), 1])
    history = server.run(graph.nodes)
    assert len(server.outputs(history, compared, "temp")) == 2
    assert "In 2 layers" in history["outputs"][said]["text"][0]
    with Image.open(server.outputs(history, compared, "temp")[0]) as image:
        assert image.size == (64, 64)
