"""The inputs of a training: checked and arranged before any work is done, then encoded."""

import logging
from dataclasses import dataclass, replace

from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.training.lesson import Bucket, as_templates
from . import training_pictures
from .options import TrainingOptions
from .previews import Previews
from .training_pictures import Sized

log = logging.getLogger("perfusion")


@dataclass(frozen=True)
class Preparation:
    """The pictures and prompts of a training.

    Attributes:
        pictures: the training pictures, by size.
        captions: one for each picture with `{}` for the concept, or none.
        templates: training prompts with `{}` for the concept.
        previews: how previews are generated.
    """

    pictures: list[Sized]
    captions: tuple[str, ...]
    templates: tuple[str, ...]
    previews: Previews

    @classmethod
    def of(
        cls, images: list[Tensor] | None, masks: list[Tensor] | None, size: int, trigger: str, options: TrainingOptions
    ) -> "Preparation":
        """Check and prepare the node's inputs; warn of masks that look inverted.

        Raises:
            PerfusionError: pictures, masks, captions or prompts cannot be trained with.
        """
        pictures = training_pictures.prepare(images, masks, size, options.shape, options.invert_masks)
        if training_pictures.flatten(masks):
            warn_of_inverted(pictures, options.invert_masks)
        captions = captions_of(options, trigger, sum(len(group.numbers) for group in pictures))
        previews = replace(options.previews, prompts=options.picture_prompts(trigger))
        return cls(pictures, captions, options.training_prompts(trigger), previews)

    def tensors(self) -> list[Tensor]:
        """Return all pictures and masks."""
        return [tensor for group in self.pictures for tensor in (group.images, group.masks)]

    def prompts(self) -> dict[str, str]:
        """Map what an error calls a training prompt to the prompt, with `{}` for the concept."""
        kinds = {"Template": self.templates, "Caption": self.captions}
        return {f"{kind} {i + 1} of {len(texts)}": text for kind, texts in kinds.items() for i, text in enumerate(texts)}

    def encoded(self, model: ModelPatcher, vae: VAE, small: bool) -> tuple[Bucket, ...]:
        """Encode the pictures, with `small` also shown small."""
        buckets = []
        for group in self.pictures:
            latents, masks = training_pictures.latent_forms(model, vae, group.images, group.masks, small)
            buckets.append(Bucket(latents, masks, tuple(self.captions[i] for i in group.numbers) if self.captions else ()))
        return tuple(buckets)


def captions_of(options: TrainingOptions, trigger: str, count: int) -> tuple[str, ...]:
    """Return the captions of `count` pictures with `{}` for the concept, or none.

    Raises:
        PerfusionError: there is not one for each picture, or one does not name the concept once.
    """
    if options.captions and len(options.captions) != count:
        raise PerfusionError(
            f"There are {count} pictures and {len(options.captions)} captions; write one line for each picture, or none at all."
        )
    return as_templates(options.captions, trigger, "Caption")


def warn_of_inverted(pictures: list[Sized], inverted: bool) -> None:
    """Warn if most masks look as if they were white where the object is not."""
    looks = [training_pictures.looks_inverted(mask) for group in pictures for mask in group.masks]
    if 2 * sum(looks) > len(looks):
        log.warning(
            "%d of %d masks are white along the rim and black in the middle: they look inverted, and training would learn what "
            "is around the object. Turn invert_masks %s in Training Options; it should be on for cut-outs and off for masks from "
            "the mask editor.",
            sum(looks),
            len(looks),
            "off" if inverted else "on",
        )
