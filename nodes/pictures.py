"""Pictures on their way in (resized, cropped, masked) and out (loss plots, previews)."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import MAX_PREVIEW


def flatten(batches: list[Tensor] | None) -> list[Tensor]:
    """Every single picture of a list of batches [B, H, W, …], on the CPU; masks may lack their batch dimension."""
    pictures = []
    for batch in batches or ():
        if batch is not None:
            pictures += list((batch if batch.ndim >= 3 else batch[None]).cpu())
    return pictures


def square(picture: Tensor, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """The picture's largest square around its object (or its middle), and the mask of it, both `size` pixels a side.

    Args:
        picture: [H, W, C] in 0…1.
        mask: [h, w] in 0…1, the object's; scaled to the picture. Without one the whole picture counts.
        size: pixels.

    Returns:
        Picture [size, size, 3] and mask [size, size].
    """
    picture = picture[..., :3].movedim(-1, 0)[None].float()
    height, width = picture.shape[2:]
    if mask is None:
        mask = torch.ones(height, width)
    mask = F.interpolate(mask[None, None].float(), (height, width), mode="bilinear", antialias=True)
    side = min(height, width)
    rows, columns = mask[0, 0].sum(1), mask[0, 0].sum(0)
    middle = [float((line * torch.arange(len(line))).sum() / line.sum()) + 0.5 for line in (rows, columns)]
    top, left = (int(min(max(m - side / 2, 0), full - side)) for m, full in zip(middle, (height, width), strict=True))
    cut = [x[:, :, top : top + side, left : left + side] for x in (picture, mask)]
    picture, mask = (F.interpolate(x, (size, size), mode="bicubic" if x.shape[1] == 3 else "bilinear", antialias=True) for x in cut)
    return picture[0].movedim(0, -1).clamp(0, 1), mask[0, 0].clamp(0, 1)


def prepare(images: list[Tensor] | None, masks: list[Tensor] | None, size: int) -> tuple[Tensor, Tensor]:
    """Training pictures [B, size, size, 3] and soft masks [B, size, size] of images of any size.

    Raises:
        PerfusionError: there are no images, other than as many masks, or a mask that is empty.
    """
    pictures, marks = flatten(images), flatten(masks)
    if not pictures:
        raise PerfusionError("Training needs at least one picture of the concept; connect some to images.")
    if marks and len(marks) != len(pictures):
        raise PerfusionError(
            f"There are {len(pictures)} images and {len(marks)} masks; give one mask for each image, or none at all."
        )
    for i, mark in enumerate(marks):
        if not mark.isfinite().all() or mark.max() <= 0:
            raise PerfusionError(f"Mask {i + 1} of {len(marks)} is empty; it should be white where the object is.")
    made = [square(p, m, size) for p, m in zip(pictures, marks or [None] * len(pictures), strict=True)]
    return torch.stack([p for p, _ in made]), torch.stack([m for _, m in made])


def small(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures [B, size, size, 3] and masks [B, size, size] of the object in the left half and in the right one, in turn.

    Its longer side is half of the frame's, if it was more. What is then bare goes on in the colours of the picture's edge, and
    counts for nothing.
    """
    size, places = masks.shape[-1], []
    for i, mask in enumerate(masks):
        seen = mask > mask.max() / 2
        # Where it starts and ends, from -1 to 1, across and down.
        ends = torch.stack([seen.any(axis).nonzero()[[0, -1], 0] + torch.tensor([0, 1]) for axis in (0, 1)]) * 2 / size - 1
        grown = max(1.0, float((ends[:, 1] - ends[:, 0]).max()))
        shift = ends.mean(1) - grown * torch.tensor([i % 2 - 0.5, 0.0])
        places.append(torch.cat([grown * torch.eye(2), shift[:, None]], dim=1))
    grid = F.affine_grid(torch.stack(places), [len(masks), 1, size, size], align_corners=False)
    frames = F.grid_sample(images.movedim(-1, 1), grid, padding_mode="border", align_corners=False)
    return frames.movedim(1, -1), F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def latent_masks(masks: Tensor, height: int, width: int) -> Tensor:
    """Weights [B, 1, height, width] for latents, each with a maximum of 1, of masks [B, H, W].

    Squared: a cell at the object's edge shows its background too, and counts for less than its share of the object.
    """
    small = F.interpolate(masks[:, None], (height, width), mode="area")
    return (small / small.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)).square()


