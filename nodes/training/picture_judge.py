"""Judge a concept by pictures generated with it, as a CLIP vision model sees them (see `perfusion_core.judgement`)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from ...perfusion_core.concept import Concept
from ...perfusion_core.judgement import CONTEXTS, PictureJudgement
from .. import host
from .previews import Previews
from .training_pictures import Sized

PROMPTS, SEEDS = CONTEXTS[:4], 2


@dataclass(frozen=True)
class PictureJudge:
    """Judges concepts by their pictures in PROMPTS, compared with the training pictures and with those of the plain word.

    Attributes:
        vision: embeds the pictures.
        pictures: the training pictures.
        model, clip, vae: the host's objects, without the concept.
        superclass: the plain word.
        size, seed: of the generated pictures.
        previews: how they are generated, apart from their prompts.
        mode: edit mode.
    """

    vision: ClipVisionModel
    pictures: Sequence[Sized]
    model: ModelPatcher
    clip: CLIP
    vae: VAE
    superclass: str
    size: int
    seed: int
    previews: Previews
    mode: str

    @cached_property
    def plain(self) -> Tensor:
        """The plain word's pictures, embedded, [K, S, d]; generated once."""
        return self._seen(self.model, self.clip, self.superclass)

    @cached_property
    def taught(self) -> Tensor:
        """The training pictures, embedded, [P, d]."""
        return torch.cat([host.picture_embeddings(self.vision, group.images) for group in self.pictures])

    def judgement(self, concept: Concept) -> PictureJudgement:
        """Generate a concept's pictures and judge them."""
        model = host.model_with_edit(self.model, (concept,), self.mode)
        own = self._seen(model, host.clip_with_words(self.clip, (concept,)), concept.trigger)
        return PictureJudgement.of(own, self.plain, self.taught)

    def _seen(self, model: ModelPatcher, clip: CLIP, word: str) -> Tensor:
        how = replace(self.previews, prompts=PROMPTS)
        drawn = [how.draw(model, clip, self.vae, word, self.size, self.seed + i) for i in range(SEEDS)]
        return torch.stack([host.picture_embeddings(self.vision, pictures) for pictures in drawn], 1)
