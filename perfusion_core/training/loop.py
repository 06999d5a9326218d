"""The loop that teaches a concept (§4.4): one word and one o*_V a layer are learned, everything else is frozen.

In the mode `NONE` no layer is edited and the word alone is learned: Textual Inversion (arXiv 2208.01618).

It runs over a small protocol, `Base`, so that it knows no host. Every random choice of step n comes from (seed, n) alone: a
resumed run needs no generator's state and ends as an undisturbed one would.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .. import PerfusionError
from ..covariance import probe
from ..gated_edit import EXACT, MODES, Edit
from ..prompts import TEMPLATES

Word = Mapping[str, Tensor]
"""Text encoder's name -> embedding vectors, [n, width]."""

LOCAL, TRAINED = "local", "trained"

HELD_OUT = 16
"""Noises that a held-out loss is measured with, or one for each picture if those are more."""

NONE = "none"
"""A mode beside `edit.MODES`, for training alone: there is no edit, and the word is all that is learned."""


class Base(Protocol):
    """The model that is taught, as the trainer sees it; P prompts, B pictures, d the width of an encoding."""

    def embed(self, text: str) -> dict[str, Tensor]:
        """The embedding vectors of the text's tokens, float32 [n, width] for each text encoder."""

    def encode(self, templates: Sequence[str], word: Word) -> tuple[Tensor, Tensor]:
        """Encodings [P, N, d] of prompts with the word in place of `{}`, and the place of its last vector in each, int [P].

        Differentiable by the word. Rows behind the tokens may hold what else `objective` wants of the text encoders.
        """

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> (W_K v, W_V v), float32 [J, m] each, of vectors [J, d]."""

    def objective(
        self, latents: Tensor, noise: Tensor, time: Tensor, encodings: Tensor, edit: Edit | None
    ) -> tuple[Tensor, Tensor]:
        """The model's prediction from noised latents and what it should have been, [B, c, h, w] each.

        Args:
            latents: [B, c, h, w].
            noise: standard normal, same shape.
            time: [B] in [0, 1), from the least noise to the most.
            encodings: [B, N, d].
            edit: how the layers are edited, if at all; differentiable by its `values`, `keys` and by the encodings.
        """


def processor_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; others take it too, but no faster."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))


@dataclass(frozen=True)
class Settings:
    """How a concept is taught. Rates fall to 0 along a cosine; `batch` pictures are taken a step, `micro` at a time,
    mirrored in a share of `flip` and small in a share of `small`.

    `min_snr` is for the `Base`, whose objective may weigh noise levels by it. `mode` is one of `edit.MODES` or `NONE`. The word
    starts as `initial_word`, any text that the `Base` can embed, or as the superclass where that is empty. With
    `target_gradient` the word learns knowing that i* follows it; otherwise i* is a constant to each step.
    """

    steps: int = 400
    batch: int = 8
    micro: int = 8
    word_rate: float = 3e-4
    output_rate: float = 0.03
    bias: float = 0.75
    temperature: float = 0.1
    lock: str = LOCAL
    mode: str = EXACT
    flip: float = 0.5
    small: float = 0.0
    ema: float = 0.99
    seed: int = 0
    min_snr: float = 0.0
    initial_word: str = ""
    target_gradient: bool = False

    def check(self) -> None:
        """Raise PerfusionError for a setting that cannot work."""
        needs = {
            "at least 1 step": self.steps >= 1,
            "a batch of at least 1": self.batch >= 1 and self.micro >= 1,
            "learning rates above 0": 0 < self.word_rate < math.inf and 0 < self.output_rate < math.inf,
            "a temperature above 0": 0 < self.temperature < math.inf,
            "a bias that is a number": math.isfinite(self.bias),
            f"a lock of {LOCAL} or {TRAINED}": self.lock in (LOCAL, TRAINED),
            f"an edit mode of {', '.join((*MODES, NONE))}": self.mode in (*MODES, NONE),
            "a flip between 0 and 1": 0 <= self.flip <= 1,
            "a small between 0 and 1": 0 <= self.small <= 1,
            "an average (ema) between 0 and 1": 0 <= self.ema <= 1,
            "a min_snr of 0 or more": 0 <= self.min_snr < math.inf,
        }
        for needed, given in needs.items():
            if not given:
                raise PerfusionError(f"Training needs {needed}; the settings were {asdict(self)}.")


@dataclass
class Lesson:
    """What is learned, and where its training stands.

    Attributes:
        word: the learned embedding vectors.
        values: layer -> o*_V, float32 [m]; empty where the word alone is learned.
        keys: layer -> o*_K, float32 [m]; empty there and with locked keys.
        target_input: i*, a moving average of the concept's encodings, float32 [d].
        superclass_encoding: float32 [d].
        step: steps done.
        losses: one a step.
        moments: Adam's first and second moments, in the order of `learned`.
    """

    word: dict[str, Tensor]
    values: dict[str, Tensor]
    keys: dict[str, Tensor]
    target_input: Tensor
    superclass_encoding: Tensor
    step: int
    losses: list[float]
    moments: list[Tensor]

    def learned(self) -> list[Tensor]:
        """The tensors that training changes by gradients."""
        return [*self.word.values(), *self.values.values(), *self.keys.values()]

    def tensors(self) -> dict[str, Tensor]:
        """All of it as named tensors, for a checkpoint."""
        named = {f"word.{k}": v for k, v in self.word.items()}
        named |= {f"value.{k}": v for k, v in self.values.items()} | {f"key.{k}": v for k, v in self.keys.items()}
        named |= {"target_input": self.target_input, "superclass_encoding": self.superclass_encoding}
        named |= {f"moment.{i:04}": v for i, v in enumerate(self.moments)}
        return named | {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor]) -> "Lesson":
        """What `tensors` gave; raises PerfusionError where names are missing."""

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in sorted(named.items()) if k.startswith(prefix)}

        if not {"target_input", "superclass_encoding", "losses"} <= set(named) or named["losses"].ndim != 1:
            raise PerfusionError("This training checkpoint is not whole; delete it and train anew.")
        moments = list(group("moment.").values())
        losses = named["losses"].tolist()
        words, values, keys = group("word."), group("value."), group("key.")
        if len(moments) != 2 * (len(words) + len(values) + len(keys)):
            raise PerfusionError("This training checkpoint is not whole; delete it and train anew.")
        return cls(words, values, keys, named["target_input"], named["superclass_encoding"], len(losses), losses, moments)


def start(base: Base, superclass: str, settings: Settings) -> Lesson:
    """A lesson before its first step: the word, i* and outputs are the superclass's (§4.4).

    Another initial word changes where the word starts, and that alone: outputs and locked keys are the superclass's, and i*
    comes to the word by its moving average.
    """
    word = {name: vectors.clone() for name, vectors in sorted(base.embed(settings.initial_word or superclass).items())}
    encodings, places = base.encode(TEMPLATES, base.embed(superclass))
    mean = encodings.float()[torch.arange(len(places)), places].mean(0).detach()
    # In the order that a file gives them back in: the moments follow it.
    projected = dict(sorted(base.project(mean[None]).items())) if settings.mode != NONE else {}
    values = {layer: v[0].clone() for layer, (_, v) in projected.items()}
    keys = {layer: k[0].clone() for layer, (k, _) in projected.items()} if settings.lock == TRAINED else {}
    learned = [*word.values(), *values.values(), *keys.values()]
    moments = [torch.zeros_like(tensor) for tensor in learned for _ in range(2)]
    return Lesson(word, values, keys, mean.clone(), mean, 0, [], moments)


def edit_in_training(lesson: Lesson, inverse: Tensor, settings: Settings, encoding: Tensor | None = None) -> Edit | None:
    """The edit of the concept as it stands, if it has any: training sees the gated forward of inference.

    Here gates alone decide, and not where a word can have reached: at bias and temperature of training few open elsewhere.

    Given the concept's mean encoding [d], i* has its gradient, though its own value.
    """
    if settings.mode == NONE:
        return None
    device = lesson.target_input.device
    target_input = lesson.target_input
    if encoding is not None:
        target_input = target_input + encoding - encoding.detach()
    return Edit(
        mode=settings.mode,
        target_inputs=target_input[None],
        probes=probe(inverse, target_input.cpu())[None].to(device),
        superclass_encodings=lesson.superclass_encoding[None],
        bias=torch.tensor([settings.bias], device=device),
        temperature=torch.tensor([settings.temperature], device=device),
        strength=torch.ones(1, device=device),
        values={layer: o[None] for layer, o in lesson.values.items()},
        keys={layer: o[None] for layer, o in lesson.keys.items()},
        keys_trained=torch.tensor([bool(lesson.keys)], device=device),
    )


@dataclass(frozen=True)
class Draw:
    """The random choices of one step, for its B pictures."""

    pictures: Tensor
    flipped: Tensor
    templates: Tensor
    time: Tensor
    noise: Tensor
    small: Tensor

    def forms(self) -> Tensor:
        """Which of its forms each picture is shown in, int [B]: as it is, mirrored, small, small and mirrored."""
        return self.flipped + 2 * self.small.long()

    @classmethod
    def of(cls, settings: Settings, step: int, latents: Tensor) -> "Draw":
        """Choices of step `step`; times are spread over [0, 1), one in each of B equal parts, which steadies the loss."""
        generator = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) % 2**63)
        count = settings.batch
        return cls(
            pictures=torch.randint(len(latents), (count,), generator=generator),
            flipped=torch.rand(count, generator=generator) < settings.flip,
            # A batch shares a few templates: the text encoder runs once for each, and it is half of the work.
            templates=torch.randint(len(TEMPLATES), (min(count, 2),), generator=generator).repeat(count)[:count],
            time=(torch.arange(count) + torch.rand(count, generator=generator)) / count,
            noise=torch.randn(count, *latents.shape[1:], generator=generator),
            # Last, so that the others are the same with any share of small pictures.
            small=torch.rand(count, generator=generator) < settings.small,
        )


def masked_error(prediction: Tensor, target: Tensor, masks: Tensor) -> Tensor:
    """Squared error weighted by soft masks [B, 1, h, w], divided by the weights' sum, mean over pictures; scalar."""
    error = (prediction.float() - target.float()).square().mean(1, keepdim=True)
    return ((error * masks).sum((1, 2, 3)) / masks.sum((1, 2, 3))).mean()


