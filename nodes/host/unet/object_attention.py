"""Which parts of a given image attend to a word, from the checkpoint's own cross-attention over the image's noised latents."""

import functools

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ....perfusion_core import PerfusionError
from ....perfusion_core.attention_maps import attention, layer_resolution
from ..execution import check_interrupt
from ..model.families import kind_of, layers_of
from ..model.loading import load
from ..text.annotated_encoding import WORD_POSITIONS
from ..text.clip_with_words import clip_with_words
from ..text.encoding_notes import notes_of
from .projection_hooks import observe_queries_and_keys

LAYOUT_TIMES = (0.3, 0.5, 0.7)
"""Noise levels between 0 and 1 at which the word's cross-attention is read; at these the model decides what goes where."""

OUTLINE_TIMES = (0.05, 0.15)
"""Noise levels at which self-attention is read; at these the model sees the outlines of the given image."""

FEWEST, MOST = 8 * 8, 32 * 32
"""Range of pixel counts of the layers whose cross-attention is read: coarser layers say little about where, finer about what."""

FINEST = 64 * 64
"""Largest pixel count of the layers whose self-attention is read; the size of that map is the square of the count."""

PROMPT = "a photo of a {}"


def check_finding(model: ModelPatcher) -> None:
    """Raise PerfusionError if objects cannot be found with a model of this family."""
    family = kind_of(model)
    if not family.controlled:
        raise PerfusionError(
            f"Find Object can read the attention of Stable Diffusion 1, 2 and XL only, but this model is {family.name}; connect a "
            "checkpoint of one of these, or use masks from another node."
        )


def object_attention(
    model: ModelPatcher, clip: CLIP, latents: Tensor, word: str, seed: int = 0
) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Return how much each part of one image attends to `word`.

    Args:
        model: the model whose attention is read, including the effect of LoRAs on it.
        clip: its text encoder.
        latents: [1, c, h, w], in the model's own scaling.
        word: a plain word, such as "teddy".
        seed: seed of the noise.

    Returns:
        Attention to the word [1, p]; self-attention [1, p, p], whose rows sum to 1; and height and width of the p pixels, those of
        the finest layer whose self-attention is read.

    Raises:
        PerfusionError: the word has no token of its own in the prompt, or the image is too small for the model.
    """
    load(model)
    encoding, pooled, marks = _prompt(clip, word)
    unet, size = model.model.diffusion_model, tuple(latents.shape[-2:])
    names = list(layers_of(model))
    looked: dict[tuple[int, int], Tensor] = {}
    affinity: dict[tuple[int, int], Tensor] = {}

    def cross(query: Tensor, keys: Tensor, heads: int) -> None:
        if FEWEST <= query.shape[1] <= MOST:
            shape = layer_resolution(query.shape[1], *size)
            looked[shape] = looked.get(shape, 0) + attention(query, keys, heads)[..., marks].sum(3).mean(1)

    def own(query: Tensor, keys: Tensor, heads: int) -> None:
        if FEWEST <= query.shape[1] <= FINEST:
            shape = layer_resolution(query.shape[1], *size)
            affinity[shape] = affinity.get(shape, 0) + attention(query, keys, heads).mean(1)

    run = functools.partial(_denoise, model, latents, encoding, pooled, torch.Generator().manual_seed(seed))
    for times, ending, observe in ((LAYOUT_TIMES, "attn2", cross), (OUTLINE_TIMES, "attn1", own)):
        layers = [name.removesuffix("attn2") + ending for name in names]
        with observe_queries_and_keys(unet, layers, observe):
            for time in times:
                run(time)
    if not looked or not affinity:
        raise PerfusionError(
            f"Find Object cannot look for {word} at this size, because no layer of the model has enough pixels; set size to the "
            "one that the model was trained at."
        )
    finest = max(affinity, key=lambda shape: shape[0] * shape[1])
    whole = sum(nn.functional.interpolate(m.unflatten(1, s)[:, None], finest, mode="bilinear") for s, m in looked.items())
    return whole.flatten(1), affinity[finest] / affinity[finest].sum(2, keepdim=True), finest


def _prompt(clip: CLIP, word: str) -> tuple[Tensor, dict, Tensor]:
    """Return the encoding of a prompt with the word, the rest of its conditioning, and the word's tokens, bool [N]."""
    knowing = clip_with_words(clip, ())
    ((encoding, pooled),) = knowing.encode_from_tokens_scheduled(knowing.tokenize(PROMPT.format(word)))
    frame = set(PROMPT.split())
    places = [p for said, p in notes_of(encoding, WORD_POSITIONS).items() if said not in frame and not said.startswith("<")]
    if not places:
        raise PerfusionError(
            f"{word!r} is not a word that Find Object can look for; write the plain word for what the pictures show, such as teddy."
        )
    return encoding.as_subclass(Tensor), pooled, torch.stack(places).any(0)[0].any(1)


def _denoise(model: ModelPatcher, latents: Tensor, encoding: Tensor, beside: dict, generator: torch.Generator, time: float) -> None:
    """Call the model once on noised latents, as the host's sampler does."""
    check_interrupt()
    base, device = model.model, model.load_device
    sampling = base.model_sampling
    sigma = sampling.percent_to_sigma(1 - time)
    sigmas = torch.full((len(latents),), float(sigma), device=device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    x = sampling.noise_scaling(sigmas[:, None, None, None], noise, latents.to(device, torch.float32))
    # Inpainting models read a picture beside the latents; theirs is empty.
    conds = base.extra_conds(cross_attn=encoding, noise=x, latent_image=torch.zeros_like(x), device=device, **beside)
    given = {name: cond.process_cond(batch_size=len(latents), area=None).cond for name, cond in conds.items()}
    options = {"cond_or_uncond": [0], "sigmas": sigmas, "sample_sigmas": sigmas}
    base.apply_model(x, sigmas, **given, transformer_options=options)
