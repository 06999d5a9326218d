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
OF_TOKENS = ("context", "named", "locks", "regional", "stands")
"""Inputs of the UNet that have an entry for each token."""


@dataclass
class PromptRecord:
    """What was recorded for one positive prompt.

    Attributes:
        words: the word at each of its N tokens.
        gates: trigger word -> gate at each token, [N].
        steps: noise level, or None for all of them together -> layer resolution -> sum of maps [b, N, h, w] over layers and calls.
        counts: number of maps summed in each of the `steps`.
        corner: top and left of its area, in latent pixels.
        area: height and width of its area, in latent pixels.
        inputs: the UNet's inputs other than latents and timesteps, by name: [b, ...].
    """

    words: list[str]
    gates: dict[str, Tensor]
    steps: dict[float | None, dict[Shape, Tensor]] = field(default_factory=dict)
    counts: dict[float | None, int] = field(default_factory=dict)
    corner: Shape = (0, 0)
    area: Shape = (0, 0)
    inputs: dict[str, Tensor] = field(default_factory=dict)

    def map_of(self, word: str, size: Shape, level: float | None = None) -> Tensor:
        """Return the mean attention, [b, h, w], to all tokens of a word, at a noise level or at all.

        It is 0 outside of the prompt's area.
        """
        places = [n for n, said in enumerate(self.words) if said == word]
        whole, count = torch.zeros(1, *self.area), 0
        for each in self.steps if level is None else [level]:
            for sums in self.steps[each].values():
                looked = sums[:, places].sum(1, keepdim=True)
                whole = whole + nn.functional.interpolate(looked, self.area, mode="bilinear", antialias=True)[:, 0]
            count += self.counts[each]
        top, left = self.corner
        return nn.functional.pad(whole / max(count, 1), (left, size[1] - left - self.area[1], top, size[0] - top - self.area[0]))

    def read_at(self, level: float | None) -> bool:
        """Return whether the model read the prompt at a noise level, or at all."""
        return level in self.steps if level is not None else bool(self.steps)


@dataclass
class SamplingRun:
    """One run of a sampler.

    Attributes:
        size: height and width of its latents.
        prompts: its positive prompts in order, by the host's id.
        trajectory: noise level -> the latents [b, c, h, w] and timesteps [b] that the UNet was given; empty tensors where no
            positive prompt covered the whole image.
        state: the PerfusionState that it ran with, without a recorder.
        result: the final latents, as the host passes them on.
    """

    size: Shape
    prompts: dict[UUID, PromptRecord]
    trajectory: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)
    state: Any = None
    result: Tensor | None = None

    def levels(self) -> list[float | None]:
        """Return the noise levels whose maps are stored separately, in order; None alone if those of all are stored together."""
        found = {level for prompt in self.prompts.values() for level in prompt.steps}
        return [level for level in self.trajectory if level in found] or [None]

    def words(self) -> list[str]:
        """Return all words of its prompts in order, without duplicates."""
        return list(dict.fromkeys(word for prompt in self.prompts.values() for word in prompt.words if word))

    def map_of(self, word: str, level: float | None = None) -> Tensor:
        """Return the mean attention, [b, h, w], to a word over the prompts that contain it and were read at a level, or at all.

        It is 0 if there are none.
        """
        read = [prompt for prompt in self.prompts.values() if word in prompt.words and prompt.read_at(level)]
        maps = [prompt.map_of(word, self.size, level) for prompt in read]
        return torch.stack(maps).mean(0) if maps else torch.zeros(len(self.result), *self.size)

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
    def recording(self, size: Shape, prompts: dict[UUID, PromptRecord], state: Any = None) -> Iterator[Callable[[Tensor], None]]:
        """Record a run within the context; it is kept once the yielded function is called with its final latents."""
        self.now = run = SamplingRun(size, prompts, state=state)

        def done(result: Tensor) -> None:
            for prompt in prompts.values():
                prompt.steps = {level: {shape: sums.cpu() for shape, sums in step.items()} for level, step in prompt.steps.items()}
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
        for prompt, rows in self._positives(options, len(where)):
            first = where[rows][0]
            prompt.corner, prompt.area = tuple(int(i) for i in first[:, 0, 0]), tuple(first.shape[1:])
            given = {name: tensor[rows].detach() for name, tensor in inputs.items() if tensor is not None}
            # In a batch with a longer prompt, the host repeats the tokens of a shorter one.
            given |= {name: given[name][:, : len(prompt.words)] for name in OF_TOKENS if name in given}
            x, time = given.pop("x"), given.pop("timesteps")
            if prompt.area == self.now.size:
                self.now.trajectory[level] = (x.cpu(), time.cpu())
            prompt.inputs = given
        self.now.trajectory.setdefault(level, (torch.empty(0), torch.empty(0)))

    def record_maps(self, options: Mapping[str, Any], maps: Tensor, shape: Shape) -> None:
        """Record a layer's maps [B, heads, h·w, N]."""
        if self.now is None:
            return
        level = float(options["sigmas"][0]) if self.each_step else None
        for prompt, rows in self._positives(options, len(maps)):
            count = {"n": len(prompt.words), "h": shape[0], "w": shape[1]}
            looked = reduce(maps[rows].mean(1), "b (h w) (times n) -> b n h w", "sum", **count)
            sums = prompt.steps.setdefault(level, {})
            sums[shape] = sums[shape] + looked if shape in sums else looked
            prompt.counts[level] = prompt.counts.get(level, 0) + 1

    def _positives(self, options: Mapping[str, Any], count: int) -> Sequence[tuple[PromptRecord, slice]]:
        """Return the positive prompts of a call and their rows in the batch."""
        keys, rows = options.get("uuids", ()), count // len(options["cond_or_uncond"])
        return [(self.now.prompts[key], slice(i * rows, (i + 1) * rows)) for i, key in enumerate(keys) if key in self.now.prompts]

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
