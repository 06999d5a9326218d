"""A concept's tensors as whole numbers of eight bits: half the size of half precision.

Each tensor is `scale` times numbers from -127 to 127; of target outputs each layer has a scale of its own. All scales stand in one
more tensor, `scales`, in the order of the tensors' names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import require

SCALES = "scales"
LARGEST = 127
OUTPUTS = "target_outputs"


def parts(name: str, tensor: Tensor, widths: list[int]) -> list[Tensor]:
    """The parts of a tensor that have a scale each: a layer's columns of target outputs, else all of it."""
    return list(tensor.split(widths, dim=-1)) if name.startswith(OUTPUTS) else [tensor]


def rounded(tensors: Mapping[str, Tensor], widths: list[int]) -> dict[str, Tensor]:
    """Finite tensors by name, rounded to eight bits, and their scales; `widths` of the layers in target outputs."""
    found, scales = {}, []
    for name in sorted(tensors):
        whole = []
        for part in parts(name, tensors[name].float(), widths):
            scale = (part.abs().amax() / LARGEST).clamp(min=torch.finfo(torch.float32).tiny)
            whole.append((part / scale).round().to(torch.int8))
            scales.append(scale)
        found[name] = torch.cat(whole, dim=-1)
    return found | {SCALES: torch.stack(scales)}


def restored(tensors: Mapping[str, Tensor], widths: list[int], path: Path) -> dict[str, Tensor]:
    """What `rounded` rounded, in float32; raises PerfusionError about the file `path` where scales and tensors do not fit."""
    whole = {name: tensor for name, tensor in tensors.items() if name != SCALES}
    scales, unfit = tensors[SCALES], "its scales do not fit its tensors"
    require(all(tensor.dtype == torch.int8 and tensor.ndim > 0 for tensor in whole.values()), path, unfit)
    outputs = [name for name in whole if name.startswith(OUTPUTS)]
    require(all(whole[name].shape[-1] == sum(widths) for name in outputs), path, unfit)
    require(scales.dtype == torch.float32 and scales.shape == (len(whole) + len(outputs) * (len(widths) - 1),), path, unfit)
    found, left = {}, iter(scales)
    for name in sorted(whole):
        found[name] = torch.cat([part.float() * next(left) for part in parts(name, whole[name], widths)], dim=-1)
    return found