def loss_image(losses: list[float], width: int, height: int, steps: int = 0) -> Image.Image:
    """The loss over the steps, its running mean in front; the axis goes to `steps`, or to the last one."""
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    values = np.asarray(losses)
    window = max(1, len(values) // 20)
    mean = np.convolve(np.pad(values, (window - 1, 0), mode="edge"), np.ones(window) / window, mode="valid")
    top = float(np.quantile(values, 0.99)) * 1.1 or 1.0
    long = max(len(values), steps, 2) - 1

    def points(line: np.ndarray) -> list[tuple[float, float]]:
        x = 40 + (width - 52) * np.arange(len(line)) / long
        return list(zip(x.tolist(), (height - 28 - (height - 40) * np.clip(line / top, 0, 1)).tolist(), strict=True))

    pen.line([(40, 12), (40, height - 28), (width - 12, height - 28)], fill="gray")
    if len(values) > 1:
        pen.line(points(values), fill=(190, 210, 235))
        pen.line(points(mean), fill=(30, 90, 180), width=2)
    pen.text((4, 8), f"{top:.2g}", fill="gray")
    pen.text((26, height - 34), "0", fill="gray")
    pen.text((width - 132, height - 20), f"step {len(values)}, loss {mean[-1]:.3g}", fill="gray")
    return image


def loss_plot(losses: list[float], width: int = 640, height: int = 360) -> Tensor:
    """`loss_image` as a picture [1, height, width, 3]."""
    return torch.from_numpy(np.asarray(loss_image(losses, width, height)).copy()).float()[None] / 255


def to_pil(picture: Tensor) -> Image.Image:
    """A PIL picture of [H, W, 3] in 0…1."""
    return Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8))


def preview_bytes(picture: Tensor) -> bytes:
    """A JPEG of [H, W, 3] in 0…1, at most 256 pixels a side and MAX_PREVIEW bytes."""
    image = to_pil(picture)
    image.thumbnail((256, 256))
    for quality in (90, 80, 70, 60, 50, 35, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_PREVIEW:
            return buffer.getvalue()
    return b""


HEAT = torch.tensor([[0.0, 0.0, 0.3], [0.4, 0.0, 0.6], [0.9, 0.2, 0.4], [1.0, 0.6, 0.1], [1.0, 1.0, 0.6]])
"""Colours from nothing to most."""


def heat(values: Tensor) -> Tensor:
    """Colours [..., 3] of values in 0…1."""
    at = values.clamp(0, 1) * (len(HEAT) - 1)
    low = at.long().clamp(max=len(HEAT) - 2)
    return HEAT[low].lerp(HEAT[low + 1], (at - low)[..., None])


def overlay(picture: Tensor, mask: Tensor) -> Tensor:
    """A picture [H, W, 3], grey and darkened, under the colours of a map [H, W] in 0…1."""
    grey = picture.float().cpu().mean(2, keepdim=True).expand(-1, -1, 3)
    return (0.45 * grey + 0.55 * heat(mask.float().cpu())).clamp(0, 1)


def gate_table(rows: list[tuple[str, list[float]]], concepts: list[str]) -> Tensor:
    """A table [1, H, W, 3]: for each row its word, and for each concept a bar of its gate with the number."""
    font, line, label, wide, edge = ImageFont.load_default(16), 26, 190, 210, 12
    image = Image.new("RGB", (label + wide * max(1, len(concepts)) + edge, line * (len(rows) + 1) + 2 * edge), "white")
    pen = ImageDraw.Draw(image)
    for j, concept in enumerate(concepts):
        pen.text((label + wide * j, edge), concept[:24], "black", font)
    for i, (word, gates) in enumerate(rows):
        y = edge + line * (i + 1)
        pen.text((edge, y), word[:20], "black", font)
        for j, gate in enumerate(gates):
            left, full = label + wide * j, wide - 70
            colour = tuple(int(255 * float(channel)) for channel in heat(torch.tensor(gate)))
            pen.rectangle((left, y + 2, left + full, y + line - 6), outline=(225, 225, 225))
            pen.rectangle((left, y + 2, left + max(1, round(full * gate)), y + line - 6), fill=colour)
            pen.text((left + full + 8, y), f"{gate:.2f}", "black" if gate >= 0.005 else "gray", font)
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255
