"""Judges of pictures of the emoji world: which word, which background, whose drawing. For measurements alone.

    python -m benchmarks.oracles train [--emoji DIR]

trains them, writes `oracles.safetensors` beside this module and what they can do to `results/oracles.md`. Using them needs
torch and that file only:

    oracles = Oracles.load()
    oracles.words(images, LEFT).best()                  # ["teddy", "nothing", ...], one for each picture
    oracles.backgrounds(images).of("at night")          # [B] probabilities
    oracles.designs(images, "teddy", boxes).shares      # [B, designers]

They know one world: a picture of anything else gets some answer too.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from demo import world

WEIGHTS = Path(__file__).with_name("oracles.safetensors")
SIDE = 64
WHOLE, LEFT, RIGHT = (0, 0, SIDE, SIDE), (0, 0, SIDE // 2, SIDE), (SIDE // 2, 0, SIDE, SIDE)
NOTHING = "nothing"
WORDS = (*world.WORDS, NOTHING)
AT_ONCE = 256

Boxes = Tensor | Sequence[float] | None
"""Regions (left, top, right, bottom) in pixels of a 64 px picture: one for all pictures, or [B, 4]; None is the whole picture."""


@dataclass(frozen=True)
class Judgement:
    """What an oracle says of B pictures."""

    names: tuple[str, ...]
    shares: Tensor
    """Probabilities, float32 [B, names]; each row sums to 1."""

    def of(self, name: str) -> Tensor:
        """The probabilities of one name, [B]; ValueError if the oracle does not know it."""
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}, but got {name!r}; ask for one of these")
        return self.shares[:, self.names.index(name)]

    def best(self) -> list[str]:
        """The likeliest name for each picture."""
        return [self.names[i] for i in self.shares.argmax(1).tolist()]


class Block(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = layer(width, width, 3, 1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, h, w] -> the same."""
        return F.relu(x + self.norm(self.second(self.first(x))))


def layer(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """A convolution with norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Network(nn.Module):
    """One small convolutional net with a head for each question; it sees a region enlarged to the whole picture's size."""

    def __init__(self, designs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            layer(3, 24, 5, 2), layer(24, 48, 3, 2), Block(48), layer(48, 96, 3, 2), Block(96), layer(96, 128, 3, 2)
        )
        self.heads = nn.ModuleDict(
            {
                "words": nn.Linear(256, len(WORDS)),
                "backgrounds": nn.Linear(256, len(world.BACKGROUNDS)),
                "designs": nn.Linear(256, designs),
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Regions [B, 3, 64, 64] in 0..1 -> logits [B, classes] of each head."""
        found = self.trunk(x * 4 - 2)
        found = torch.cat([found.mean((2, 3)), found.amax((2, 3))], 1)
        return {name: head(found) for name, head in self.heads.items()}


def crop(x: Tensor, boxes: Tensor) -> Tensor:
    """Regions [B, 4] of pictures [B, 3, 64, 64], each stretched to 64 x 64; beyond the edge the picture is mirrored."""
    low, high = boxes[:, :2] / SIDE, boxes[:, 2:] / SIDE
    theta = torch.zeros(len(x), 2, 3)
    theta[:, [0, 1], [0, 1]] = high - low
    theta[:, :, 2] = high + low - 1
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


@dataclass(frozen=True)
class Oracles:
    """The trained net. Pictures are float [B, 64, 64, 3] in 0..1, as the host's nodes give them; ValueError for others."""

    network: Network
    pairs: tuple[tuple[str, str], ...]
    """(word, designer) for each class of the head of designs."""

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> "Oracles":
        """Read the trained net from a file."""
        with safe_open(weights, "pt") as file:
            pairs = tuple((word, designer) for word, designer in json.loads(file.metadata()["designs"]))
            network = Network(len(pairs))
            # The norms' counts of batches, which only training reads, are not in the file.
            network.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()}, strict=False)  # noqa: SIM118
        return cls(network.eval().requires_grad_(False), pairs)

    def words(self, images: Tensor, boxes: Boxes = None) -> Judgement:
        """Which word's thing is in the region, or "nothing". Two things in one region share the probability."""
        return Judgement(WORDS, self._logits(images, boxes, "words").softmax(1))

    def backgrounds(self, images: Tensor) -> Judgement:
        """On which of the world's backgrounds the whole picture is."""
        return Judgement(world.BACKGROUNDS, self._logits(images, None, "backgrounds").softmax(1))

    def designs(self, images: Tensor, word: str, boxes: Boxes = None) -> Judgement:
        """Who drew the word's thing in the region, among those designers who have one.

        Where the region holds no such thing the answer leans to nobody, though a patch in a designer's own colours may still win.
        For "this word's thing, and this designer's" multiply by `words(...).of(word)`.
        """
        columns = [i for i, (known, _) in enumerate(self.pairs) if known == word]
        if not columns:
            raise ValueError(f"expected one of {', '.join(world.WORDS)}, but got {word!r}; ask for one of these")
        shares = self._logits(images, boxes, "designs")[:, columns].softmax(1)
        return Judgement(tuple(self.pairs[i][1] for i in columns), shares)

    def _logits(self, images: Tensor, boxes: Boxes, head: str) -> Tensor:
        """One head's logits, float32 [B, classes]."""
        if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3) or not images.is_floating_point():
            raise ValueError(
                f"expected float pictures [B, 64, 64, 3], but got {images.dtype} {list(images.shape)}; scale them first"
            )
        regions = torch.as_tensor(WHOLE if boxes is None else boxes, dtype=torch.float32)
        if regions.shape not in ((4,), (len(images), 4)) or not (regions[..., :2] < regions[..., 2:]).all():
            raise ValueError(
                f"expected boxes (left, top, right, bottom), [4] or [{len(images)}, 4], but got {regions.tolist()}; mend them"
            )
        x = images.detach().float().cpu().clamp(0, 1).movedim(3, 1)
        parts = zip(x.split(AT_ONCE), regions.expand(len(x), 4).split(AT_ONCE), strict=True)
        return torch.cat([self.network(crop(*part))[head] for part in parts])


if __name__ == "__main__":
    from benchmarks import oracle_training

    oracle_training.main(sys.argv[1:])
