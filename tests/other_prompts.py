"""Nodes that treat prompts and encodings in the ways of other packs, for graphs of tests; see other_packs.py.

What each pack does to the tensors was read from its source; nothing is copied. Where it matters, the pack's name stands there.
"""

from __future__ import annotations

import copy
import functools
import io
import itertools
import math
import re
from collections.abc import Callable

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor, nn

import nodes

BLOCKS = [("input", 1), ("input", 3), ("middle", 0), *(("output", i) for i in range(4))]
"""The demo base's blocks that have cross-attention."""
COMMA = 267


class Node:
    """A node of tests."""

    CATEGORY, FUNCTION = "tests", "run"


# ---- nodes that rebuild an encoding


def saved(encoding: Tensor) -> Tensor:
    """As nodes that save a conditioning and load it again do."""
    file = io.BytesIO()
    torch.save([encoding, {}], file)
    file.seek(0)
    return torch.load(file)[0]


def added_in_place(encoding: Tensor) -> Tensor:
    plain = torch.zeros(encoding.shape)
    plain += encoding
    return plain


def token_by_token(encoding: Tensor) -> Tensor:
    return torch.stack([encoding[:, i] * 1.0 for i in range(encoding.shape[1])], 1)


REBUILT: dict[str, Callable[[Tensor], Tensor]] = {
    "deepcopy": copy.deepcopy,
    "save and load": saved,
    "numpy": lambda e: torch.from_numpy(e.numpy().copy()),
    "detach": lambda e: e.detach().clone(),
    "reshape": lambda e: e.reshape(-1, e.shape[-1]).view(1, -1, e.shape[-1]),
    "stack": lambda e: torch.stack([e, e]).mean(0),
    "lerp": lambda e: torch.lerp(torch.zeros_like(e), e, 1.0),
    "where": lambda e: torch.where(torch.ones(e.shape, dtype=torch.bool), e, 0.0),
    "pad": lambda e: nn.functional.pad(e, (0, 0, 0, 3))[:, :-3],
    "einsum": lambda e: torch.einsum("bnd,n->bnd", e, torch.ones(e.shape[1])),
    "chunk": lambda e: torch.cat(e.chunk(7, 1)[:3] + e.chunk(7, 1)[3:], 1),
    "flip": lambda e: e.flip(1).flip(1),
    "neg": lambda e: e.neg().neg(),
    "clamp": lambda e: e.clamp(-1000, 1000),
    "half": lambda e: e.to(torch.bfloat16).float(),
    "in place": added_in_place,
    "token by token": token_by_token,
}


class Rebuilt(Node):
    """Rebuilds an encoding without changing what it says."""

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"conditioning": ("CONDITIONING",), "how": (list(REBUILT),)}}

    def run(self, conditioning: list, how: str) -> tuple[list]:
        return ([[REBUILT[how](cond), extra] for cond, extra in conditioning],)


# ---- nodes that encode or read prompts their own way


class WeightedEncode(Node):
    """As BlenderNeko's Advanced encode with the weights of "comfy++".

    Heavier words come from the difference to prompts without them, which are encoded as sections of a single one.
    """

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"clip": ("CLIP",), "text": ("STRING", {"multiline": True})}}

    def run(self, clip: CLIP, text: str) -> tuple[list]:
        ((key, sections),) = clip.tokenize(text, return_word_ids=True).items()
        tokens = [token for section in sections for token in section]
        weights = torch.tensor([weight for _, weight, _ in tokens])

        def encode(groups: list[list]) -> Tensor:
            encoded = clip.encode_from_tokens({key: [[(token, 1.0) for token in group] for group in groups]})
            return encoded.reshape((len(groups), len(groups[0]), -1))

        base = encode([[token for token, *_ in tokens]]).reshape(1, len(tokens), -1)
        words = {word for _, weight, word in tokens if weight != 1}
        if words:
            without = [[COMMA if word == each else token for token, _, word in tokens] for each in words]
            masks = torch.stack([torch.tensor([float(word == each) for *_, word in tokens]) for each in words])[..., None]
            differences = base.expand(len(words), -1, -1) - encode(without)
            differences *= masks
            base += (weights.reshape(1, -1, 1) - 1) * differences.sum(axis=0, keepdim=True)
        return ([[base, {}]],)


class DirectEncode(Node):
    """As the same pack does for SDXL: it asks the text encoder itself, past the CLIP."""

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return WeightedEncode.INPUT_TYPES()

    def run(self, clip: CLIP, text: str) -> tuple[list]:
        ((_, sections),) = clip.tokenize(text, return_word_ids=True).items()
        comfy.model_management.load_model_gpu(clip.patcher)
        return ([[clip.cond_stage_model.clip_l.encode_token_weights([[t[:2] for t in s] for s in sections])[0], {}]],)


