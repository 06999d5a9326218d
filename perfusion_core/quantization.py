"""A concept's tensors as integers: all of eight bits, half the size of half precision, or with target outputs of four bits.

With eight bits, each tensor is a scale times integers from -127 to 127; in target outputs, each layer has its own scale. All
scales are stored in one additional tensor, `scales`, in the order of the tensors' names.

With four bits, target outputs are integers from -7 to 7 times one scale per GROUP of adjacent columns. Each integer is stored as
its sum with 8 in half a byte: bytes `name` [..., G · GROUP / 2], the first of two columns in the lower half, the last group padded
with columns of 0. The scales of the G groups are stored as `name` followed by `.scales`, [..., G]. All other tensors have eight
bits.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from .safe_files import require

SCALES = "scales"
INT8, UINT4 = torch.int8, torch.uint4
LARGEST = {INT8: 127, UINT4: 7}
GROUP = 32
UNFIT = "its scales do not match its tensors"


Widths = Mapping[str, list[int]]
"""Name of target outputs -> the widths of their layers."""


def quantize(tensors: Mapping[str, Tensor], widths: Widths, kind: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors, which must be finite, quantised to INT8 or UINT4, with their scales, by name."""
    found, scales = {}, []
    for name in sorted(tensors):
        tensor = tensors[name].float()
        if kind == UINT4 and name in widths:
            found |= _packed(name, tensor)
            continue
        whole = []
        for part in _parts(tensor, widths.get(name)):
            scale = _scale(part.abs().amax(), INT8)
            whole.append((part / scale).round().to(torch.int8))
            scales.append(scale)
        found[name] = torch.cat(whole, dim=-1)
    return found | {SCALES: torch.stack(scales)}


def dequantize(tensors: Mapping[str, Tensor], widths: Widths, path: Path) -> dict[str, Tensor]:
    """Return the float32 tensors that `quantize` quantised.

    Raises:
        PerfusionError: about the file `path`: scales and tensors do not match, or a restored tensor is not finite.
    """
    found = {}
    packed = [name for name, tensor in tensors.items() if name in widths and tensor.dtype == torch.uint8]
    for name in packed:
        found[name] = _unpacked(tensors[name], tensors.get(f"{name}.{SCALES}"), sum(widths[name]), path)
    taken = {SCALES, *packed, *(f"{name}.{SCALES}" for name in packed)}
    whole = {name: tensor for name, tensor in tensors.items() if name not in taken}
    require(all(bool(widths[name]) for name in widths if name in tensors), path, UNFIT)
    scales, eights = tensors[SCALES], [name for name in whole if name in widths]
    require(all(tensor.dtype == torch.int8 and tensor.ndim > 0 for tensor in whole.values()), path, UNFIT)
    require(all(whole[name].shape[-1] == sum(widths[name]) for name in eights), path, UNFIT)
    count = len(whole) + sum(len(widths[name]) - 1 for name in eights)
    require(scales.dtype == torch.float32 and scales.shape == (count,), path, UNFIT)
    left = iter(scales)
    for name in sorted(whole):
        found[name] = torch.cat([part.float() * next(left) for part in _parts(whole[name], widths.get(name))], dim=-1)
    for name, tensor in found.items():
        require(bool(tensor.isfinite().all()), path, f"{name} contains infinity")
    return found


def _parts(tensor: Tensor, widths: list[int] | None) -> list[Tensor]:
    """Return the parts of a tensor that have one scale each: every layer's columns of target outputs, else the whole tensor."""
    return [tensor] if widths is None else list(tensor.split(widths, dim=-1))


def _scale(largest: Tensor, kind: torch.dtype) -> Tensor:
    """Return the quantisation step for numbers of magnitude at most `largest`."""
    return (largest / LARGEST[kind]).clamp(min=torch.finfo(torch.float32).tiny)


def _packed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return a tensor [..., M] packed into four bits per number, and its scales."""
    groups = nn.functional.pad(tensor, (0, -tensor.shape[-1] % GROUP)).unflatten(-1, (-1, GROUP))
    # bfloat16 has the range of float32 in half the space. Its rounding does no harm: numbers are quantised with the rounded scale.
    scales = _scale(groups.abs().amax(-1), UINT4).to(torch.bfloat16)
    numbers = (groups / scales.float()[..., None]).round().clamp(-LARGEST[UINT4], LARGEST[UINT4]) + 8
    low, high = numbers.flatten(-2).to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return {name: low + 16 * high, f"{name}.{SCALES}": scales}


def _unpacked(packed: Tensor, scales: Tensor | None, width: int, path: Path) -> Tensor:
    """Return the tensor [..., width], float32; raise PerfusionError about the file `path` if the scales do not match."""
    count = -(-width // GROUP)
    require(scales is not None and scales.dtype == torch.bfloat16 and packed.ndim > 0, path, UNFIT)
    require(packed.shape == (*scales.shape[:-1], count * GROUP // 2) and scales.shape[-1:] == (count,), path, UNFIT)
    numbers = torch.stack((packed % 16, packed // 16), dim=-1).flatten(-2).float() - 8
    return (numbers.unflatten(-1, (-1, GROUP)) * scales.float()[..., None]).flatten(-2)[..., :width]
