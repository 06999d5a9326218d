"""Scenes for training and testing the oracles, as drawn and as the demo's autoencoder gives them back; kept on disk."""

import random
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor

from demo import world
from scripts import bootstrap, inside, steps

CACHE = bootstrap.CACHE / "oracles"
DESIGNERS = (*world.BASE_DESIGNERS, *(name for names in world.HELD_OUT_DESIGNERS.values() for name in names))
NONE = -1
# Standard deviation of the noise on the second passage's latents, as a share of the latents' own: a sampler's latents err too.
LATENT_NOISE = 0.25


@dataclass(frozen=True)
class Scenes:
    """N scenes of up to two things."""

    drawn: Tensor
    """uint8 [N, 64, 64, 3]."""
    decoded: Tensor
    """The same after the autoencoder, uint8: [0] as it is, [1] from latents with noise; [2, N, 64, 64, 3]."""
    counts: Tensor
    """How many places for things: one in the middle, or one in each half; int64 [N]."""
    words: Tensor
    """Index into the world's WORDS of each thing, int64 [N, 2]; NONE for no thing, or for one of no word."""
    designers: Tensor
    """Index into DESIGNERS, int64 [N, 2]."""
    boxes: Tensor
    """What each thing covers: (left, top, right, bottom) in pixels, float32 [N, 2, 4]."""
    places: Tensor
    """Index into the world's BACKGROUNDS, int64 [N]."""


def blob(sprite: Image.Image, rng: random.Random) -> Image.Image:
    """A thing of no word: a random shape with an emoji's colours. A net that has seen such must look at shapes."""
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 1, (5, 5)).astype(np.float32)
    smooth = np.asarray(Image.fromarray(noise).resize(sprite.size, Image.BICUBIC))
    y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in sprite.size))
    inside = (0.9 + 0.5 * smooth - 2 * (x**2 + y**2) ** 2) * 255
    filled = sprite.resize((1, 1), Image.BOX).convert("RGB").resize(sprite.size).convert("RGBA")
    filled.alpha_composite(sprite.rotate(rng.choice((90, 180, 270))))
    filled = filled.filter(ImageFilter.GaussianBlur(rng.uniform(2, 12)))
    filled.putalpha(Image.fromarray(inside.clip(0, 255).astype(np.uint8)))
    return filled


def draw(sprites: world.Sprites, count: int, rng: random.Random) -> dict[str, Tensor]:
    """All but the autoencoder's part of `count` scenes."""
    things = {word: [key for key in sprites if key[1] == word] for word in world.WORDS}
    names, nothing = list(world.WORDS), Image.new("RGBA", (96, 96))
    pictures, counts, labels, boxes, places = [], [], [], [], []
    for _ in range(count):
        chosen, known = [], []
        for kind in rng.choices(("", "w", "b", "ww", "wn", "nw", "wb", "bw"), (4, 40, 8, 30, 5, 5, 4, 4))[0]:
            key = rng.choice(things[rng.choice(names)])
            known.append((names.index(key[1]), DESIGNERS.index(key[0])) if kind == "w" else (NONE, NONE))
            chosen.append(nothing if kind == "n" else blob(sprites[key], rng) if kind == "b" else sprites[key])
        place = rng.randrange(len(world.BACKGROUNDS))
        picture, mask = world.compose(chosen, world.BACKGROUNDS[place], rng)
        pictures.append(np.asarray(picture))
        counts.append(len(known))
        labels.append(known + [(NONE, NONE)] * (2 - len(known)))
        boxes.append(covered(mask, len(known)))
        places.append(place)
    words, designers = torch.tensor(labels).unbind(2)
    return {
        "drawn": torch.from_numpy(np.stack(pictures)),
        "counts": torch.tensor(counts),
        "words": words.contiguous(),
        "designers": designers.contiguous(),
        "boxes": torch.tensor(boxes, dtype=torch.float32),
        "places": torch.tensor(places),
    }


def covered(mask: Image.Image, things: int) -> list[tuple[int, int, int, int]]:
    """The box around each of up to two things, of two the left one's and the right one's; zeros for none."""
    nowhere = (0, 0, 0, 0)
    if things < 2:
        return [mask.getbbox() or nowhere, nowhere]
    middle = mask.width // 2
    left = mask.crop((0, 0, middle, mask.height)).getbbox()
    right = mask.crop((middle, 0, *mask.size)).getbbox()
    return [left or nowhere, (right[0] + middle, right[1], right[2] + middle, right[3]) if right else nowhere]


def autoencode(drawn: Tensor, setup: bootstrap.Setup) -> Tensor:
    """uint8 [N, 64, 64, 3] -> uint8 [2, N, 64, 64, 3]: through the demo's autoencoder, loaded by the host."""
    inside.enter(setup.comfyui)
    import comfy.sd
    import comfy.utils

    checkpoint = load_file(setup.base / "models" / "checkpoints" / bootstrap.CHECKPOINT)
    weights = comfy.utils.state_dict_prefix_replace(checkpoint, {"first_stage_model.": ""}, filter_keys=True)
    # Half a level off single precision, and several times faster where the processor has bfloat16.
    coder = comfy.sd.VAE(sd=weights, dtype=torch.bfloat16)
    noise = torch.Generator().manual_seed(0)
    found = []
    with torch.no_grad():
        for part in drawn.split(50):
            latents = coder.encode(part / 255)
            noised = latents + LATENT_NOISE * latents.std() * torch.randn(latents.shape, generator=noise)
            both = torch.stack([coder.decode(latents), coder.decode(noised)])
            found.append((both.clamp(0, 1) * 255).round().to(torch.uint8))
    return torch.cat(found, 1)


def scenes(emoji: Path, count: int, seed: int) -> Scenes:
    """`count` scenes of a seed; made once, then read from disk."""
    sources = Path(__file__), Path(world.__file__), bootstrap.ROOT / "demo" / "base.bin"
    file = CACHE / f"scenes-{count}-{seed}-{steps.digest(*sources)[:8]}.safetensors"
    if not file.exists():
        setup = bootstrap.locate()
        world.fetch(emoji)
        with steps.step(f"Drawing {count} scenes and passing them through the autoencoder"):
            made = draw(world.sprites(emoji, DESIGNERS), count, random.Random(seed))
            made["decoded"] = autoencode(made["drawn"], setup)
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(made, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
    stored = load_file(file)
    return Scenes(*(stored[field.name] for field in fields(Scenes)))
