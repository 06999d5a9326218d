"""The training loop of a concept (§4.4): one word and one o*_V per layer are learned, everything else is frozen.

In the mode `NO_EDIT` no layer is edited and only the word is learned: Textual Inversion (arXiv 2208.01618).

All random choices of step n depend only on (seed, n): a resumed run needs no generator state and gives the same result as an
uninterrupted one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import PerfusionError
from ..covariance import probe
from ..gated_edit import Edit
from ..prompts import TEMPLATES
from .base_model import Base
from .lesson import Bucket, Lesson
from .settings import AT_WORD, FINE, LOCAL, NO_EDIT, Settings
from .state import KEY_LOCK, MAX_SCALE, TrainingState

BEFORE_1 = 1 - 2**-24
"""The largest float32 below 1."""
HELD_OUT = 16
"""Number of noises that the held-out loss is measured with, or one per picture if there are more pictures."""


def initial_state(base: Base, superclass: str, settings: Settings) -> TrainingState:
    """Return the state before the first step: the word, i* and the outputs are those of the superclass (§4.4).

    An initial word changes only the word's starting point: outputs and locked keys are still those of the superclass, and i*
    approaches the word's encoding by its moving average.
    """
    word = {name: vectors.clone() for name, vectors in sorted(base.embed(settings.initial_word or superclass).items())}
    mean = base.encode(TEMPLATES, base.embed(superclass)).at_word().mean(0).detach()
    # Sorted, because a checkpoint restores layers in sorted order, and the optimizer's moments are stored by position.
    projected = dict(sorted(base.project(mean[None]).items())) if settings.mode != NO_EDIT else {}
    values = {layer: v[0].clone() for layer, (_, v) in projected.items()}
    trained = base.fine_layers() if settings.lock == FINE and projected else set(projected)
    keys = {layer: k[0].clone() for layer, (k, _) in projected.items() if layer in trained and settings.lock != LOCAL}
    return TrainingState(word, values, keys, mean.clone(), mean)


def edit_in_training(state: TrainingState, inverse: Tensor, settings: Settings, encoding: Tensor | None = None) -> Edit | None:
    """Return the edit of the concept in its current state, or None without an edit: training uses the gated forward of inference.

    The gates alone decide here, regardless of which tokens the word can have influenced: at the bias and temperature of training,
    few gates open elsewhere.

    If `encoding`, the concept's mean encoding [d], is given, i* keeps its value but passes its gradient on to `encoding`.
    """
    if settings.mode == NO_EDIT:
        return None
    device = state.target_input.device
    target_input = state.target_input
    if encoding is not None:
        target_input = target_input + encoding - encoding.detach()
    return Edit(
        mode=settings.mode,
        target_inputs=target_input[None],
        probes=probe(inverse, target_input.cpu())[None].to(device),
        superclass_encodings=state.superclass_encoding[None],
        bias=torch.tensor([settings.bias], device=device),
        temperature=torch.tensor([settings.temperature], device=device),
        strength=torch.ones(1, device=device),
        values={layer: o[None] for layer, o in state.values.items()},
        keys={layer: o[None] for layer, o in state.keys.items()},
        keys_trained={layer: torch.tensor([True], device=device) for layer in state.keys},
        keys_at_word=torch.tensor([True], device=device) if settings.lock in AT_WORD else None,
    )


@dataclass(frozen=True)
class BatchSample:
    """The random choices of one step for its B pictures."""

    pictures: Tensor
    flipped: Tensor
    prompts: Tensor
    time: Tensor
    noise: Tensor
    small: Tensor
    texts: Sequence[str]
    """The texts that `prompts` indexes."""

    def forms(self) -> Tensor:
        """Return the index of the form in which each picture is used, int [B]: unchanged, mirrored, small, small and mirrored."""
        return self.flipped + 2 * self.small.long()

    @classmethod
    def of(
        cls,
        settings: Settings,
        step: int,
        latents: Tensor,
        templates: Sequence[str] = TEMPLATES,
        captions: Sequence[str] = (),
        captioned: float = 1.0,
    ) -> "BatchSample":
        """Return the choices of a step; times are stratified, one in each of B equal parts of [0, 1), which steadies the loss.

        Args:
            settings: settings of the training.
            step: number of the step, from 0.
            latents: [P, c, …, h, w], of which only the shape matters.
            templates: training prompts.
            captions: each picture's own, or none.
            captioned: how often a picture comes with its own, if there are any.
        """
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) % 2**63)
        count = settings.batch
        pictures = torch.randint(len(latents), (count,), generator=generator)
        flipped = torch.rand(count, generator=generator) < settings.flip
        # A batch uses at most two templates, because the text encoder runs once for each different prompt.
        prompts = torch.randint(len(templates), (min(count, 2),), generator=generator).repeat(count)[:count]
        # The last one may be rounded up to 1.
        time = ((torch.arange(count) + torch.rand(count, generator=generator)) / count).clamp(max=BEFORE_1)
        noise = torch.randn(count, *latents.shape[1:], generator=generator)
        # Draw newer options last, so that older seeds keep giving the same choices.
        small = torch.rand(count, generator=generator) < settings.small
        if captions:
            prompts = torch.where(torch.rand(count, generator=generator) < captioned, len(templates) + pictures, prompts)
        return cls(pictures, flipped, prompts, time, noise, small, (*templates, *captions))


def masked_error(prediction: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Return the squared error, weighted by soft masks [B, 1, …, h, w] and divided by their sum, mean over pictures; scalar."""
    error = (prediction.float() - target.float()).square().mean(1, keepdim=True)
    within = tuple(range(1, error.ndim))
    return ((error * masks).sum(within) / masks.sum(within)).mean()


