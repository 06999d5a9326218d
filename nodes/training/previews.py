"""Pictures of a concept during its training."""

from dataclasses import asdict, dataclass

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from torch import Tensor

from .. import host

ON_THE_GRASS = "a photo of a {} on the grass"


@dataclass(frozen=True)
class Previews:
    """How previews are generated.

    Attributes:
        prompts: one for each picture, with `{}` for the concept. The default shows whether prompts are still followed.
        negative: the negative prompt.
        steps, cfg, sampler, scheduler: as in KSampler. The default guidance is low: a high one exaggerates what the concept has not
            learned well yet.
    """

    prompts: tuple[str, ...] = (ON_THE_GRASS,)
    negative: str = ""
    steps: int = 20
    cfg: float = 3.0
    sampler: str = "ddim"
    scheduler: str = "normal"

    @classmethod
    def suited_to(cls, model: ModelPatcher) -> "Previews":
        """Return what suits a model: few steps and little guidance if its sampling is set up for a distilled one."""
        return cls(steps=6, cfg=1.5, sampler="lcm", scheduler="sgm_uniform") if host.is_distilled(model) else cls()

    def draw(self, model: ModelPatcher, clip: CLIP, vae: VAE, word: str, size: int, seed: int) -> Tensor:
        """Generate pictures [K, size, size, 3] for a word, all from the same noise."""
        how = asdict(self)
        prompts = [prompt.format(word) for prompt in how.pop("prompts")]
        return torch.cat([host.draw(model, clip, vae, prompt, size, seed, **how) for prompt in prompts])
