"""Records cross-attention maps while images are sampled, and the latents at each noise level."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import torch
from einops import reduce
from torch import Tensor, nn

from ....perfusion_core import PerfusionError

Shape = tuple[int, int]
POSITIVE = 0
"""The host's number for the positive prompts of a call, in `cond_or_uncond`."""


@dataclass
class PromptRecord:
    """What was recorded for one positive prompt.

    Attributes:
        words: the word at each of its N tokens.
        gates: trigger word -> gate at each token, [N].
        steps: for each step, or once for all steps: layer resolution -> sum of maps [b, N, h, w] over layers and calls.
        counts: number of maps summed in each of the `steps`.
        corner: top and left of its area, in latent pixels.
        area: height and width of its area, in latent pixels.
        inputs: the UNet's inputs other than latents and timesteps, by name: [b, ...].
    """

    words: list[str]
    gates: dict[str, Tensor]
    steps: list[dict[Shape, Tensor]] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    corner: Shape = (0, 0)
    area: Shape = (0, 0)
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def map_of(self, word: str, size: Shape, step: int | None = None) -> Tensor:
        """Return the mean attention, [b, h, w], to all tokens of a word, in one step or in all; 0 outside of the prompt's area."""
        places = [n for n, said in enumerate(self.words) if said == word]
        chosen = range(len(self.steps)) if step is None else [step]
        whole, count = torch.zeros(1, *self.area), 0
        for i in chosen:
            for sums in self.steps[i].values():
                looked = sums[:, places].sum(1, keepdim=True)
                whole = whole + nn.functional.interpolate(looked, self.area, mode="bilinear", antialias=True)[:, 0]
            count += self.counts[i]
        top, left = self.corner
        return nn.functional.pad(whole / max(count, 1), (left, size[1] - left - self.area[1], top, size[0] - top - self.area[0]))


@dataclass
class SamplingRun:
    """One run of a sampler.

    Attributes:
        size: height and width of its latents.
        prompts: its positive prompts in order, by the host's id.
        way: noise level -> the latents [b, c, h, w] and timesteps [b] that the UNet was given; empty tensors where no positive
            prompt covered the whole image.
        result: the final latents, as the host passes them on.
    """

    size: Shape
    prompts: dict[UUID, PromptRecord]
    trajectory: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    result: Tensor | None = None

    @property
    def steps(self) -> int:
        """The number of steps whose maps are stored separately."""
        return max(len(prompt.steps) for prompt in self.prompts.values())

    def words(self) -> list[str]:
        """Return all words of its prompts in order, without duplicates."""
        return list(dict.fromkeys(word for prompt in self.prompts.values() for word in prompt.words if word))

    def map_of(self, word: str, step: int | None = None) -> Tensor:
        """Return the mean attention, [b, h, w], to a word over the prompts that contain it."""
        maps = [prompt.map_of(word, self.size, step) for prompt in self.prompts.values() if word in prompt.words]
        return torch.stack(maps).sum(0) / len(maps)

    def gate_of(self, word: str) -> float | None:
        """Return how far the gate of the concept with this trigger word opens at the word itself; None for other words."""
        opened = [
            float(prompt.gates[word][[said == word for said in prompt.words]].max())
            for prompt in self.prompts.values()
            if word in prompt.gates and word in prompt.words
        ]
        return max(opened, default=None)


class Recorder:
    """Records the sampling runs of a watched MODEL and keeps the last `KEPT`."""

    KEPT = 4

    def __init__(self, each_step: bool = False) -> None:
        """With `each_step`, store the maps of every step separately."""
        self.each_step = each_step
        self.runs: deque[SamplingRun] = deque(maxlen=self.KEPT)
        self.now: SamplingRun | None = None

    @contextlib.contextmanager
    def recording(self, size: Shape, prompts: dict[UUID, PromptRecord]) -> Iterator[Callable[[Tensor], None]]:
        """Record a run within the context; it is kept once the yielded function is called with its final latents."""
        self.now = run = SamplingRun(size, prompts)

        def done(result: Tensor) -> None:
            for prompt in prompts.values():
                prompt.steps = [{shape: sums.cpu() for shape, sums in step.items()} for step in prompt.steps]
            run.result = result.detach().float().cpu()
            self.runs.append(run)

        try:
            yield done
        finally:
            self.now = None

    def record_inputs(self, options: Mapping[str, Any], where: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Record the inputs of a UNet call; `inputs` holds all of them, with the rows of several prompts one after another.

        `where`: [B, 2, h, w], row and column of each latent pixel in the whole image.
        """
        if self.now is None:
            return
        level = float(options["sigmas"][0])
        new = not self.now.trajectory or level not in self.now.trajectory
        for prompt, rows in self._positives(options, len(where)):
            if new and (self.each_step or not prompt.steps):
                prompt.steps.append({})
                prompt.counts.append(0)
            first = where[rows][0]
            prompt.corner, prompt.area = tuple(int(i) for i in first[:, 0, 0]), tuple(first.shape[1:])
            given = {name: tensor[rows].detach() for name, tensor in inputs.items() if tensor is not None}
            x, time = given.pop("x"), given.pop("timesteps")
            if prompt.area == self.now.size:
                self.now.trajectory[level] = (x.cpu(), time.cpu())
            prompt.inputs = given
        self.now.trajectory.setdefault(level, (torch.empty(0), torch.empty(0)))

    def record_maps(self, options: Mapping[str, Any], maps: Tensor, shape: Shape) -> None:
        """Record a layer's maps [B, heads, h·w, N]."""
        if self.now is None:
            return
        for prompt, rows in self._positives(options, len(maps)):
            # In a batch with a longer prompt, the host repeats the tokens of a shorter one.
            count = {"n": len(prompt.words), "h": shape[0], "w": shape[1]}
            looked = reduce(maps[rows].mean(1), "b (h w) (times n) -> b n h w", "sum", **count)
            sums = prompt.steps[-1]
            sums[shape] = sums[shape] + looked if shape in sums else looked
            prompt.counts[-1] += 1

    def _positives(self, options: Mapping[str, Any], count: int) -> Sequence[tuple[PromptRecord, slice]]:
        """Return the positive prompts of a call and their rows in the batch."""
        kinds, keys = options["cond_or_uncond"], options.get("uuids", [None] * len(options["cond_or_uncond"]))
        rows = count // len(kinds)
        found = []
        for i, (kind, key) in enumerate(zip(kinds, keys, strict=True)):
            if kind == POSITIVE and key in self.now.prompts:
                found.append((self.now.prompts[key], slice(i * rows, (i + 1) * rows)))
        return found

    def run_of(self, samples: Tensor) -> SamplingRun:
        """Return the run that produced these latents.

        Raises:
            PerfusionError: none of the last few runs did.
        """
        for run in reversed(self.runs):
            if run.result.shape == samples.shape and torch.allclose(run.result, samples.float().cpu(), rtol=1e-2, atol=1e-2):
                return run
        raise PerfusionError(
            f"These latents are not from any of the last {self.KEPT} runs of the watched model; connect the unchanged samples of a "
            "sampler whose model comes from Watch Attention."
        )