Gradients = tuple[list[Tensor], Tensor, float]
"""The gradients of the learned tensors, the concept's mean encoding [d], and the loss."""


def gradients(
    base: Base,
    state: TrainingState,
    draw: BatchSample,
    latents: Tensor,
    masks: Tensor,
    inverse: Tensor,
    settings: Settings,
    scale: float = 1.0,
) -> Gradients:
    """Return the gradients and the loss for the draw of one step; the backward pass multiplies the loss by `scale`."""
    learned = [tensor.requires_grad_() for tensor in state.learned()]
    try:
        distinct, which = draw.prompts.unique(return_inverse=True)
        encoded = base.encode([draw.texts[i] for i in distinct], state.word)
        leaves, words = encoded.leaves(), len(state.word)
        total, device = 0.0, state.target_input.device
        sums = [torch.zeros_like(tensor) for tensor in learned]
        outer = [torch.zeros_like(part) for part in leaves.parts()]
        fixed = None if settings.target_gradient else edit_in_training(state, inverse, settings)
        for part in torch.arange(settings.batch).split(settings.micro):
            shown = draw.pictures[part], draw.forms()[part]
            noise, time = draw.noise[part].to(device), draw.time[part].to(device)
            # Each backward pass frees its graph, including that of the target input, so the edit is rebuilt for each part.
            edit = fixed
            if settings.target_gradient:
                edit = edit_in_training(state, inverse, settings, leaves.at_word().mean(0))
            prompts = leaves.of_prompts(which[part].to(device))
            prediction, target = base.objective(latents[shown], noise, time, prompts, edit)
            loss = masked_error(prediction, target, masks[shown]) * len(part) / settings.batch
            found = torch.autograd.grad(scale * loss, [*leaves.parts(), *state.outputs()], allow_unused=True)
            if any(gradient is None for gradient in found):
                raise PerfusionError(missing_gradient(state, found[len(outer) :]))
            for summed, gradient in zip([*outer, *sums[words:]], found, strict=True):
                summed += gradient
            total += loss.item()
        back = [each.to(part.dtype) for each, part in zip(outer, encoded.parts(), strict=True)]
        sums[:words] = torch.autograd.grad(encoded.parts(), list(state.word.values()), back)
    finally:
        for tensor in learned:
            tensor.requires_grad_(False)
    return [each / scale for each in sums], leaves.at_word().mean(0).detach(), total


def gradients_in_range(
    base: Base, state: TrainingState, draw: BatchSample, latents: Tensor, masks: Tensor, inverse: Tensor, settings: Settings
) -> Gradients:
    """Return the result of `gradients`, with the loss scaled in half precision: half as much until nothing overflows.

    Small gradients vanish in float16 and large ones overflow. The state keeps the scale; every hundred steps it may grow again.

    Raises:
        PerfusionError: the loss or a gradient is not finite.
    """
    if state.step % 100 == 0:
        state.scale = min(2 * state.scale, MAX_SCALE)
    while True:
        scale = state.scale if base.half else 1.0
        sums, seen, loss = gradients(base, state, draw, latents, masks, inverse, settings, scale)
        if math.isfinite(loss) and all(bool(gradient.isfinite().all()) for gradient in sums):
            return sums, seen, loss
        if scale <= 1 or not math.isfinite(loss):
            raise PerfusionError(
                f"Training stopped at step {state.step + 1}: the loss is no longer a number. Use a higher precision or lower "
                "learning rates."
            )
        state.scale /= 2


