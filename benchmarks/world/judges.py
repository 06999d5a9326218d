"""Judges of images of the demo's world: the kind of a character, its looks, its place, and which individual it is.

    python -m benchmarks.world.train_judges train --cast DIR

trains them on the output of `demo.draw`, writes `judges.safetensors` beside this module, and writes their accuracy to
`benchmarks/results/judges.md`. Using them requires only torch and that file:

    judges = Judges.load()
    judges.say("head", images).best()                           # ["with horns", "", ...], one for each image
    judges.recognised(images, "monster", "test", 3)             # [B] whether it is closest to that individual of its split
    judges.recognised(right(images), "robot", "test", 7)        # the right-hand one of two characters

Images are float [B, 96, 96, 3] in 0..1, as the host's nodes return them, with one character each; split an image of two characters
with `left` and `right`. The judges know only this world, but they also give some answer for an image of anything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from demo.individuals import HUES, MOODS, PARTS, STYLES
from demo.world import PLACES, SIDE

WEIGHTS = Path(__file__).with_name("judges.safetensors")
WIDTH, AT_ONCE = 64, 256


def _words(part: str) -> tuple[str, ...]:
    """Return all words for a part, over all kinds, and "" for no word."""
    return tuple(sorted({"", *(word for parts in PARTS.values() for word in parts.get(part, {}).values())}))


QUESTIONS: dict[str, tuple[str, ...]] = {
    "kind": tuple(STYLES),
    "place": PLACES,
    "colour": tuple(HUES),
    "second": tuple(HUES),
    "body": _words("body"),
    "head": _words("head"),
    "pattern": _words("pattern"),
    "eyes": _words("eyes"),
    "mood": tuple(sorted({mood for moods in MOODS.values() for mood in moods if mood})),
    "balloon": ("no", "yes"),
}
"""The questions and their answers. "second" is the word for the second colour. A robot's mood is not visible."""


@dataclass(frozen=True)
class Judgement:
    """The answer to a question for B images."""

    names: tuple[str, ...]
    shares: Tensor
    """Probabilities, float32 [B, names]; each row sums to 1."""

    def of(self, name: str) -> Tensor:
        """Return the probabilities of one answer, [B]; ValueError if it is not one of the answers."""
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(map(repr, self.names))}, but got {name!r}; ask for one of these")
        return self.shares[:, self.names.index(name)]

    def best(self) -> list[str]:
        """Return the most likely answer for each image."""
        return [self.names[i] for i in self.shares.argmax(1).tolist()]


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = layer(width, width, 3, 1), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width, h, w] to the same shape."""
        return F.relu(x + self.norm(self.second(self.first(x))))


def layer(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """Build a convolution with batch norm and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Network(nn.Module):
    """A small convolutional network with a head for each question, one for shades of colour and one for identity."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(layer(3, 32, 3, 2), layer(32, 64, 3, 2), Block(64), layer(64, 128, 3, 2), Block(128))
        # A coarse feature map beside the pooled features, because position matters for how a character looks.
        self.mixed = nn.Sequential(nn.Linear(2 * 128 + 16 * 24, 256), nn.ReLU())
        self.map = nn.Conv2d(128, 24, 1)
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(answers)) for name, answers in QUESTIONS.items()})
        self.shades, self.identity = nn.Linear(256, 6), nn.Linear(256, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, 3, 96, 96] in 0..1 to features [B, 256] for the heads."""
        found = self.trunk(x * 4 - 2)
        parts = found.mean((2, 3)), found.amax((2, 3)), F.avg_pool2d(self.map(found), 3).flatten(1)
        return self.mixed(torch.cat(parts, 1))


def left(images: Tensor) -> Tensor:
    """Crop the left character from images of two, [B, 96, 192, 3] -> [B, 96, 96, 3]."""
    return images[:, :, :SIDE]


def right(images: Tensor) -> Tensor:
    """Crop the right character from images of two, [B, 96, 192, 3] -> [B, 96, 96, 3]."""
    return images[:, :, SIDE:]


@dataclass(frozen=True)
class Judges:
    """The trained network, and a gallery of individuals' identity vectors for each kind and split.

    The galleries of the base's split start with the individuals that have names.
    """

    network: Network
    galleries: dict[tuple[str, str], Tensor]
    """Unit vectors [individuals, WIDTH] by (kind, split): the normalized mean over each individual's pictures."""

    @classmethod
    def load(cls, weights: Path = WEIGHTS) -> Judges:
        """Load the judges from a file."""
        network, galleries = Network(), {}
        with safe_open(weights, "pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            for name in json.loads(file.metadata()["galleries"]):
                _, kind, split = name.split(".")
                galleries[kind, split] = F.normalize(tensors.pop(name), dim=1)
        # The file lacks the batch counters of the norms, which only training reads.
        network.load_state_dict(tensors, strict=False)
        return cls(network.eval().requires_grad_(False), galleries)

    def say(self, question: str, images: Tensor) -> Judgement:
        """Answer one of QUESTIONS; ValueError for any other."""
        if question not in QUESTIONS:
            raise ValueError(f"expected one of {', '.join(QUESTIONS)}, but got {question!r}; ask for one of these")
        return self.say_all(images, (question,))[question]

    def say_all(self, images: Tensor, questions: Sequence[str] = tuple(QUESTIONS)) -> dict[str, Judgement]:
        """Answer several of QUESTIONS in one forward pass over the images."""
        features = self.features(images)
        return {name: Judgement(QUESTIONS[name], self.network.heads[name](features).softmax(1)) for name in questions}

    def shades(self, images: Tensor) -> Tensor:
        """Return RGB values of the body's colour and of the second colour, [B, 2, 3] in 0..1."""
        return self.network.shades(self.features(images)).sigmoid().unflatten(1, (2, 3))

    def identity(self, images: Tensor) -> Tensor:
        """Return unit vectors [B, WIDTH]; those of one individual are close to each other, whatever its mood and place."""
        return F.normalize(self.network.identity(self.features(images)), dim=1)

    def recognised(self, images: Tensor, kind: str, split: str, index: int) -> Tensor:
        """Return whether each image is closer to this individual than to all others of its kind and split, bool [B]."""
        self.place(kind, split, index)
        return (self.identity(images) @ self.galleries[kind, split].T).argmax(1) == index

    def nearness(self, images: Tensor, kind: str, split: str, index: int) -> Tensor:
        """Return the cosine similarity of each image and this individual, [B]."""
        return self.identity(images) @ self.place(kind, split, index)

    def place(self, kind: str, split: str, index: int) -> Tensor:
        """Return an individual's identity vector, [WIDTH]; ValueError if it is not in the galleries."""
        gallery = self.galleries.get((kind, split), ())
        if not 0 <= index < len(gallery):
            known = ", ".join(f"{kind} of {split} 0 to {len(each) - 1}" for (kind, split), each in sorted(self.galleries.items()))
            raise ValueError(f"expected an individual that the judges know ({known}), but got {kind} of {split} {index}")
        return gallery[index]

    def features(self, images: Tensor) -> Tensor:
        """Return the input of the heads, [B, 256]; ValueError unless the images are float [B, 96, 96, 3]."""
        if images.ndim != 4 or images.shape[1:] != (SIDE, SIDE, 3) or not images.is_floating_point():
            raise ValueError(
                f"expected float pictures [B, 96, 96, 3], but got {images.dtype} {list(images.shape)}; cut or scale them first"
            )
        x = images.detach().float().cpu().clamp(0, 1).movedim(3, 1)
        return torch.cat([self.network(part) for part in x.split(AT_ONCE)])
