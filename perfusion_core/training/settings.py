"""The settings of a training."""

import math
from dataclasses import dataclass

from .. import PerfusionError
from ..gated_edit import EXACT, MODES, STATIC

LOCAL, TRAINED, WORD, FINE = LOCKS = "local", "trained", "word", "fine"
"""Keys are locked to the superclass's keys (§4.1), learned like the values, learned and edited only at the concept's own word, or
the same only in the layers of the highest resolution, with locked keys in all others.

The last two go beyond the paper. With both, the tokens after the word keep their own keys, so that the rest of the prompt keeps
its places in the picture; see `Edit.keys_at_word`. Where objects are in the picture is decided in the layers of lower resolution,
where FINE keeps the superclass's keys, so that a concept does not take the place of a second object.
"""
AT_WORD = WORD, FINE
"""The locks with which keys are edited only at the concept's own word."""
NO_EDIT = "none"
"""A mode in addition to `gated_edit.MODES`, for training only: layers are not edited, and only the word is learned."""


@dataclass(frozen=True)
class Settings:
    """The settings of a training. Learning rates fall to 0 along a cosine. Each step uses `batch` pictures, computed `micro` at a
    time; a picture is mirrored with probability `flip` and small with probability `small`.

    `min_snr` is meant for the `Base`, whose objective may weight noise levels by it. `mode` is one of `gated_edit.MODES` or
    `NO_EDIT`. The word is initialised with `initial_word`, any text that the `Base` can embed, or with the superclass if that is
    empty. With `target_gradient`, gradients reach the word through i* as well; otherwise i* is a constant in each step.
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
        """Raise PerfusionError for an invalid setting."""
        needs: dict[str, tuple[bool, object]] = {
            "steps to be at least 1": (self.steps >= 1, self.steps),
            "batch to be at least 1": (self.batch >= 1, self.batch),
            "at_once to be at least 1": (self.micro >= 1, self.micro),
            "word_rate to be above 0": (0 < self.word_rate < math.inf, self.word_rate),
            "output_rate to be above 0": (0 < self.output_rate < math.inf, self.output_rate),
            "train_temperature to be above 0": (0 < self.temperature < math.inf, self.temperature),
            "train_bias to be a number": (math.isfinite(self.bias), self.bias),
            f"lock to be one of {', '.join(LOCKS[:-1])} or {LOCKS[-1]}": (self.lock in LOCKS, self.lock),
            f"an edit mode other than {STATIC}, which has no gates, when lock is {self.lock}": (
                self.lock not in AT_WORD or self.mode != STATIC,
                self.mode,
            ),
            f"the edit mode to be one of {', '.join(MODES)} or {NO_EDIT}": (self.mode in (*MODES, NO_EDIT), self.mode),
            "flip to be between 0 and 1": (0 <= self.flip <= 1, self.flip),
            "small to be between 0 and 1": (0 <= self.small <= 1, self.small),
            "ema to be between 0 and 1": (0 <= self.ema <= 1, self.ema),
            "min_snr to be 0 or more": (0 <= self.min_snr < math.inf, self.min_snr),
        }
        for needed, (good, given) in needs.items():
            if not good:
                raise PerfusionError(f"Training needs {needed}, but got {given}; change it in Train Concept.")
