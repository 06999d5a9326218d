"""Find an object in pictures, for masks that need no manual painting."""

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui
from torch import Tensor
from torch.nn.functional import interpolate

from ..perfusion_core import PerfusionError
from ..perfusion_core.attention_maps import refine_with_self_attention, soft_mask
from . import host
from .io_types import CATEGORY, validation_result


def check_word(word: str) -> None:
    """Raise PerfusionError if the word is empty."""
    if not word.strip():
        raise PerfusionError("Find Object needs the plain word for what the pictures show, such as teddy.")


class PerfusionFindObject(io.ComfyNode):
    """Makes masks of the object that a word names in pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionFindObject",
            display_name="Find Object (Perfusion)",
            category=CATEGORY,
            description="Makes a soft mask of what a plain word refers to in each picture, from the checkpoint's own attention; no "
            "other model is needed. Use the masks in Train Concept.",
            search_aliases=["perfusion", "mask", "segment", "zero-shot mask", "background removal"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model whose attention is read."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input("images", tooltip="Pictures of any size: a batch, or a list from a folder."),
                io.String.Input("word", default="teddy", tooltip="The plain word for the object: the superclass."),
                io.Int.Input(
                    "size",
                    default=512,
                    min=64,
                    max=2048,
                    step=32,
                    tooltip="Pictures are resized so that their longer side has this many pixels. Use the size that the model was "
                    "trained at: SD1 512, SD2 768, SDXL 1024.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the noise. Change it to try again.",
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="masks", tooltip="One mask for each picture, white where the object is.", is_output_list=True
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, word: list) -> bool | str:
        """Reject an empty word."""
        return validation_result(lambda: word[0] is None or check_word(word[0]))

    @classmethod
    def execute(cls, model: list, clip: list, vae: list, images: list, word: list, size: list, seed: list) -> io.NodeOutput:
        """Make a mask for each picture."""
        check_word(word[0])
        host.check_finding(model[0])
        bar = ProgressBar(sum(len(batch) for batch in images))
        masks = []
        for batch in images:
            found = []
            for picture in batch:
                found.append(mask_of(model[0], clip[0], vae[0], picture, word[0].strip(), size[0], seed[0]))
                bar.update(1)
            masks.append(torch.stack(found))
        return io.NodeOutput(masks, ui=ui.PreviewMask(torch.cat([resize_to_squares(batch, size[0]) for batch in masks])))


def mask_of(model: ModelPatcher, clip: CLIP, vae: VAE, picture: Tensor, word: str, size: int, seed: int) -> Tensor:
    """Return the soft mask [H, W] of the object that a word names in a picture [H, W, 3]."""
    height, width = picture.shape[:2]
    scale = size / max(height, width)
    seen = [max(64, round(side * scale / 32) * 32) for side in (height, width)]
    pixels = interpolate(picture[None, ..., :3].movedim(-1, 1).float(), seen, mode="bicubic", antialias=True).clamp(0, 1)
    latents = host.latents_of(vae, model, pixels.movedim(1, -1))
    looked, affinity, shape = host.object_attention(model, clip, latents, word, seed)
    outlined = refine_with_self_attention(looked, affinity).unflatten(1, shape)
    return soft_mask(interpolate(outlined[:, None], (height, width), mode="bicubic", antialias=True)[0, 0].clamp(0, 1)).cpu()


def resize_to_squares(masks: Tensor, side: int) -> Tensor:
    """Resize masks [B, H, W] to squares [B, side, side], for a preview in which all have the same size."""
    return interpolate(masks[:, None], (side, side), mode="bilinear", antialias=True)[:, 0]


NODES = [PerfusionFindObject]
