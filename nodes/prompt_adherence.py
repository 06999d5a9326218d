"""How far a model follows prompts with a concept in them, asked of the model itself (see `perfusion_core.judgement`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..perfusion_core.concept import Concept
from ..perfusion_core.judgement import CONTEXTS, followed
from . import host

SEEDS = 2


class PromptAdherence:
    """Some prompts, and what the model foresees of them with the plain word."""

    def __init__(
        self, model: ModelPatcher, clip: CLIP, superclass: str, size: int, seed: int, asked: Sequence[str] = CONTEXTS
    ) -> None:
        """`asked`: prompts with {} for the thing; `size` in pixels; `seed` of the noises."""
        self.model, self.clip, self.size, self.seed, self.asked = model, clip, size, seed, len(asked)
        self.prompts = [*asked, *(text for text in CONTEXTS if text not in asked)]
        self.plain = self._foreseen(model, self._encoded(clip, superclass))

    def _encoded(self, clip: CLIP, word: str) -> list[list]:
        return host.conditionings(clip, [text.replace("{}", word) for text in self.prompts])

    def _foreseen(self, model: ModelPatcher, prompts: list[list]) -> Tensor:
        return host.foreseen(model, prompts, self.size, SEEDS, self.seed)

    def scores(self, concept: Concept, biases: Iterable[float], mode: str) -> Iterator[float]:
        """How far the prompts are followed with the concept at each of these biases."""
        prompts = self._encoded(host.clip_with_words(self.clip, (concept,)), concept.trigger)
        for bias in biases:
            changed = host.model_with_edit(self.model, (replace(concept, bias=bias, region=None),), mode)
            yield followed(self._foreseen(changed, prompts), self.plain, self.asked)
