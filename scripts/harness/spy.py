"""Nodes that benchmarks copy into a server's custom nodes, to count the objects its process holds and to change its clock."""

import ctypes
import gc
import itertools
import json
import os
import time
from collections import Counter

import torch

KINDS = (
    "ModelPatcher",
    "CLIP",
    "Concept",
    "PerfusionState",
    "Edit",
    "Projections",
    "TrainableModel",
    "TrainingState",
    "Recorder",
    "CFGGuider",
)
"""Classes of the host and of the pack whose instances must not accumulate."""
TRACES = ("weight patches", "wrappers", "hooks", "replaced forwards", "gradients")
_now = time.time


def held() -> dict[str, int]:
    """Count what could be left behind: objects, patches, hooks, modules whose forward was replaced, weights with gradients."""
    gc.collect()
    counts: Counter[str] = Counter(dict.fromkeys((*KINDS, *TRACES), 0))
    for each in gc.get_objects():
        kind = type(each).__name__
        if kind in KINDS:
            counts[kind] += 1
        if kind == "ModelPatcher":
            counts["weight patches"] += sum(len(patches) for patches in each.patches.values())
            counts["wrappers"] += sum(len(each) for kinds in each.wrappers.values() for each in kinds.values())
        if isinstance(each, torch.nn.Module):
            counts["hooks"] += len(each._forward_hooks) + len(each._forward_pre_hooks) + len(each._backward_hooks)
            counts["replaced forwards"] += "forward" in vars(each)
            counts["gradients"] += sum(weight.requires_grad for weight in each.parameters(recurse=False))
    return dict(counts)


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGESIZE")


class Spy:
    """Reports the counts of `held` and the resident memory in bytes, before and after `malloc_trim`, as JSON text."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "measuring", "look", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """`samples` makes the node run after sampling, with the model still loaded; a new `asked` defeats the host's cache."""
        return {"required": {"samples": ("LATENT",), "asked": ("INT", {"default": 0})}}

    def look(self, samples: dict, asked: int) -> dict:
        """Collect garbage, count, and return the counts."""
        counts, resident = held(), _resident()
        ctypes.CDLL(None).malloc_trim(0)
        return {"ui": {"text": [json.dumps(counts | {"resident": resident, "in use": _resident()})]}}


class Clock:
    """Makes this process's clock run backwards."""

    CATEGORY, FUNCTION, OUTPUT_NODE = "measuring", "turn", True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        """Each reading of the clock is set back by another `seconds`; 0 restores the true clock."""
        return {"required": {"seconds": ("INT", {"default": 0})}}

    def turn(self, seconds: int) -> dict:
        """Replace or restore `time.time`."""
        looks = itertools.count(1)
        time.time = (lambda: _now() - seconds * next(looks)) if seconds else _now
        return {"ui": {"text": [str(seconds)]}}


NODE_CLASS_MAPPINGS = {"MeasuringSpy": Spy, "MeasuringClock": Clock}
