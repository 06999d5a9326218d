"""A labelled grid of pictures."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SMALLEST = 192
"""Minimum shorter side of a picture in a grid, in pixels; smaller pictures are scaled up by an integer factor."""


def label(text: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """Render text in black on white, [h, w, 3] in 0…1; all labels in one font have the same height."""
    image = Image.new("L", (round(font.getlength(text)) + 1, sum(font.getmetrics())), 255)
    ImageDraw.Draw(image).text((0, 0), text, fill=0, font=font)
    return torch.from_numpy(np.asarray(image).copy()).float()[..., None].expand(-1, -1, 3) / 255


def labels_of(texts: Sequence[str], size: int, room: int) -> list[Tensor]:
    """Render labels in a font of `size` pixels, or in a smaller one if the widest does not fit into `room` pixels."""
    font = ImageFont.load_default(size)
    while max(font.getlength(text) for text in texts) >= room:
        size -= 1
        font = ImageFont.load_default(size)
    return [label(text, font) for text in texts]


def labelled_grid(pictures: Tensor, rows: Sequence[str], columns: Sequence[str]) -> Tensor:
    """Arrange pictures [R · C · S, h, w, 3] in 0…1, given in reading order, in a labelled grid [1, H, W, 3].

    A cell shows S pictures side by side. Pixel values are preserved exactly; the canvas is white.
    """
    count = len(pictures) // (len(rows) * len(columns))
    factor = max(1, -(-SMALLEST // min(pictures.shape[1:3])))
    pictures = pictures.cpu().float().repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    high, wide = pictures.shape[1:3]
    size = max(18, min(high, wide) // 12)
    thin, gap = max(2, size // 8), size // 2
    across = count * wide + (count - 1) * thin
    above, beside = labels_of(columns, size, across), labels_of(rows, size, across)
    top, left = above[0].shape[0] + 2 * gap, max(each.shape[1] for each in beside) + 2 * gap
    canvas = torch.ones(top + len(rows) * (high + gap), left + len(columns) * (across + gap), 3)

    def put(picture: Tensor, y: int, x: int) -> None:
        canvas[y : y + picture.shape[0], x : x + picture.shape[1]] = picture

    for column, text in enumerate(above):
        put(text, gap, left + column * (across + gap) + (across - text.shape[1]) // 2)
    for row, text in enumerate(beside):
        put(text, top + row * (high + gap) + (high - text.shape[0]) // 2, left - gap - text.shape[1])
    for i, picture in enumerate(pictures):
        row, rest = divmod(i, len(columns) * count)
        column, seed = divmod(rest, count)
        put(picture, top + row * (high + gap), left + column * (across + gap) + seed * (wide + thin))
    return canvas[None]