def gradients(
    base: Base, lesson: Lesson, draw: Draw, latents: Tensor, masks: Tensor, inverse: Tensor, settings: Settings
) -> tuple[list[Tensor], Tensor, float]:
    """Gradients of what is learned, the concept's mean encoding [d], and the loss, for one step's draw."""
    learned = [tensor.requires_grad_() for tensor in lesson.learned()]
    try:
        distinct, which = draw.templates.unique(return_inverse=True)
        encoded, places = base.encode([TEMPLATES[i] for i in distinct], lesson.word)
        encodings = encoded.detach().requires_grad_()

        def seen() -> Tensor:
            return encodings.float()[torch.arange(len(places)), places].mean(0)

        total, device = 0.0, lesson.target_input.device
        sums = [torch.zeros_like(tensor) for tensor in learned]
        outer = torch.zeros_like(encodings)
        fixed = None if settings.target_gradient else edit_in_training(lesson, inverse, settings)
        outputs = [*lesson.values.values(), *lesson.keys.values()]
        for part in torch.arange(settings.batch).split(settings.micro):
            shown = draw.pictures[part], draw.forms()[part]
            noise, time = draw.noise[part].to(device), draw.time[part].to(device)
            # Each backward frees the graph that it went through, that of the target input too.
            edit = edit_in_training(lesson, inverse, settings, seen()) if settings.target_gradient else fixed
            prediction, target = base.objective(latents[shown], noise, time, encodings[which[part].to(device)], edit)
            loss = masked_error(prediction, target, masks[shown]) * len(part) / settings.batch
            got = torch.autograd.grad(loss, [encodings, *outputs], allow_unused=True)
            outer += got[0]
            for summed, gradient in zip(sums[len(lesson.word) :], got[1:], strict=True):
                if gradient is not None:
                    summed += gradient
            total += loss.item()
        sums[: len(lesson.word)] = torch.autograd.grad(encoded, list(lesson.word.values()), outer.to(encoded.dtype))
    finally:
        for tensor in learned:
            tensor.requires_grad_(False)
    return sums, seen().detach(), total


