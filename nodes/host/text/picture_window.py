"""Which part of the whole picture a sampling run covers, where another node samples the picture in tiles.

A tile's run knows nothing about the rest. But nodes that sample in tiles crop whatever in the conditionings belongs to the picture,
including the pictures under `reference_latents`. Models of the Stable Diffusion family ignore these, so a map of places can be
passed there; the part that is left of it shows where the tile is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

PLACES = "reference_latents"
"""The entry of a conditioning that contains the map, beside others that the user may have put there."""
SIDE = 64
Window = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, as shares of its width and height."""
WHOLE: Window = (0.0, 0.0, 1.0, 1.0)


def place_map() -> Tensor:
    """Return each pixel's place in the whole picture, as shares of its width and height, [1, 2, SIDE, SIDE]."""
    centres = (torch.arange(SIDE) + 0.5) / SIDE
    return torch.stack(torch.meshgrid(centres, centres, indexing="xy"))[None]


def window_of(conditionings: Iterable[Mapping[str, Any]]) -> Window:
    """Return the part of the picture that conditionings are for: the whole one, unless a map in them was cut."""
    for each in conditionings:
        maps = each.get(PLACES)
        for found in maps if isinstance(maps, list) else ():
            if isinstance(found, Tensor) and found.ndim == 4 and found.shape[1] == 2 and min(found.shape[2:]) > 1:
                (left, right), (top, bottom) = _ends(found[0, 0].mean(0)), _ends(found[0, 1].mean(1))
                return left, top, right, bottom
    return WHOLE


def _ends(places: Tensor) -> tuple[float, float]:
    """Return the ends of the span whose pixels' centres have these places, [n]; they are equally far apart."""
    places = places.double()
    centres = (torch.arange(len(places), device=places.device, dtype=torch.float64) + 0.5) / len(places)
    # A map that was scaled up is flat along the picture's rim.
    inner = (places > 0.5 / SIDE) & (places < 1 - 0.5 / SIDE)
    if inner.sum() > 1:
        places, centres = places[inner], centres[inner]
    slope = float((places[-1] - places[0]) / (centres[-1] - centres[0]))
    begin = float(places[0]) - slope * float(centres[0])
    return begin, begin + slope


def cut(mask: Tensor, window: Window, size: tuple[int, int]) -> Tensor:
    """Return a whole picture's mask [H, W] at the latents of its `window`, [1, 1, h, w] for a `size` of (h, w)."""
    left, top, right, bottom = window
    whole = (max(size[0], round(size[0] / (bottom - top))), max(size[1], round(size[1] / (right - left))))
    scaled = nn.functional.interpolate(mask[None, None].float(), whole, mode="area")
    y, x = (max(0, min(round(at * all_), all_ - part)) for at, all_, part in zip((top, left), whole, size, strict=True))
    return scaled[..., y : y + size[0], x : x + size[1]]
