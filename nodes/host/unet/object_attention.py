"""Where a word looks in a given picture: cross-attention of the checkpoint itself, over the picture's noised latents."""

import functools

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ....perfusion_core import PerfusionError
from ....perfusion_core.attention_maps import attention, grid
from ..execution import check_interrupt
from ..model.families import layers_of
from ..model.loading import load
from ..text.encoding_notes import PLACE, notes_of
from ..text.trigger_words import clip_with_words
from .projection_hooks import queries_and_keys_seen

LAYOUT_TIMES = (0.3, 0.5, 0.7)
"""Noise levels, of 0 to 1, at which the word's cross-attention is read: there the model decides what is where."""

OUTLINE_TIMES = (0.05, 0.15)
"""Those at which self-attention is read: there the model sees the outlines of the picture that it was given."""

FEWEST, MOST = 8 * 8, 32 * 32
"""Pixels of the layers whose cross-attention is read: coarser ones say little of where, finer ones little of what."""

FINEST = 64 * 64
"""Most pixels of the layers whose self-attention is read; it has the square of them in numbers."""

PROMPT = "a photo of a {}"


def object_attention(
    model: ModelPatcher, clip: CLIP, latents: Tensor, word: str, seed: int = 0
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Where `word` looks in one picture.

    Args:
        model: its cross-attention is read; LoRAs on it count.
        clip: its text encoder.
        latents: [1, c, h, w], as the model sees them.
        word: such as "teddy".
        seed: of the noise.

    Returns:
        Attention to the word [1, p]; self-attention [1, p, p]; and height and width of the p pixels, the finest layer's.

    Raises:
        PerfusionError: the word has no place in the prompt, or the picture is too small for the model.
    """
    load(model)
    encoding, pooled, marks = _prompt(clip, word)
    unet, size = model.model.diffusion_model, tuple(latents.shape[-2:])
    names = list(layers_of(model))
    looked: dict[tuple[int, int], Tensor] = {}
    affinity: dict[tuple[int, int], Tensor] = {}

    def cross(query: Tensor, keys: Tensor, heads: int) -> None:
        if FEWEST <= query.shape[1] <= MOST:
            shape = grid(query.shape[1], *size)
            looked[shape] = looked.get(shape, 0) + attention(query, keys, heads)[..., marks].sum(3).mean(1)

    def own(query: Tensor, keys: Tensor, heads: int) -> None:
        if FEWEST <= query.shape[1] <= FINEST:
            shape = grid(query.shape[1], *size)
            affinity[shape] = affinity.get(shape, 0) + attention(query, keys, heads).mean(1)

    run = functools.partial(_denoise, model, latents, encoding, pooled, torch.Generator().manual_seed(seed))
    for times, ending, told in ((LAYOUT_TIMES, "attn2", cross), (OUTLINE_TIMES, "attn1", own)):
        layers = [name.removesuffix("attn2") + ending for name in names]
        with queries_and_keys_seen(unet, layers, told):
            for time in times:
                run(time)
    if not looked or not affinity:
        raise PerfusionError(f"The picture is too small to find {word} in it; use one of at least 64 pixels a side.")
    finest = max(affinity, key=lambda shape: shape[0] * shape[1])
    whole = sum(nn.functional.interpolate(m.unflatten(1, s)[:, None], finest, mode="bilinear") for s, m in looked.items())
    return whole.flatten(1), affinity[finest] / affinity[finest].sum(2, keepdim=True), finest


def _prompt(clip: CLIP, word: str) -> tuple[Tensor, dict, Tensor]:
    """The encoding of a prompt with the word, what comes beside it, and the places of the word's tokens, bool [N]."""
    knowing = clip_with_words(clip, ())
    ((encoding, pooled),) = knowing.encode_from_tokens_scheduled(knowing.tokenize(PROMPT.format(word)))
    frame = set(PROMPT.split())
    places = [p for said, p in notes_of(encoding, PLACE).items() if said not in frame and not said.startswith("<")]
    if not places:
        raise PerfusionError(f"{word!r} is no word to look for; write the plain word for what the pictures show, such as teddy.")
    return encoding.as_subclass(Tensor), pooled, torch.stack(places).sum(0)[0, :, 0] > 0


def _denoise(model: ModelPatcher, latents: Tensor, encoding: Tensor, beside: dict, generator: torch.Generator, time: float) -> None:
    """One call of the model on noised latents, as the host's sampler makes it."""
    check_interrupt()
    base, device = model.model, model.load_device
    sampling = base.model_sampling
    sigma = sampling.percent_to_sigma(1 - time)
    sigmas = torch.full((len(latents),), float(sigma), device=device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    x = sampling.noise_scaling(sigmas[:, None, None, None], noise, latents.to(device, torch.float32))
    conds = base.extra_conds(cross_attn=encoding, noise=x, device=device, **beside)
    given = {name: cond.process_cond(batch_size=len(latents), area=None).cond for name, cond in conds.items()}
    options = {"cond_or_uncond": [0], "sigmas": sigmas, "sample_sigmas": sigmas}
    base.apply_model(x, sigmas, **given, transformer_options=options)
