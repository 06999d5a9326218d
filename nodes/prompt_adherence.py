"""Measure how far a model follows prompts that contain a concept, with the model itself (see `perfusion_core.judgement`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ..perfusion_core.concept import Concept
from ..perfusion_core.judgement import CONTEXTS, adherence_score
from ..perfusion_core.schedule import ALWAYS
from . import host

SEEDS = 2


class PromptAdherence:
    """Scores how far prompts are followed with a concept, compared with the model's predictions for the plain word."""

    def __init__(
        self, model: ModelPatcher, clip: CLIP, superclass: str, size: int, seed: int, asked: Sequence[str] = CONTEXTS
    ) -> None:
        """Predict all prompts with the plain word.

        Args:
            model: the model without the concept.
            clip: its text encoder.
            superclass: the plain word.
            size: side of the predicted pictures, in pixels.
            seed: of the noises.
            asked: the prompts to score, with {} for the object; the remaining CONTEXTS are only compared against.
        """
        self.model, self.clip, self.size, self.seed, self.asked = model, clip, size, seed, len(asked)
        self.prompts = [*asked, *(text for text in CONTEXTS if text not in asked)]
        self.plain = self._foreseen(model, self._encoded(clip, superclass))

    def _encoded(self, clip: CLIP, word: str) -> list[list]:
        return host.conditionings(clip, [text.replace("{}", word) for text in self.prompts])

    def _foreseen(self, model: ModelPatcher, prompts: list[list]) -> Tensor:
        return host.predict_from_noise(model, prompts, self.size, SEEDS, self.seed)

    def scores(self, concept: Concept, biases: Iterable[float], mode: str) -> Iterator[float]:
        """Yield, for each of these biases, how far the prompts are followed with the concept."""
        prompts = self._encoded(host.clip_with_words(self.clip, (concept,)), concept.trigger)
        for bias in biases:
            # Without region and schedule, since the prediction is a single step.
            alone = replace(concept, bias=bias, region=None, schedule=ALWAYS)
            changed = host.model_with_edit(self.model, (alone,), mode)
            yield adherence_score(self._foreseen(changed, prompts), self.plain, self.asked)
