"""Concepts on servers that were started with flags: other attention, other precisions, other caches, weights elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from scripts.generate import make_workflows
from scripts.harness.differences import worst
from scripts.harness.graphs import Graph, latents
from scripts.harness.server import Server
from scripts.setup.bootstrap import CACHE, CHECKPOINT, Setup
from tests import accelerator
from tests.measuring import measure

CONCEPT = "demo-monster.safetensors"
PLAIN, NAMED = "a photo of a monster on the grass", "a photo of a <demo-monster> on the grass"
BIAS = make_workflows.SETTINGS["bias"]
ROUNDING = 2e-5
"""What float32's rounding may change in two guided steps, as a share of the largest latent."""
HALF = 0.03
"""What weights or numbers of 16 bits may change."""
SEEN = 0.01
"""What counts as a difference."""
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the device is written for torch as it is built on Linux")

FLAGS = {
    "split attention, nothing cached": (["--use-split-cross-attention", "--cache-none"], "split optimization", ROUNDING),
    "torch's attention": (["--use-pytorch-cross-attention", "--cache-classic"], "Using pytorch attention", ROUNDING),
    "weights in bf16": (["--bf16-unet"], "weight dtype torch.bfloat16, manual cast: torch.float32", HALF),
}
"""Name -> the flags, what the server's log says then, and how far pictures may be from those without flags.

Without flags a processor has sub-quadratic attention, so all other tests are of that.
"""


def drawn(server: Server) -> list[torch.Tensor]:
    """A plain prompt from the base, and with a concept applied; a prompt with its word from the base, and with it applied."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    # At the demo's bias: weights of eight bits make encodings less alike, which half closes a gate whose bias is higher.
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT, bias=BIAS))
    blank = graph.text(clip, "")
    given = ((model, clip, PLAIN), (with_model, with_clip, PLAIN), (model, with_clip, NAMED), (with_model, with_clip, NAMED))
    return latents(server, graph, *(graph.sample(m, graph.text(c, text), blank, steps=2) for m, c, text in given))


@pytest.fixture(scope="module")
def usual(server: Server) -> list[torch.Tensor]:
    """What a server without flags draws, with sub-quadratic attention."""
    assert "Using sub quadratic optimization" in server.log()
    return drawn(server)


@pytest.fixture
def flagged(setup: Setup, base_dir: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server with flags."""
    with Server(setup, base=base_dir, arguments=request.param, log_name="flagged.log") as running:
        yield running


@pytest.mark.parametrize(("flagged", "said", "near"), FLAGS.values(), ids=FLAGS, indirect=["flagged"])
def test_on_a_server_with_flags(flagged: Server, usual: list[torch.Tensor], said: str, near: float) -> None:
    base, plain, no_edit, named = found = drawn(flagged)
    assert said in flagged.log()
    assert torch.equal(plain, base) and worst(named, no_edit) > max(SEEN, near)
    assert max(worst(one, other) for one, other in zip(found, usual, strict=True)) < near


@pytest.mark.parametrize("flagged", [["--fp8_e4m3fn-unet", "--fp8_e4m3fn-text-enc"]], ids=["fp8"], indirect=True)
def test_with_weights_of_eight_bits_a_concept_does_the_same(flagged: Server, usual: list[torch.Tensor]) -> None:
    """Eight bits change every picture of this base by a third; a concept's hardly more, and what it does stays the same."""
    base, plain, no_edit, named = found = drawn(flagged)
    assert "weight dtype torch.float8_e4m3fn, manual cast: torch.float32" in flagged.log()
    assert torch.equal(plain, base) and worst(named, no_edit) > 0.1
    changed = [worst(one, other) for one, other in zip(found, usual, strict=True)]
    assert changed[3] < 1.5 * max(changed[:3]), changed
    done, wanted = named - no_edit, usual[3] - usual[2]
    assert torch.cosine_similarity(done.flatten(), wanted.flatten(), dim=0) > 0.6
    assert 0.8 < done.norm() / wanted.norm() < 1.25


@pytest.fixture(scope="module")
def divided(setup: Setup, base_dir: Path) -> dict:
    models, library = base_dir / "models", accelerator.build(setup.python, CACHE / "accelerator")
    given = (models / "checkpoints" / CHECKPOINT, models / "perfusion" / CONCEPT, library)
    return measure(setup.python, "inside_vram", setup.comfyui, *given)


@ON_LINUX
def test_where_weights_wait_beside_the_device_a_concept_is_taught_with_previews_and_a_lora(divided: dict) -> None:
    """As where all of them are there; and the base with its LoRA is then what it was, to the bit."""
    found = divided["taught"]
    low, high = found["losses"]["LOW_VRAM"], found["losses"]["HIGH_VRAM"]
    assert abs(low / high - 1) < 1e-3 and found["the base afterwards"] == 0
    # Of the plain word, on the way and of the concept, in both trainings.
    assert len(found["pictures"]) >= 6 and all(found["pictures"])


@ON_LINUX
@pytest.mark.parametrize(
    ("state", "least", "most"),
    [("LOW_VRAM", 0.1, 0.9), ("NO_VRAM", 0, 0.05), ("HIGH_VRAM", 1, 1)],
    ids=["lowvram", "novram", "highvram"],
)
def test_where_weights_wait_beside_the_device(divided: dict, state: str, least: float, most: float) -> None:
    """The flags mean nothing on a processor: this is the host, started with --lowvram, on a device with room for a part of the
    weights; then as --novram has it, and with all of them there.
    """
    measured = divided[state]
    assert least <= measured["share on the device"] <= most and divided["LOW_VRAM"]["before"] == "LOW_VRAM"
    assert measured["plain prompt"] == 0 and measured["concept"] > SEEN and measured["against all there"] < HALF