def rehearse(base: Base, lesson: Lesson, latents: Tensor, inverse: Tensor, settings: Settings) -> Tensor:
    """The model's prediction for one picture, with its graph, as a step makes it: to see what a step takes.

    Arguments as for `teach`.
    """
    draw = Draw.of(replace(settings, batch=1), lesson.step, latents[:, 0])
    encodings = base.encode(TEMPLATES[:1], lesson.word)[0].requires_grad_()
    learned = [tensor.requires_grad_() for tensor in lesson.learned()]
    try:
        edit, device = edit_in_training(lesson, inverse, settings), lesson.target_input.device
        return base.objective(latents[:1, 0], draw.noise.to(device), draw.time.to(device), encodings, edit)[0]
    finally:
        for tensor in learned:
            tensor.requires_grad_(False)


def held_out_loss(base: Base, lesson: Lesson, latents: Tensor, masks: Tensor, inverse: Tensor, settings: Settings) -> float:
    """The loss over all pictures, unmirrored, with noises and times that no step draws; the same ones whenever it is asked.

    Arguments as for `teach`. A step's own loss says little: its times are drawn anew, and they decide most of it.
    """
    count = max(HELD_OUT, len(latents))
    draw = Draw.of(replace(settings, batch=count), -1, latents[:, 0])
    device, total = lesson.target_input.device, 0.0
    with torch.no_grad():
        encodings, _ = base.encode(TEMPLATES[:1], lesson.word)
        edit = edit_in_training(lesson, inverse, settings)
        for part in torch.arange(count).split(settings.micro):
            shown, noise, time = part % len(latents), draw.noise[part].to(device), draw.time[part].to(device)
            prediction, target = base.objective(latents[shown, 0], noise, time, encodings.expand(len(part), -1, -1), edit)
            total += float(masked_error(prediction, target, masks[shown, 0])) * len(part) / count
    return total