def missing_gradient(state: TrainingState, of_outputs: Sequence[Tensor | None]) -> str:
    """Return the sentence that says which learned tensors the loss does not depend on, and which would therefore never learn."""
    layers = [*state.values, *state.keys]
    without = [*dict.fromkeys(layer for layer, gradient in zip(layers, of_outputs, strict=True) if gradient is None)]
    where = (
        f"{len(without)} of {len(state.values)} edited layers (the first is {without[0]})" if without else "the prompt's encoding"
    )
    return (
        f"Training stopped at step {state.step + 1}: no gradient reached {where}. A patch on this model replaces its attention or "
        "computes it in a way that cannot be differentiated; train on the model without that patch."
    )


def trial_forward(base: Base, state: TrainingState, lesson: Lesson, settings: Settings) -> Tensor:
    """Return the model's prediction for one picture with its graph, computed as in a training step, to measure a step's memory.

    It is one of the largest pictures. Arguments as for `train`.
    """
    latents = max((bucket.latents for bucket in lesson.buckets), key=lambda each: each[0, 0].numel())
    draw = BatchSample.of(replace(settings, batch=1), state.step, latents[:, 0])
    encoded = base.encode(TEMPLATES[:1], state.word).leaves()
    learned = [tensor.requires_grad_() for tensor in state.learned()]
    try:
        edit, device = edit_in_training(state, lesson.inverse, settings), state.target_input.device
        return base.objective(latents[:1, 0], draw.noise.to(device), draw.time.to(device), encoded, edit)[0]
    finally:
        for tensor in learned:
            tensor.requires_grad_(False)


def held_out_loss(base: Base, state: TrainingState, lesson: Lesson, settings: Settings) -> float:
    """Return the loss over all pictures, unmirrored, with fixed noises and times that no step draws.

    Keys at the word are locked as in the finished concept. Pictures come with their captions if they have some, else with the first
    template. Arguments as for `train`. The loss of a single step says little, because it depends mostly on the times drawn for that
    step.
    """
    pictures = sum(len(bucket) for bucket in lesson.buckets)
    with torch.no_grad():
        edit = edit_in_training(state, lesson.inverse, settings)
        if edit is not None and settings.lock in AT_WORD:
            edit = replace(edit, key_lock=torch.full((1,), KEY_LOCK, device=state.target_input.device))
        return sum(_held_out(base, state, bucket, lesson, settings, edit) * len(bucket) / pictures for bucket in lesson.buckets)


def _held_out(base: Base, state: TrainingState, bucket: Bucket, lesson: Lesson, settings: Settings, edit: Edit | None) -> float:
    """Return the loss over one bucket's pictures."""
    latents, masks, count = bucket.latents, bucket.masks, max(HELD_OUT, len(bucket))
    draw = BatchSample.of(replace(settings, batch=count), -1, latents[:, 0])
    device, total = state.target_input.device, 0.0
    encoded = base.encode(bucket.captions or lesson.templates[:1], state.word)
    for part in torch.arange(count).split(settings.micro):
        shown, noise, time = part % len(latents), draw.noise[part].to(device), draw.time[part].to(device)
        prompts = encoded.of_prompts((shown if bucket.captions else torch.zeros_like(shown)).to(device))
        prediction, target = base.objective(latents[shown, 0], noise, time, prompts, edit)
        total += float(masked_error(prediction, target, masks[shown, 0])) * len(part) / count
    return total


def rates(settings: Settings, step: int) -> tuple[float, float]:
    """Return the learning rates of the word and of the outputs in a step; both fall along a half cosine."""
    fall = 0.5 * (1 + math.cos(math.pi * step / settings.steps))
    return fall * settings.word_rate, fall * settings.output_rate


def train(base: Base, state: TrainingState, lesson: Lesson, settings: Settings) -> Iterator[float]:
    """Train from the current state to the end, and yield the loss of each step after the state has been updated.

    To stop early, stop iterating; another call continues from the state.

    Args:
        base: the model.
        state: from `initial_state` or from a checkpoint; updated in place.
        lesson: the pictures, with their prompts and C⁻¹.
        settings: settings of the training.

    Raises:
        PerfusionError: immediately if the settings are invalid; during iteration if the loss or a gradient is not finite.
    """
    settings.check()
    return _steps(base, state, lesson, settings)


def _steps(base: Base, state: TrainingState, lesson: Lesson, settings: Settings) -> Iterator[float]:
    while state.step < settings.steps:
        bucket = lesson.bucket_of(settings.seed, state.step)
        prompts = lesson.templates, bucket.captions, lesson.captioned
        draw = BatchSample.of(settings, state.step, bucket.latents[:, 0], *prompts)
        sums, seen, loss = gradients_in_range(base, state, draw, bucket.latents, bucket.masks, lesson.inverse, settings)
        state.optimizer.step(sums, *rates(settings, state.step))
        state.target_input.lerp_(seen, 1 - settings.ema)
        state.losses.append(loss)
        yield loss
