"""Keeps one image's layout in another: the first image's attention maps are recomputed at each step from its recorded latents."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ....perfusion_core import PerfusionError
from .attention_control import Injection
from .attention_recorder import PromptRecord, SamplingRun

Call = Callable[[Tensor, Tensor, Mapping[str, Tensor]], dict[str, Tensor]]
"""Runs the UNet on latents, timesteps and further inputs; returns each layer's attention maps [b, heads, h·w, N]."""


@dataclass(frozen=True)
class Layout:
    """The run whose layout is kept, and the noise levels at which it is: from `start` down to `end`."""

    run: SamplingRun
    start: float
    end: float

    def prompt(self) -> PromptRecord:
        """Return the prompt of the other image; the first if there are several."""
        return next(iter(self.run.prompts.values()))

    def columns(self, words: Sequence[str]) -> Tensor:
        """Return for each token of a prompt the token of the other prompt whose map it takes, or -1: [1, N, 1].

        All are -1 if the words of either prompt are unknown.
        """
        other = self.prompt().words
        columns = torch.full((len(words),), -1)
        if any(other) and any(words):
            for block in difflib.SequenceMatcher(None, other, words, autojunk=False).get_matching_blocks():
                columns[block.b : block.b + block.size] = torch.arange(block.a, block.a + block.size)
        return columns[None, :, None]

    def injection(
        self, options: Mapping[str, Any], x: Tensor, columns: Tensor, positives: Sequence[int], call: Call
    ) -> Injection | None:
        """Return the maps to inject into a call on latents x [B, c, h, w], of whose prompts these are the positive ones.

        The result is None if the call's noise level is out of range or the call has no positive prompt.

        Raises:
            PerfusionError: the two runs differ in image size or number of images, no prompt of the first one covers the whole
                image, or the words of a prompt are unknown.
        """
        level = float(options["sigmas"][0])
        if not self.end <= level <= self.start or not positives:
            return None
        nearest = min(self.run.trajectory, key=lambda known: abs(known - level))
        latents, times = self.run.trajectory[nearest]
        rows = len(x) // len(options["cond_or_uncond"])
        if not latents.numel():
            raise PerfusionError(
                "Keep Layout needs a prompt that covers the whole first image, but all of its prompts are confined to areas; "
                "add one that covers it."
            )
        if latents.shape != x[:rows].shape:
            raise PerfusionError(
                f"Keep Layout needs the same image size and batch size in both samplers, but the first has latents of "
                f"{list(latents.shape)} and this one of {list(x[:rows].shape)}; use the same empty latent for both."
            )
        kinds = torch.tensor([i in positives for i in range(len(x) // rows)], device=x.device).repeat_interleave(rows)
        if (columns[kinds] < 0).all():
            raise PerfusionError(
                "Keep Layout needs encodings that record their words; encode both images' prompts with a CLIP from Apply "
                "Concept, or with Text Encode, Keys Locked."
            )
        maps = call(latents.to(x), times.to(x.device), self.prompt().inputs)
        return Injection(maps, torch.where(kinds[:, None], columns[..., 0], -1))