def adam(lesson: Lesson, sums: list[Tensor], settings: Settings) -> None:
    """One step of Adam (β 0.9, 0.999; no decay) on what is learned; rates fall along a half cosine.

    An output's elements share one second moment, the mean of theirs (as Adam-mini has it, arXiv 2406.16793): scaled each by its
    own, those that gradients hardly ask for would move as far as those that they ask for most, and shapes melt.
    """
    fall = 0.5 * (1 + math.cos(math.pi * lesson.step / settings.steps))
    count = lesson.step + 1
    for i, (tensor, gradient) in enumerate(zip(lesson.learned(), sums, strict=True)):
        first, second = lesson.moments[2 * i : 2 * i + 2]
        first.lerp_(gradient, 0.1)
        square = gradient.square()
        second.lerp_(square if i < len(lesson.word) else square.mean().expand_as(square), 0.001)
        rate = fall * (settings.word_rate if i < len(lesson.word) else settings.output_rate)
        tensor -= rate * (first / (1 - 0.9**count)) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)


def teach(
    base: Base,
    lesson: Lesson,
    latents: Tensor,
    masks: Tensor,
    inverse: Tensor,
    settings: Settings,
    after_step: Callable[[Lesson], None] = lambda lesson: None,
) -> Lesson:
    """Teach from where the lesson stands to its end.

    Args:
        base: the model.
        lesson: from `start`, or from a checkpoint; changed in place.
        latents: [pictures, forms, c, h, w]: each picture as it is and mirrored, and then, if `small` is above 0, both small.
        masks: [pictures, forms, 1, h, w], soft, each with a maximum of 1.
        inverse: C⁻¹, float64 [d, d], on the CPU.
        settings: how.
        after_step: told of every step; what it raises ends the training, and the lesson stands after that step.

    Raises:
        PerfusionError: the settings cannot work, or the loss is no longer a number.
    """
    settings.check()
    while lesson.step < settings.steps:
        draw = Draw.of(settings, lesson.step, latents[:, 0])
        sums, seen, loss = gradients(base, lesson, draw, latents, masks, inverse, settings)
        if not math.isfinite(loss) or not all(bool(g.isfinite().all()) for g in sums):
            raise PerfusionError(
                f"Training stopped at step {lesson.step + 1}: the loss is no longer a number. "
                "Use a higher precision or lower rates."
            )
        adam(lesson, sums, settings)
        lesson.target_input.lerp_(seen, 1 - settings.ema)
        lesson.step += 1
        lesson.losses.append(loss)
        after_step(lesson)
    return lesson
