"""Preparation of training pictures: cropped to squares or to buckets of similar shape, masked, scaled and encoded."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from .. import host


def flatten(batches: list[Tensor] | None) -> list[Tensor]:
    """Split a list of batches [B, H, W, …] into single pictures on the CPU; masks may lack the batch dimension."""
    pictures = []
    for batch in batches or ():
        if batch is not None:
            pictures += list((batch if batch.ndim >= 3 else batch[None]).cpu())
    return pictures


@dataclass(frozen=True)
class Sized:
    """Training pictures of one size.

    Attributes:
        numbers: the number of each among all pictures, from 0.
        images: [P, h, w, 3] in 0…1.
        masks: [P, h, w], soft, in 0…1.
    """

    numbers: tuple[int, ...]
    images: Tensor
    masks: Tensor


SQUARE, WHOLE = "square", "whole"
"""Whether the largest square is cut out of a picture, or the whole picture is used, in its own shape."""
WIDEST = 3.0
"""Largest ratio of sides of a picture that is used as a whole; longer pictures are cropped to it."""


def shape_of(picture: Tensor, size: int, shape: str) -> tuple[int, int]:
    """Return the height and the width at which a picture [H, W, C] is trained: those of its bucket.

    Buckets have about the area of a square of `size` pixels a side; their sides are multiples of 64 pixels, or of 8 for models of
    small pictures.
    """
    if shape == SQUARE:
        return size, size
    height, width = picture.shape[:2]
    root = min(max(width / height, 1 / WIDEST), WIDEST) ** 0.5
    step = 64 if size >= 256 else 8
    high, wide = (max(1, round(size * each / step)) * step for each in (1 / root, root))
    return (size, size) if high == wide else (high, wide)


def framed(picture: Tensor, mask: Tensor | None, high: int, wide: int) -> tuple[Tensor, Tensor]:
    """Crop a picture and its mask to the largest part of a shape around the object (or the picture's centre), and resize them.

    Args:
        picture: [H, W, C] in 0…1.
        mask: mask of the object, [h, w] in 0…1; resized to the picture. None if the whole picture counts.
        high: height of the result, in pixels.
        wide: its width.

    Returns:
        Picture [high, wide, 3] and mask [high, wide], both in 0…1.
    """
    picture = colours(picture).movedim(-1, 0)[None].float()
    height, width = picture.shape[2:]
    if mask is None:
        mask = torch.ones(height, width)
    mask = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", antialias=True)
    sides = min(height, round(width * high / wide)), min(width, round(height * wide / high))
    rows, columns = mask[0, 0].sum(1), mask[0, 0].sum(0)
    middle = [float((line * torch.arange(len(line))).sum() / line.sum()) + 0.5 for line in (rows, columns)]
    full = (height, width)
    top, left = (int(min(max(m - side / 2, 0), whole - side)) for m, side, whole in zip(middle, sides, full, strict=True))
    cut = [x[:, :, top : top + sides[0], left : left + sides[1]] for x in (picture, mask)]
    picture, mask = (F.interpolate(x, (high, wide), mode="bicubic" if x.shape[1] == 3 else "bilinear", antialias=True) for x in cut)
    return picture[0].movedim(0, -1).clamp(0, 1), mask[0, 0].clamp(0, 1)


def colours(picture: Tensor) -> Tensor:
    """Return a picture's red, green and blue [H, W, 3]; one of one or two channels is grey, with or without transparency."""
    return picture[..., :3] if picture.shape[-1] > 2 else picture[..., :1].expand(*picture.shape[:-1], 3)


def prepare(
    images: list[Tensor] | None, masks: list[Tensor] | None, size: int, shape: str = SQUARE, invert: bool = False
) -> list[Sized]:
    """Return training pictures and soft masks from images of any size, in buckets in the order of their first picture.

    With `invert`, masks are white where the object is not.

    Raises:
        PerfusionError: if there are no images, if one contains NaN or infinity, if the number of masks differs from
            theirs, or if a mask is empty.
    """
    pictures, marks = flatten(images), flatten(masks)
    if not pictures:
        raise PerfusionError("Training needs at least one picture of the concept; connect some to the images input.")
    for i, picture in enumerate(pictures):
        if not picture.isfinite().all():
            raise PerfusionError(f"Picture {i + 1} of {len(pictures)} contains NaN or infinity; leave it out.")
    if marks and len(marks) != len(pictures):
        raise PerfusionError(
            f"There are {len(pictures)} images and {len(marks)} masks; give one mask for each image, or none at all."
        )
    marks = [1 - mark if invert else mark for mark in marks]
    for i, mark in enumerate(marks):
        if not mark.isfinite().all() or mark.max() <= 0:
            raise PerfusionError(
                f"Mask {i + 1} of {len(marks)} is empty; paint it white where the object is, or disconnect all masks."
            )
    shapes = [shape_of(picture, size, shape) for picture in pictures]
    made = [framed(p, m, *to) for p, m, to in zip(pictures, marks or [None] * len(pictures), shapes, strict=True)]
    for i, (_, mark) in enumerate(made):
        if mark.max() <= 0:
            raise PerfusionError(
                f"Mask {i + 1} of {len(made)} is empty in the part of its picture that training uses, the area around the mask's "
                "centre; paint over one thing only, or crop the picture to it."
            )
    buckets = {to: tuple(i for i, each in enumerate(shapes) if each == to) for to in shapes}
    return [Sized(which, *(torch.stack([made[i][part] for i in which]) for part in (0, 1))) for which in buckets.values()]


RIM, MIDDLE = 1 / 16, 1 / 4
"""Shares of a mask's sides: the width of its rim, and half the width of its middle."""


def looks_inverted(mask: Tensor) -> bool:
    """Return whether a mask [h, w] is white along the rim and black in the middle, like that of a cut-out."""
    low, top = float(mask.min()), float(mask.max())
    if top - low < 0.2:
        return False
    mask, (high, wide) = (mask - low) / (top - low), mask.shape
    y, x = max(1, round(RIM * high)), max(1, round(RIM * wide))
    inside = mask[y:-y, x:-x]
    rim = (mask.sum() - inside.sum()) / (mask.numel() - inside.numel())
    rows, columns = (slice(round(n * (0.5 - MIDDLE)), round(n * (0.5 + MIDDLE))) for n in (high, wide))
    return bool(rim > 0.8 and mask[rows, columns].mean() < 0.4 and mask.mean() > 0.3)


def small(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Move the object into the left and the right half of the frame alternately, in pictures [B, h, w, 3] and their masks.

    If the object's longer side is more than half of the frame's, it is scaled down to that. The uncovered area repeats the
    colours of the picture's border and has weight 0 in the masks [B, h, w].
    """
    (high, wide), places = masks.shape[1:], []
    for i, mask in enumerate(masks):
        seen = mask > mask.max() / 2
        # Start and end of the object in -1…1, horizontally and vertically.
        ends = torch.stack([seen.any(axis).nonzero()[[0, -1], 0] + torch.tensor([0, 1]) for axis in (0, 1)])
        ends = ends * 2 / torch.tensor([[wide], [high]]) - 1
        grown = max(1.0, float((ends[:, 1] - ends[:, 0]).max()))
        shift = ends.mean(1) - grown * torch.tensor([i % 2 - 0.5, 0.0])
        places.append(torch.cat([grown * torch.eye(2), shift[:, None]], dim=1))
    grid = F.affine_grid(torch.stack(places), [len(masks), 1, high, wide], align_corners=False)
    frames = F.grid_sample(images.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
    return frames.movedim(1, -1), F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def latent_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Return weights [B, 1, height, width] for latents, each with a maximum of 1, from masks [B, H, W].

    They are squared: a cell at the object's edge also shows background, and should count for less than its share of the object.
    """
    small = F.interpolate(masks[:, None], (height, width), mode="area")
    return (small / small.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)).square()


def latent_forms(model: ModelPatcher, vae: VAE, images: Tensor, masks: Tensor, with_small: bool) -> tuple[Tensor, Tensor]:
    """Return latents [pictures, forms, c, h, w] and masks [pictures, forms, 1, h, w] of prepared pictures, for `loop.train`.

    Latents of videos have one frame, [pictures, forms, c, 1, h, w], and their masks too.

    The forms are the picture itself and its mirror image and, with `with_small`, the same two of `small`.
    """
    shown = [(images, masks), *([small(images, masks)] if with_small else [])]
    shown = [each for image, mask in shown for each in ((image, mask), (image.flip(2), mask.flip(2)))]
    latents = torch.stack([host.latents_of(vae, model, image) for image, _ in shown], dim=1)
    weights = torch.stack([latent_masks(mask, *latents.shape[-2:]) for _, mask in shown], dim=1)
    return latents, weights if latents.ndim == 5 else weights[:, :, :, None]
