"""The state of a training, and its conversion to checkpoint tensors and to a concept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from .. import PerfusionError
from ..concept import Concept
from ..covariance import probe
from .optimizer import Adam
from .settings import AT_WORD, Settings

LOSSES = 25
"""Number of last steps over which a concept's recorded loss is averaged; all steps if there are fewer."""

MAX_SCALE = 2.0**16
"""The initial and the largest scale of the loss in a training in half precision."""

OPENED = 0.05
"""How much further a concept's gate may open at similarity 0 than in training."""

KEY_LOCK = 0.5
"""`key_lock` that a concept with keys at the word has by itself. As learned, such keys grow to several times their length, and in
a prompt for two things the concept then takes the place of the second."""


def inference_gate(bias: float, temperature: float) -> tuple[float, float]:
    """Return the default bias and temperature of a concept that was trained with these.

    They have the paper's ratios of inference to training: bias 0.6 to 0.75, temperature 0.15 to 0.1. If these would open the gate
    at unrelated tokens as well, such as the padding, so that the concept would colour whole pictures, the values of training are
    kept.
    """

    def at_zero(bias: float, temperature: float) -> float:
        return 1 / (1 + math.exp(min(bias / temperature, 700)))

    loosened = round(0.8 * bias, 6), round(1.5 * temperature, 6)
    return loosened if at_zero(*loosened) - at_zero(bias, temperature) <= OPENED else (bias, temperature)


@dataclass
class TrainingState:
    """The learned tensors and the progress of their training.

    Attributes:
        word: the learned embedding vectors, by text encoder.
        values: layer -> o*_V, float32 [m]; empty if only the word is learned.
        keys: layer -> o*_K, float32 [m], of the layers in which keys are learned; empty if there are none.
        target_input: i*, a moving average of the concept's encodings, float32 [d].
        superclass_encoding: float32 [d].
        losses: one per step.
        scale: the scale of the loss in half precision at which no gradient overflows.
        optimizer: updates all tensors that are learned by gradients.
    """

    word: dict[str, Tensor]
    values: dict[str, Tensor]
    keys: dict[str, Tensor]
    target_input: Tensor
    superclass_encoding: Tensor
    losses: list[float] = field(default_factory=list)
    scale: float = MAX_SCALE
    optimizer: Adam = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = Adam(list(self.word.values()), self.outputs())

    @property
    def step(self) -> int:
        """Number of completed steps."""
        return len(self.losses)

    def outputs(self) -> list[Tensor]:
        """Return the learned target outputs."""
        return [*self.values.values(), *self.keys.values()]

    def learned(self) -> list[Tensor]:
        """Return all tensors that are learned by gradients."""
        return [*self.word.values(), *self.outputs()]

    def tensors(self) -> dict[str, Tensor]:
        """Return the complete state as named tensors, for a checkpoint."""
        named = {f"word.{k}": v for k, v in self.word.items()}
        named |= {f"value.{k}": v for k, v in self.values.items()} | {f"key.{k}": v for k, v in self.keys.items()}
        named |= {"target_input": self.target_input, "superclass_encoding": self.superclass_encoding}
        named |= {"scale": torch.tensor(self.scale)}
        return named | self.optimizer.state_dict() | {"losses": torch.tensor(self.losses, dtype=torch.float64)}

    @classmethod
    def from_tensors(cls, named: Mapping[str, Tensor], device: torch.device | str = "cpu") -> TrainingState:
        """Restore a state from the result of `tensors` onto a device.

        The losses, in float64, stay where they are, because some devices have no float64.

        Raises:
            PerfusionError: the tensors are incomplete or inconsistent.
        """
        named = {name: tensor if name == "losses" else tensor.to(device) for name, tensor in named.items()}

        def group(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in sorted(named.items()) if k.startswith(prefix)}

        if not {"target_input", "superclass_encoding", "losses", "scale"} <= set(named) or named["losses"].ndim != 1:
            raise PerfusionError("The training checkpoint is incomplete.")
        state = cls(
            group("word."),
            group("value."),
            group("key."),
            named["target_input"],
            named["superclass_encoding"],
            named["losses"].tolist(),
            float(named["scale"]),
        )
        state.optimizer.load_state_dict(group("moment."), state.step)
        return state

    def concept(self, inverse: Tensor, trigger: str, superclass: str, family: str, settings: Settings) -> Concept:
        """Return what has been learned so far as a concept on the CPU; `inverse` is C⁻¹, float64 [d, d]."""

        def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.detach().cpu().clone() for k, v in tensors.items()}

        target_input = self.target_input.cpu().clone()
        told = {k: v for k, v in asdict(settings).items() if k not in ("micro", "ema")}
        last = self.losses[-LOSSES:]
        loss = {"loss": round(sum(last) / len(last), 6)} if last else {}
        bias, temperature = inference_gate(settings.bias, settings.temperature)
        at_word = bool(self.keys) and settings.lock in AT_WORD
        return Concept(
            trigger=trigger,
            superclass=superclass,
            family=family,
            word=own(self.word),
            target_input=target_input,
            probe=probe(inverse, target_input),
            superclass_encoding=self.superclass_encoding.cpu().clone(),
            values=own(self.values),
            keys=own(self.keys),
            keys_at_word=at_word,
            key_lock=KEY_LOCK if at_word else 0.0,
            bias=bias,
            temperature=temperature,
            training=told | {"steps": self.step} | loss,
        )