class OwnTokenizer(Node):
    """As smZNodes' CLIP Text Encode++: it puts a tokenizer of its own in the place of the CLIP's, whose tokens are two lists."""

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return WeightedEncode.INPUT_TYPES()

    def run(self, clip: CLIP, text: str) -> tuple[list]:
        part, encoder = clip.tokenizer.clip_l, clip.cond_stage_model.clip_l

        def tokenize(text: str, *args: object, **kwargs: object) -> list:
            section = SDTokenizer.tokenize_with_weights(part, text)[0]
            return [([[token for token, _ in section]], [[weight for _, weight in section]])]

        def encode(pairs: list) -> tuple:
            return type(encoder).encode_token_weights(encoder, [list(zip(t[0], w[0], strict=True)) for t, w in pairs])

        part.tokenize_with_weights, encoder.encode_token_weights = tokenize, encode
        try:
            return (clip.encode_from_tokens_scheduled(clip.tokenize(text)),)
        finally:
            del part.tokenize_with_weights, encoder.encode_token_weights


class WithoutTags(Node):
    """As LoRA tag loaders do with a prompt: whatever stands in angle brackets goes."""

    RETURN_TYPES = ("STRING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"text": ("STRING", {"multiline": True})}}

    def run(self, text: str) -> tuple[str]:
        return (re.sub(r"<[0-9a-zA-Z:_\-.\s/]+>", "", text),)


class NegPip(Node):
    """As CLIP NegPip: two encodings for each token, one for keys and one for values, which a negative weight turns round."""

    RETURN_TYPES = ("MODEL", "CLIP")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",)}}

    def run(self, model: ModelPatcher, clip: CLIP) -> tuple[ModelPatcher, CLIP]:
        model, clip = model.clone(), clip.clone()
        encoder = clip.patcher.model.clip_l
        model.set_model_attn2_patch(lambda q, k, v, options: (q, k[:, 0::2], v[:, 1::2]))
        clip.patcher.add_object_patch("clip_l.encode_token_weights", functools.partial(both, encoder))
        return model, clip


def both(encoder: nn.Module, pairs: list) -> tuple[Tensor, Tensor]:
    """The encodings of keys and values, in turns."""
    found, pooled = type(encoder).encode_token_weights(encoder, [[(t[0], abs(t[1])) for t in s] for s in pairs])
    signs = torch.tensor([-1.0 if token[1] < 0 else 1.0 for section in pairs for token in section]).to(found)
    whole = torch.zeros_like(found).repeat(1, 2, 1)
    whole[:, 0::2], whole[:, 1::2] = found, found * signs[:, None]
    return whole, pooled


# ---- nodes that bring prompts of regions past the UNet's own encoding


class Couple(Node):
    """As Attention Couple (PPM, prompt-control's COUPLE): through `attn2_patch` each half of the picture reads another prompt."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "left": ("CONDITIONING",), "right": ("CONDITIONING",)}}

    def run(self, model: ModelPatcher, left: list, right: list) -> tuple[ModelPatcher]:
        given = [left[0][0], right[0][0]]
        model = model.clone()

        def read(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
            kinds = options["cond_or_uncond"]
            rows = len(k) // len(kinds)
            length = math.lcm(k.shape[1], *(each.shape[1] for each in given))
            more = [each.to(k.device, k.dtype).repeat(rows, length // each.shape[1], 1) for each in given]
            queries, keys = [], []
            for kind, one, own in zip(kinds, q.chunk(len(kinds)), k.chunk(len(kinds)), strict=True):
                queries.append(one if kind else one.repeat(2, 1, 1))
                keys += [own.repeat(1, length // own.shape[1], 1)] if kind else more
            keys = torch.cat(keys)
            return torch.cat(queries), keys, keys

        def merge(out: Tensor, options: dict) -> Tensor:
            kinds = options["cond_or_uncond"]
            parts = list(out.chunk(sum(1 if kind else 2 for kind in kinds)))
            height, width = options["activations_shape"][-2:]
            first = (torch.arange(height * width) % width < width // 2).to(out)[:, None]
            whole = [parts.pop(0) if kind else parts.pop(0) * first + parts.pop(0) * (1 - first) for kind in kinds]
            return torch.cat(whole)

        model.set_model_attn2_patch(read)
        model.set_model_attn2_output_patch(merge)
        return (model,)


class CoupleByCopy(Node):
    """As ComfyCouple: it copies conditionings deeply and computes cross-attention itself, by the layers' own to_k and to_v."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING")

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {
            "required": {"model": ("MODEL",), "left": ("CONDITIONING",), "right": ("CONDITIONING",), "negative": ("CONDITIONING",)}
        }

    def run(self, model: ModelPatcher, left: list, right: list, negative: list) -> tuple[ModelPatcher, list, list]:
        positive, negative = copy.deepcopy(left + right), copy.deepcopy(negative)
        model, unet = model.clone(), model.model.diffusion_model
        for name, number in BLOCKS:
            block = unet.middle_block if name == "middle" else getattr(unet, f"{name}_blocks")[number]
            layer = next(each for each in block.modules() if hasattr(each, "attn2")).attn2

            def attend(q: Tensor, k: Tensor, v: Tensor, options: dict, layer: nn.Module = layer) -> Tensor:
                parts = []
                for kind, one in zip(options["cond_or_uncond"], q.chunk(len(options["cond_or_uncond"])), strict=True):
                    read = torch.cat([cond.to(q) for cond, _ in (negative if kind else positive)])
                    keys, values = layer.to_k(read), layer.to_v(read)
                    pairs = [[t[i : i + 1].expand(len(one), -1, -1) for t in (keys, values)] for i in range(len(read))]
                    each = [optimized_attention(one, *pair, options["n_heads"]) for pair in pairs]
                    side = math.isqrt(q.shape[1] // 2) * 2  # twice as wide as high
                    first = (torch.arange(q.shape[1]) % side < side // 2).to(q)[:, None]
                    parts.append(each[0] if kind else each[0] * first + each[1] * (1 - first))
                return torch.cat(parts)

            model.set_model_attn2_replace(attend, name, number)
        return model, [positive[0]], [negative[0]]


# ---- nodes between the sampler and the UNet


class OwnForward(Node):
    """As old versions of FreeU Advanced when they are imported: the UNet gets another forward; here for one run alone."""

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",)}}

    def run(self, model: ModelPatcher, positive: list, negative: list) -> tuple[dict]:
        kind = type(model.model.diffusion_model)
        usual = kind.forward

        def forward(self: nn.Module, x: Tensor, timesteps: Tensor, context: Tensor, y: object = None, control: object = None,
                    transformer_options: dict | None = None, **kwargs: object) -> Tensor:  # fmt: skip
            return self._forward(x, timesteps, context, y, control, transformer_options or {})

        kind.forward = forward
        try:
            empty = {"samples": torch.zeros(1, 4, 8, 8)}
            return nodes.common_ksampler(model, 1, 2, 3.0, "euler", "normal", positive, negative, empty)
        finally:
            kind.forward = usual


class OwnConditions(Node):
    """As wrappers that hand the model those conditions alone that they know, and options that they made anew."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: ModelPatcher) -> tuple[ModelPatcher]:
        def wrap(apply: Callable, given: dict) -> Tensor:
            options = {name: value for name, value in given["c"]["transformer_options"].items() if name != "uuids"}
            return apply(given["input"], given["timestep"], c_crossattn=given["c"]["c_crossattn"], transformer_options=options)

        model = model.clone()
        model.set_model_unet_function_wrapper(wrap)
        return (model,)


# ---- tiles


class Tiled(Node):
    """As Ultimate SD Upscale: each tile is a sampling run of its own, and a conditioning's pictures are cut along with it."""

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        given = {"model": ("MODEL",), "positive": ("CONDITIONING",), "negative": ("CONDITIONING",), "samples": ("LATENT",)}
        return {"required": given | {"denoise": ("FLOAT", {}), "tile": ("INT", {}), "cut": ("BOOLEAN", {})}}

    def run(
        self, model: ModelPatcher, positive: list, negative: list, samples: dict, denoise: float, tile: int, cut: bool
    ) -> tuple[dict]:
        whole = samples["samples"].clone()
        height, width = whole.shape[-2:]
        for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
            part = (slice(None), slice(None), slice(top, top + tile), slice(left, left + tile))
            conds = [positive, negative]
            if cut:
                conds = [[[cond, self.cut(extra, (height, width), part)] for cond, extra in each] for each in conds]
            latent = {"samples": whole[part].clone()}
            (drawn,) = nodes.common_ksampler(model, 1, 4, 3.0, "euler", "normal", *conds, latent, denoise=denoise)
            whole[part] = drawn["samples"]
        return ({"samples": whole},)

    def cut(self, extra: dict, canvas: tuple[int, int], part: tuple) -> dict:
        """A conditioning's entries for a tile."""
        extra = dict(extra)
        if isinstance(extra.get("reference_latents"), list):
            scaled = (nn.functional.interpolate(each, canvas, mode="bilinear") for each in extra["reference_latents"])
            extra["reference_latents"] = [
                nn.functional.interpolate(each[part], each[part].shape[-2:], mode="bilinear") for each in scaled
            ]
        return extra


NODE_CLASS_MAPPINGS = {
    f"Test{kind.__name__}": kind
    for kind in (
        Rebuilt, WeightedEncode, DirectEncode, OwnTokenizer, WithoutTags, NegPip, Couple, CoupleByCopy, OwnForward, OwnConditions,
        Tiled,
    )
}  # fmt: skip
