"""Compare Settings, in a real server: each cell against the host's own KSampler, and the grid that they stand in."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from perfusion_core.concept import Concept
from scripts.harness.graphs import TRIGGER, Graph, Link, latents
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import CHECKPOINT

OTHER = "<other-one>"
PROMPT = f"a photo of a {TRIGGER} and a {OTHER}"


@pytest.fixture(scope="module")
def pair(server: Server) -> tuple[str, str]:
    """Files of two concepts whose edits are large, the second's trigger word being OTHER."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, masks, steps=2, batch=2, seed=11), 0], "to-compare")
    server.run(graph.nodes)
    path = server.base / "models" / "perfusion" / "to-compare_00001.safetensors"
    taught = Concept.load(path)
    for name, trigger, turn in (("compare-one", TRIGGER, 1), ("compare-other", OTHER, 5)):
        values = {layer: 2 * o.roll(turn) for layer, o in taught.values.items()}
        replace(taught, trigger=trigger, values=values).save(path.with_name(f"{name}.safetensors"), torch.float32)
    return "compare-one.safetensors", "compare-other.safetensors"


def compare(graph: Graph, model: Link, vae: Link, positive: Link, negative: Link, **widgets: object) -> str:
    """The node, with few and quick cells."""
    inputs = {
        "biases": "0.2", "across": "temperature", "values": "0.15", "trigger": "", "seed": 1, "seeds": 1, "steps": 2, "cfg": 3.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    if "latent_image" not in widgets:
        widgets["latent_image"] = [graph.add("EmptyLatentImage", width=64, height=64, batch_size=1), 0]
    return graph.add("PerfusionSweep", model=model, vae=vae, positive=positive, negative=negative, **inputs | widgets)


def same(server: Server, graph: Graph, vae: Link, pictures: Link, samples: list[Link]) -> None:
    """The batch's pictures are those that the host decodes from the samples, bit for bit, and no two of them are one.

    Encoded again, in the same layout of memory, they tell of every bit.
    """
    decoded = {f"images__image{i}": [graph.add("VAEDecode", samples=s, vae=vae), 0] for i, s in enumerate(samples)}
    both, encoded = (pictures, [graph.add("BatchImagesNode", **decoded), 0]), []
    for batch, i in itertools.product(both, range(len(samples))):
        picture = graph.add("ImageFromBatch", image=batch, batch_index=i, length=1)
        encoded.append([graph.add("VAEEncode", pixels=[picture, 0], vae=vae), 0])
    found = latents(server, graph, *encoded)
    mine, hosts = found[: len(samples)], found[len(samples) :]
    assert all(torch.equal(a, b) for a, b in zip(mine, hosts, strict=True))
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(mine, 2))


