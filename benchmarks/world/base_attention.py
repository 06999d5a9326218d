"""Measure how the base's cross-attention at a character's pixels is divided: its noun, its colour, other words, padding."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from demo import world
from demo.individuals import HUES, MOODS, STYLES
from perfusion_fleet import inside
from scripts.setup import bootstrap

SCENES, LEVELS = 24, (200, 500, 800)
"""Number of scenes with a noun, and as many with a name; diffusion timesteps at which attention is measured."""
START, END = 49406, 49407


def rows(setup: bootstrap.Setup, checkpoint: str, cast: Path) -> list[str]:
    """Return the lines of a page: the mean share over all layers, heads, noise levels and scenes."""
    inside.enter(setup.comfyui)
    import comfy.sd

    file = setup.base / "models" / "checkpoints" / checkpoint
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(file), output_vae=True, output_clip=True)
    found = {}
    for called in (False, True):
        rng, shares, even = random.Random(7), [], []
        for _ in range(SCENES):
            picture, mask, text, noun = scene(cast, called, rng)
            tokens = [token for token, *_ in clip.tokenize(text)["l"][0]]
            groups = grouped(tokens, clip.tokenize(noun)["l"][0][1][0], {clip.tokenize(hue)["l"][0][1][0] for hue in HUES})
            latent = vae.encode(torch.from_numpy(np.asarray(picture)).float()[None] / 255)
            context = clip.encode_from_tokens(clip.tokenize(text))
            shares.append(looked(model, latent, context, mask, groups))
            even.append({name: groups.count(name) / len(groups) for name in set(groups)})
        of = "a name" if called else "a noun"
        for row, each in ((of, shares), (f"{of}, if attention were spread evenly over all tokens", even)):
            found[row] = {name: float(np.nanmean([one.get(name, np.nan) for one in each])) for name in GROUPS}
    lines = [f"| {name} | {' | '.join(cell(each[group]) for group in GROUPS)} |" for name, each in found.items()]
    return [
        f"Mean share of cross-attention over a character's own pixels, in {SCENES} scenes at {len(LEVELS)} noise levels, over all "
        "layers and heads. A word whose share is no larger than it would be if attention were spread evenly has an effect only "
        "through the magnitude of its value.",
        "",
        f"| captions with | {' | '.join(GROUPS)} |",
        "|" + " --- |" * (1 + len(GROUPS)),
        *lines,
    ]


def cell(share: float) -> str:
    """Format a share in per cent, NaN as a dash."""
    return f"{100 * share:.0f} %" if share == share else "–"


GROUPS = ("its noun or name", "a colour", "other words", "the start", "the padding")


def scene(cast: Path, called: bool, rng: random.Random) -> tuple[Image.Image, Image.Image, str, str]:
    """Draw a scene; return the picture, its mask, its caption, and the noun or name in the caption."""
    kind = rng.choice(list(STYLES))
    known = world.Cast(cast, kind, "base" if called else "development")
    i = rng.randrange(len(known.names) if called else len(known.individuals))
    mood = rng.choice(list(MOODS[kind]))
    picture, mask = world.compose(
        [world.Standing(known.picture(i, rng.choice(known.moods(i)[mood])))], place := rng.choice(world.PLACES), rng
    )
    said = world.describe(known.individuals[i], mood, False, rng, known.names[i] if called else "")
    return picture, mask, world.Caption.of("a photo of a {}", (said,), place).text, known.names[i] if called else kind


def grouped(tokens: list[int], noun: int, colours: set[int]) -> list[str]:
    """Return the name of each token's group."""
    end, found = tokens.index(END), []
    for i, token in enumerate(tokens):
        colour = token in colours and noun in tokens[i:]
        found.append(
            GROUPS[3] if i == 0 else GROUPS[4] if i >= end else GROUPS[0] if token == noun else GROUPS[1] if colour else GROUPS[2]
        )
    return found


def looked(model: Any, latent: Tensor, context: Tensor, mask: Image.Image, groups: list[str]) -> dict[str, float]:
    """Return by group the share of attention that it receives at the mask's pixels."""
    import comfy.model_management

    seen: list[Tensor] = []

    def see(attention: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
        if k.shape[1] == len(groups):
            parts = [x.float().unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k)]
            maps = (parts[0] @ parts[1].mT / parts[0].shape[-1] ** 0.5).softmax(-1).mean(1)[0]
            side = int(maps.shape[0] ** 0.5)
            inside = (
                F.interpolate(torch.from_numpy(np.asarray(mask, np.float32))[None, None] / 255, (side, side), mode="area").flatten()
                > 0.6
            )
            seen.append(maps[inside].mean(0))
        return attention(q, k, v, heads, *args, **kwargs)

    comfy.model_management.load_model_gpu(model)
    dice = torch.Generator().manual_seed(0)
    z = model.model.process_latent_in(latent)
    sampling = model.model.model_sampling
    with torch.no_grad():
        for level in LEVELS:
            sigma = sampling.sigma(torch.tensor([float(level)]))
            noised = z + sigma * torch.randn(z.shape, generator=dice)
            model.model.apply_model(noised, sigma, c_crossattn=context, transformer_options={"optimized_attention_override": see})
    mean = torch.stack(seen).mean(0)
    return {name: float(mean[[group == name for group in groups]].sum()) for name in set(groups)}
