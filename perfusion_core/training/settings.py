"""How a concept is taught."""

import math
from dataclasses import asdict, dataclass

from .. import PerfusionError
from ..gated_edit import EXACT, MODES

LOCAL, TRAINED = "local", "trained"
"""Keys are locked to the superclass's (§4.1), or learned as values are."""
NO_EDIT = "none"
"""A mode beside `gated_edit.MODES`, for training alone: there is no edit, and the word is all that is learned."""


@dataclass(frozen=True)
class Settings:
    """How a concept is taught. Rates fall to 0 along a cosine; `batch` pictures are taken a step, `micro` at a time,
    mirrored in a share of `flip` and small in a share of `small`.

    `min_snr` is for the `Base`, whose objective may weigh noise levels by it. `mode` is one of `gated_edit.MODES` or `NO_EDIT`.
    The word starts as `initial_word`, any text that the `Base` can embed, or as the superclass where that is empty. With
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
            f"an edit mode of {', '.join((*MODES, NO_EDIT))}": self.mode in (*MODES, NO_EDIT),
            "a flip between 0 and 1": 0 <= self.flip <= 1,
            "a small between 0 and 1": 0 <= self.small <= 1,
            "an average (ema) between 0 and 1": 0 <= self.ema <= 1,
            "a min_snr of 0 or more": 0 <= self.min_snr < math.inf,
        }
        for needed, given in needs.items():
            if not given:
                raise PerfusionError(f"Training needs {needed}; the settings were {asdict(self)}.")