def test_each_picture_is_what_ksampler_gives_with_these_settings(server: Server, pair: tuple[str, str]) -> None:
    """With patches of weights and of guidance on the model, and one of its two concepts varied."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    model = [graph.add("UNetCrossAttentionMultiply", model=model, q=1.1, k=0.9, v=1.2, out=0.8), 0]

    def patched(concept: Link) -> tuple[Link, Link, Link]:
        m, c = graph.apply(model, clip, graph.combine(concept, graph.load(pair[1])))
        m = [graph.add("RescaleCFG", model=m, multiplier=0.5), 0]
        return m, graph.text(c, PROMPT), graph.text(c, "")

    varied = {"biases": "0.2, 0.55", "values": "0.05; 0.3", "seeds": 2, "seed": 2**64 - 1, "trigger": TRIGGER.upper()}
    swept = compare(graph, *(inputs := patched(graph.load(pair[0])))[:1], vae, *inputs[1:], **varied)
    samples = []
    for bias, temperature in itertools.product((0.2, 0.55), (0.05, 0.3)):
        inputs = patched(graph.load(pair[0], bias=bias, temperature=temperature))
        samples += [graph.sample(*inputs, steps=2, seed=seed) for seed in (2**64 - 1, 0)]
    same(server, graph, vae, [swept, 1], samples)


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_strength_0_is_the_model_without_the_concept(server: Server, pair: tuple[str, str], mode: str) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    one, other = graph.load(pair[0]), graph.load(pair[1], bias=0.3)
    m, c = graph.apply(model, clip, graph.combine(one, other), mode)
    prompts = graph.text(c, PROMPT), graph.text(c, "")
    strengths = {"across": "strength", "values": "0 0.5"}
    alone = compare(graph, m, vae, *prompts, trigger=TRIGGER, **strengths)
    both = compare(graph, m, vae, *prompts, **strengths)
    without = graph.apply(model, clip, other, mode)[0]
    half = [graph.load(pair[0], bias=0.2, strength=0.5), graph.load(pair[1], bias=0.2, strength=0.5)]
    half_one, half_both = (graph.apply(model, clip, graph.combine(half[0], each), mode)[0] for each in (other, half[1]))
    joined = [graph.add("ImageBatch", image1=[alone, 1], image2=[both, 1]), 0]
    same(server, graph, vae, joined, [graph.sample(x, *prompts, steps=2) for x in (without, half_one, model, half_both)])


def test_the_first_of_a_masked_batch_is_taken_as_ksampler_takes_it(server: Server, pair: tuple[str, str]) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(pair[0]))
    prompts = graph.text(c, f"a {TRIGGER}"), graph.text(c, "")
    loaded = graph.add("LoadImage", image="monster-0.png")
    small = graph.add("ImageScale", image=[loaded, 0], upscale_method="area", width=64, height=64, crop="disabled")
    encoded = [graph.add("VAEEncode", pixels=[small, 0], vae=vae), 0]
    several = [graph.add("RepeatLatentBatch", samples=encoded, amount=3), 0]
    masked = [graph.add("SetLatentNoiseMask", samples=several, mask=[loaded, 1]), 0]
    later = [graph.add("LatentFromBatch", samples=masked, batch_index=1, length=2), 0]
    first = [graph.add("LatentFromBatch", samples=later, batch_index=0, length=1), 0]
    how = {"steps": 4, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 0.6, "cfg": 3.0}
    swept = compare(graph, m, vae, *prompts, latent_image=later, values="0.05, 0.3", **how)
    samples = []
    for temperature in (0.05, 0.3):
        m, _ = graph.apply(model, clip, graph.load(pair[0], bias=0.2, temperature=temperature))
        inputs = {"model": m, "positive": prompts[0], "negative": prompts[1], "latent_image": first, "seed": 1}
        samples.append([graph.add("KSampler", **inputs, **how), 0])
    same(server, graph, vae, [swept, 1], samples)


# ---- the grid ----------------------------------------------------------------------------------------------------------------


def drawn(server: Server, pair: tuple[str, str], width: int, height: int, **widgets: object) -> tuple[np.ndarray, list[np.ndarray]]:
    """The grid and its pictures, as the host saves them."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(pair[0]))
    empty = graph.add("EmptyLatentImage", width=width, height=height, batch_size=1)
    prompts = graph.text(c, f"a {TRIGGER}"), graph.text(c, "")
    swept = compare(graph, m, vae, *prompts, latent_image=[empty, 0], steps=1, **widgets)
    saved = [graph.add("PreviewImage", images=[swept, i]) for i in (0, 1)]
    history = server.run(graph.nodes)
    grids, pictures = ([np.asarray(Image.open(p).convert("RGB")) for p in server.outputs(history, node, "temp")] for node in saved)
    assert len(grids) == 1
    return grids[0], pictures


def places(grid: np.ndarray, picture: np.ndarray) -> list[tuple[int, int]]:
    """Where in the grid the picture's corners can be, given that it is there to the bit."""
    high, wide = picture.shape[:2]
    starts = np.argwhere((grid[: -high + 1, : -wide + 1] == picture[0, 0]).all(-1))
    return [(y, x) for y, x in starts.tolist() if np.array_equal(grid[y : y + high, x : x + wide], picture)]


def ink(part: np.ndarray) -> tuple[int, int]:
    """Height and width of what is dark."""
    rows, columns = np.nonzero((part < 128).all(-1))
    return int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1


def test_small_pictures_are_scaled_up_and_stand_in_reading_order_under_their_labels(server: Server, pair: tuple[str, str]) -> None:
    grid, pictures = drawn(server, pair, 128, 64, biases="0.1, 0.6", values="0.05, 0.15, 0.30", seeds=2)
    assert len(pictures) == 12 and {p.shape for p in pictures} == {(64, 128, 3)}
    found = [places(grid, picture.repeat(3, 0).repeat(3, 1)) for picture in pictures]
    assert all(len(each) == 1 for each in found)
    corners = [each[0] for each in found]
    assert corners == sorted(corners) and len(set(corners)) == 12
    (tops, lefts) = ({corner[i] for corner in corners} for i in (0, 1))
    assert len(tops) == 2 and len(lefts) == 6
    steps = np.diff(sorted(lefts)) - 3 * 128
    assert 0 < steps[0] == steps[2] == steps[4] < steps[1] == steps[3]
    heads = [grid[: min(tops), x : x + 2 * 384] for x in sorted(lefts)[::2]]
    sides = [grid[y : y + 192, : min(lefts)] for y in sorted(tops)]
    for label in heads + sides:
        high, wide = ink(label)
        assert high >= 11 and wide > 3 * high
    assert not np.array_equal(*sides) and not any(np.array_equal(a, b) for a, b in itertools.combinations(heads, 2))


