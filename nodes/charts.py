"""Images of data: loss curves, attention maps over pictures and gate tables; and JPEG previews."""

import io

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..perfusion_core.concept_file import MAX_PREVIEW


def loss_image(losses: list[float], width: int, height: int, steps: int = 0) -> Image.Image:
    """Plot the loss over the steps with its running mean on top; the axis extends to `steps`, or to the last step if later."""
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
    """Return `loss_image` as a picture [1, height, width, 3] in 0…1."""
    return torch.from_numpy(np.asarray(loss_image(losses, width, height)).copy()).float()[None] / 255


def to_pil(picture: Tensor) -> Image.Image:
    """Convert a picture [H, W, 3] in 0…1 to a PIL image."""
    return Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8))


def preview_bytes(picture: Tensor) -> bytes:
    """Encode [H, W, 3] in 0…1 as a JPEG of at most 256 pixels a side and MAX_PREVIEW bytes; empty if no quality is small enough."""
    image = to_pil(picture)
    image.thumbnail((256, 256))
    for quality in (90, 80, 70, 60, 50, 35, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_PREVIEW:
            return buffer.getvalue()
    return b""


HEAT = torch.tensor([[0.0, 0.0, 0.3], [0.4, 0.0, 0.6], [0.9, 0.2, 0.4], [1.0, 0.6, 0.1], [1.0, 1.0, 0.6]])
"""Colour map, from the lowest value to the highest."""


def heat(values: Tensor) -> Tensor:
    """Map values in 0…1 to colours [..., 3]."""
    at = values.clamp(0, 1) * (len(HEAT) - 1)
    low = at.long().clamp(max=len(HEAT) - 2)
    return HEAT[low].lerp(HEAT[low + 1], (at - low)[..., None])


def overlay(picture: Tensor, mask: Tensor) -> Tensor:
    """Overlay the colours of a map [H, W] in 0…1 on a picture [H, W, 3], which is turned grey and darkened."""
    grey = picture.float().cpu().mean(2, keepdim=True).expand(-1, -1, 3)
    return (0.45 * grey + 0.55 * heat(mask.float().cpu())).clamp(0, 1)


def gate_table(rows: list[tuple[str, list[float]]], concepts: list[str]) -> Tensor:
    """Draw a table [1, H, W, 3] with one row per word and, for each concept, its gate as a bar and a number."""
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
