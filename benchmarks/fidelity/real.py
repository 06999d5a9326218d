"""Trials on a user's own checkpoint and pictures, with CLIP as the judge: the paper's two axes.

*Image similarity* is the mean cosine similarity of CLIP's embeddings of a generated image and of the training pictures; *text
similarity* is that of a generated image and of its prompt with the superclass in the concept's place. Both use one CLIP model, from
one file with image and text encoder (such as openai/clip-vit-large-patch14's model.safetensors), loaded by the host.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity.concepts import Concept
from benchmarks.fidelity.methods import FOUND, LORA, PERFUSION, Recipe
from benchmarks.fidelity.trials import Prompt, Scores, Trial
from benchmarks.lab import read
from perfusion_fleet import inside

PROMPTS = (
    "a photo of a {} on the beach",
    "a {} in the snow",
    "a painting of a {} in the style of Monet",
    "a {} wearing a red hat",
    "a photo of a {} beside a cup of coffee",
    "a {} floating in outer space",
)
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
OURS: dict[str, object] = {"output_rate": 0.03, "min_snr": 0.0}
"""Defaults of Train Concept, for those widgets in which the demo's small model needs other values."""
CANDIDATES: dict[str, tuple[Recipe, ...]] = {
    "Perfusion": (Recipe(widgets=OURS, masks=FOUND),),
    "Textual Inversion": (Recipe(widgets=OURS | {"edit_mode": "none", "word_rate": 5e-3}, masks=FOUND),),
    "static edit (ROME)": (Recipe(widgets=OURS | {"edit_mode": "static"}, masks=FOUND),),
    "LoRA": (Recipe(LORA, {"learning_rate": 5e-4, "gradient_checkpointing": True}),),
}
"""One recipe for each method, because nothing is tuned on a user's pictures."""


def candidates(steps: int, batch: int, pictures: int) -> dict[str, tuple[Recipe, ...]]:
    """Return the recipes for this number of steps, batch size and number of pictures."""
    named = {PERFUSION: "batch", LORA: "batch_size"}

    def fit(recipe: Recipe) -> Recipe:
        widgets = {**recipe.widgets, "steps": steps, named[recipe.teacher]: batch}
        if recipe.teacher == PERFUSION:
            widgets["at_once"] = 1
        return replace(recipe, widgets=widgets, pictures=pictures)

    return {name: tuple(fit(recipe) for recipe in found) for name, found in CANDIDATES.items()}


def files(folder: Path) -> list[Path]:
    """Return the pictures in a folder; SystemExit if there are none."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise SystemExit(f"expected pictures in {folder}, but there are none; give a folder with some.")
    return found


def prompts(path: Path | None) -> tuple[Prompt, ...]:
    """Read the user's prompts, one per line with {} for the concept; without a file, return PROMPTS.

    Raises SystemExit for a prompt without exactly one {} and for a file without prompts.
    """
    lines = PROMPTS if path is None else [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    wrong = [line for line in lines if line.count("{}") != 1]
    if wrong or not lines:
        raise SystemExit(f"expected prompts with one {{}} each for the concept, but got {wrong[:1]}; mend them.")
    return tuple(Prompt(line) for line in lines)


class Clip:
    """A CLIP model, loaded by the host's modules in this process."""

    def __init__(self, comfyui: Path, file: Path) -> None:
        inside.enter(comfyui)
        import comfy.clip_vision
        import comfy.sd

        self.vision = comfy.clip_vision.load(str(file))
        if self.vision is None:
            raise SystemExit(f"expected a CLIP model with an image encoder in {file}, but the host finds none; give another file.")
        self.text_encoder = comfy.sd.load_clip([str(file)], clip_type=comfy.sd.CLIPType.STABLE_DIFFUSION)

    def images(self, pictures: Tensor) -> Tensor:
        """Embed images [B, H, W, 3] in 0…1 as unit vectors [B, d]."""
        with torch.no_grad():
            found = torch.cat([self.vision.encode_image(each[None])["image_embeds"] for each in pictures])
        return torch.nn.functional.normalize(found.float(), dim=1)

    def text(self, text: str) -> Tensor:
        """Embed a text as a unit vector [d]."""
        with torch.no_grad():
            _, pooled = self.text_encoder.encode_from_tokens(self.text_encoder.tokenize(text), return_pooled=True)
            # The host loads it as a checkpoint's encoder, whose output is not yet projected into the space of the images.
            projection = self.text_encoder.cond_stage_model.clip_l.transformer.text_projection.weight.float().to(pooled.device)
        return torch.nn.functional.normalize(projection @ pooled.float()[0], dim=0)


@dataclass(frozen=True)
class RealBed:
    """A `trials.Bed` of a user's checkpoint and pictures; a concept is (name, superclass)."""

    checkpoint: str
    side: int
    shown: tuple[Path, ...]
    clip: Clip

    def pictures(self, folder: Path, concept: Concept, recipe: Recipe) -> list[str]:
        """See `trials.Bed.pictures`."""
        (folder / concept[0]).mkdir(parents=True, exist_ok=True)
        names = []
        for i, path in enumerate(self.shown[: recipe.pictures]):
            names.append(f"{concept[0]}/{i}.png")
            with Image.open(path) as image:
                image.save(folder / names[-1])
        return names

    @cached_property
    def theirs(self) -> Tensor:
        """Unit vectors of the training pictures, [pictures, d]."""
        return torch.cat([self.clip.images(read(path)[None]) for path in self.shown])

    def judge(self, trial: Trial, drawn: list[Tensor]) -> Scores:
        """Return the cosine similarities that the module's docstring defines."""
        with torch.no_grad():
            seen = [self.clip.images(images) for images in drawn]
            asked = [self.clip.text(prompt.text.format(trial.concept[1])) for prompt in trial.prompts]
        likeness = np.stack([(images @ self.theirs.T).mean(1).numpy() for images in seen])
        text = np.stack([(images @ text).numpy() for images, text in zip(seen, asked, strict=True)])
        return Scores(likeness, text, likeness)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line options for a user's own checkpoint and pictures."""
    group = parser.add_argument_group("a checkpoint and pictures of one's own")
    group.add_argument("--checkpoint", type=Path, help="a checkpoint file; the rest of this group goes with it")
    group.add_argument("--pictures", type=Path, help="a folder with pictures of one thing")
    group.add_argument("--superclass", help="the plain word for it")
    group.add_argument("--clip", type=Path, help="a CLIP model with image and text encoder in one file")
    group.add_argument("--prompts", type=Path, help="a text file, one prompt with {} a line")
    group.add_argument("--side", type=int, default=512, help="pixels that the checkpoint was trained for")
    group.add_argument("--steps", type=int, default=400, help="training steps of every method")
    group.add_argument("--batch", type=int, default=8, help="pictures a step of every method")


def check(arguments: argparse.Namespace) -> None:
    """Raise SystemExit if a required option or file is missing."""
    for name in ("checkpoint", "pictures", "superclass", "clip"):
        value = getattr(arguments, name)
        if not value or (name in ("checkpoint", "clip") and not value.is_file()):
            raise SystemExit(f"expected --{name} to go with --checkpoint, but got {value}; see --help.")