@pytest.mark.parametrize(("side", "factor", "least"), [(320, 1, 18), (64, 3, 11)])
def test_labels_grow_with_pictures_and_never_beyond_them(
    server: Server, pair: tuple[str, str], side: int, factor: int, least: int
) -> None:
    grid, (picture,) = drawn(server, pair, side, side, biases="-0.123456", values="1.23456e-05")
    ((top, left),) = places(grid, picture.repeat(factor, 0).repeat(factor, 1))
    high, wide = ink(grid[:top])
    assert high >= least and wide <= side * factor
    assert ink(grid[top:, :left])[0] >= least


# ---- progress, interruption, refusals ----------------------------------------------------------------------------------------


def test_progress_runs_over_all_cells_with_previews_and_stops_when_asked(server: Server, pair: tuple[str, str]) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(pair[0]))
    swept = compare(
        graph, m, vae, graph.text(c, f"a {TRIGGER}"), graph.text(c, ""), biases="0.1 0.2 0.3", seeds=30, steps=6, seed=5
    )
    graph.add("PreviewImage", images=[swept, 0])

    async def follow() -> tuple[list[int], int]:
        values, previews = [], 0
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.address}/ws?clientId=follower") as socket:
            body = {"prompt": graph.nodes, "client_id": "follower", "extra_data": {"preview_method": "latent2rgb"}}
            prompt = server.post("/prompt", body)["prompt_id"]
            async for message in socket:
                previews += message.type == aiohttp.WSMsgType.BINARY
                told = message.json() if message.type == aiohttp.WSMsgType.TEXT else {"type": "preview"}
                if told["type"] == "progress" and told["data"]["node"] == swept:
                    assert told["data"]["max"] == 3 * 30 * 6
                    values.append(told["data"]["value"])
                    # Within the third picture.
                    if values[-1] == 2 * 6 + 3:
                        server.interrupt(prompt)
                if told["type"] in ("execution_interrupted", "execution_error", "execution_success"):
                    break
        with pytest.raises(GraphError, match="interrupted"):
            server.wait(prompt, 60)
        return values, previews

    values, previews = asyncio.run(asyncio.wait_for(follow(), 120))
    assert values == list(range(values[0], values[-1] + 1)) and values[0] == 1 and values[-1] < 5 * 6
    assert previews >= 2 * 6


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"biases": " , "}, ["at least one bias"]),
        ({"values": ""}, ["at least one temperature"]),
        ({"biases": "0.3, low"}, ["'low'", "not a number"]),
        ({"biases": "nan"}, ["bias must be", "nan"]),
        ({"biases": "11"}, ["between -10 and 10", "11"]),
        ({"values": "0.1, 0"}, ["temperature must be above 0"]),
        ({"values": "-0.1"}, ["temperature must be above 0"]),
        ({"values": "0.5, 1.1", "across": "strength"}, ["strength must be between 0 and 1", "1.1"]),
        ({"values": "-0.1", "across": "strength"}, ["strength must be between 0 and 1"]),
        ({"biases": "0.1 0.2 0.3", "values": "0.1 0.2", "seeds": 17}, ["3 biases × 2 temperatures × 17 seeds", "102", "100"]),
        ({"trigger": "<nobody>"}, ["<nobody>", TRIGGER]),
        ({"seeds": 0}, ["seeds", "min"]),
        ({"across": "seed"}, ["across"]),
    ],
)
def test_what_cannot_be_compared_is_refused(server: Server, pair: tuple[str, str], widgets: dict, words: list[str]) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(pair[0]))
    refused(server, graph, compare(graph, m, vae, graph.text(c, ""), graph.text(c, ""), **widgets), *words)


def test_a_checkpoint_without_a_vae_is_refused_before_anything_is_sampled(server: Server, pair: tuple[str, str]) -> None:
    file = server.base / "models" / "checkpoints" / "no-vae.safetensors"
    whole = load_file(file.with_name(CHECKPOINT))
    save_file({name: tensor for name, tensor in whole.items() if not name.startswith("first_stage_model.")}, file)
    try:
        graph = Graph()
        model, clip, vae = graph.checkpoint(file.name)
        m, c = graph.apply(model, clip, graph.load(pair[0]))
        # More images than fit: that sentence would come first if the VAE were checked later.
        widgets = {"biases": "0.1 0.2 0.3", "values": "0.1 0.2", "seeds": 17}
        refused(server, graph, compare(graph, m, vae, graph.text(c, ""), graph.text(c, ""), **widgets), "No VAE")
    finally:
        file.unlink()


def test_a_model_without_concepts_is_refused(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    refused(server, graph, compare(graph, model, vae, graph.text(clip, ""), graph.text(clip, "")), "no concepts", "Apply Concept")


def refused(server: Server, graph: Graph, node: str, *words: str) -> None:
    graph.add("PreviewImage", images=[node, 0])
    with pytest.raises(GraphError) as failure:
        server.run(graph.nodes)
    assert all(word in str(failure.value) for word in words) and "\n" not in str(failure.value)
