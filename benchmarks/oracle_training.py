"""Train the oracles and say what they can do; the command line of `benchmarks.oracles`."""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import oracle_report
from benchmarks.oracle_scenes import DESIGNERS, NONE, Scenes, scenes
from benchmarks.oracles import LEFT, RIGHT, SIDE, WEIGHTS, WHOLE, WORDS, Network, Oracles, crop
from demo import world
from scripts import bootstrap, steps

SCENES, TEST_SCENES = 10000, 3000
TRAIN_SEED, TEST_SEED = 0, 1
BATCH, STEPS, RATE = 64, 4000, 3e-3
# A thing counts as in a region from this share on, and as absent up to that; regions between are not asked about.
INSIDE, OUTSIDE = 0.75, 0.15
SMALLEST = 14

Box = tuple[float, float, float, float]


# Regions and what is in them


def overlap(thing: Box, region: Box) -> float:
    """Share of a thing's box that lies in the region; 0 for no thing."""
    left, top, right, bottom = thing
    width = min(right, region[2]) - max(left, region[0])
    height = min(bottom, region[3]) - max(top, region[1])
    return max(width, 0) * max(height, 0) / max((right - left) * (bottom - top), 1)


def region(things: list[Box], rng: random.Random) -> tuple[Box, list[bool]]:
    """A region to ask about, and which of the things are in it."""
    kind = rng.choices(("whole", "half", "thing", "any"), (40, 20, 30, 10))[0]
    box = {"half": rng.choice((LEFT, RIGHT)), "thing": around(rng.choice(things), rng), "any": anywhere(rng)}.get(kind, WHOLE)
    if kind in ("whole", "half"):
        box = tuple(edge + rng.uniform(-3, 3) for edge in box)
    shares = [overlap(thing, box) for thing in things]
    if any(OUTSIDE < share < INSIDE for share in shares):
        return WHOLE, [thing[2] > thing[0] for thing in things]
    return box, [share >= INSIDE for share in shares]


def around(thing: Box, rng: random.Random) -> Box:
    """The thing's box with some room on each side, or a little less than all of it; anywhere for no thing."""
    left, top, right, bottom = thing
    if right <= left:
        return anywhere(rng)
    wide, high = right - left, bottom - top
    room = [rng.uniform(-0.05, 0.35) for _ in range(4)]
    return left - wide * room[0], top - high * room[1], right + wide * room[2], bottom + high * room[3]


def anywhere(rng: random.Random) -> Box:
    """Any region that is not too small."""
    wide, high = rng.uniform(SMALLEST, SIDE), rng.uniform(SMALLEST, SIDE)
    left, top = rng.uniform(0, SIDE - wide), rng.uniform(0, SIDE - high)
    return left, top, left + wide, top + high


def word_shares(words: Tensor, there: Tensor) -> Tensor:
    """Words [B, 2] and which of them are there [B, 2] -> wanted probabilities [B, words and "nothing"]."""
    shares = torch.zeros(len(words), len(WORDS))
    named = there & (words != NONE)
    for i in range(2):
        shares[torch.arange(len(words)), words[:, i]] += named[:, i].float()
    shares[:, -1] += (~named.any(1)).float()
    return shares / shares.sum(1, keepdim=True)


# What a sampler and a file do to pictures


def spoil(x: Tensor) -> Tensor:
    """Pictures [B, 3, 64, 64] with blur, block artefacts, changed colours and noise, each of random strength."""

    def strength(low: float, high: float, *, rare: bool = False) -> Tensor:
        amount = low + (high - low) * torch.rand(len(x), 1, 1, 1)
        return amount * (torch.rand(len(x), 1, 1, 1) < 0.4) if rare else amount

    x = x.lerp(blur(x), strength(0, 1, rare=True))
    x = blocks(x, strength(0, 0.15, rare=True))
    gray, middle = x.mean(1, keepdim=True), x.mean((1, 2, 3), keepdim=True)
    x = gray + (x - gray) * strength(0.85, 1.15)
    x = middle + (x - middle) * strength(0.9, 1.1) + strength(-0.05, 0.05)
    x = x * (1 + 0.1 * (torch.rand(len(x), 3, 1, 1) - 0.5))
    return (x + strength(0, 0.05, rare=True) * torch.randn_like(x)).clamp(0, 1)


def blur(x: Tensor) -> Tensor:
    """A blur of about 1.4 pixels."""
    kernel = torch.tensor([1.0, 8.0, 28.0, 56.0, 70.0, 56.0, 28.0, 8.0, 1.0]) / 256
    kernel = kernel.expand(3, 1, 1, 9)
    x = F.conv2d(F.pad(x, (4, 4, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, 4, 4), mode="reflect"), kernel.mT, groups=3)


def blocks(x: Tensor, step: Tensor) -> Tensor:
    """What JPEG does: the cosine transform of 8 x 8 blocks, rounded more coarsely where it is finer. Step [B, 1, 1, 1]."""
    k = torch.arange(8.0)
    basis = torch.cos(torch.pi / 8 * (k + 0.5) * k[:, None]) / 2
    basis[0] /= 2**0.5
    parts = x.unflatten(3, (8, 8)).unflatten(2, (8, 8))
    waves = torch.einsum("uy,bcpyqx,vx->bcpuqv", basis, parts, basis)
    steps = (step[..., None, None] * (1 + k[:, None, None] + k)).clamp(min=1e-6)
    waves = (waves / steps).round() * steps
    return torch.einsum("uy,bcpuqv,vx->bcpyqx", basis, waves, basis).flatten(4, 5).flatten(2, 3)


# Training


class Batches:
    """Random regions of a set of scenes, with what is wanted of each head."""

    def __init__(self, data: Scenes, pairs: list[tuple[str, str]], rng: random.Random) -> None:
        self.data, self.rng = data, rng
        self.boxes = data.boxes.tolist()
        names = list(world.WORDS)
        self.design = torch.full((len(names), len(DESIGNERS)), NONE)
        for i, (word, designer) in enumerate(pairs):
            self.design[names.index(word), DESIGNERS.index(designer)] = i
        self.word_of_design = torch.tensor([names.index(word) for word, _ in pairs])

    def next(self) -> tuple[Tensor, dict[str, Tensor]]:
        """A batch: regions [B, 3, 64, 64] and the indices and shares that `loss` reads."""
        data = self.data
        index = torch.tensor([self.rng.randrange(len(data.drawn)) for _ in range(BATCH)])
        found = [region(self.boxes[i], self.rng) for i in index.tolist()]
        boxes, there = (torch.tensor(part) for part in zip(*found, strict=True))
        # A quarter as drawn, half as decoded, a quarter as decoded from noised latents.
        which = torch.tensor([self.rng.choice((0, 1, 1, 2)) for _ in range(BATCH)])
        pictures = torch.where((which == 0)[:, None, None, None], data.drawn[index], data.decoded[(which - 1).clamp(min=0), index])
        x = crop(spoil(pictures.movedim(3, 1) / 255), boxes)
        x = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, x, x.flip(3))
        words = data.words[index]
        alone = there.sum(1) == 1
        only = there.float().argmax(1, keepdim=True)
        word, designer = words.gather(1, only)[:, 0], data.designers[index].gather(1, only)[:, 0]
        return x, {
            "words": word_shares(words, there),
            "backgrounds": data.places[index],
            "whole": (boxes[:, 2:] - boxes[:, :2]).amin(1) > SIDE - 7,
            "designs": torch.where(alone & (word != NONE), self.design[word, designer], NONE),
        }

    def loss(self, logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
        """Cross entropy of the heads: backgrounds of whole pictures only, designs among the designers of the word that is there.

        Asked about a word that is not there, the head of designs shall favour nobody: else a patch of the right colour is enough.
        """
        words = F.cross_entropy(logits["words"], wanted["words"], label_smoothing=0.02)
        whole = wanted["whole"]
        backgrounds = F.cross_entropy(logits["backgrounds"][whole], wanted["backgrounds"][whole])
        there = wanted["designs"] != NONE
        design = wanted["designs"][there]
        designs = F.nll_loss(self.among(logits["designs"][there], self.word_of_design[design])[0], design)
        other = torch.randint(len(world.WORDS), (BATCH, 1))
        absent = wanted["words"].gather(1, other)[:, 0] == 0
        shares, rivals = self.among(logits["designs"][absent], other[absent, 0])
        even = -((shares * rivals).sum(1) / rivals.sum(1)).mean()
        return words + 0.5 * backgrounds + designs + 0.3 * even

    def among(self, logits: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities among the designers of a word, [B, designs], and which columns these are."""
        rivals = self.word_of_design == word[:, None]
        return logits.masked_fill(~rivals, -1e4).log_softmax(1), rivals


def train(data: Scenes, pairs: list[tuple[str, str]], out: Path) -> None:
    """Train from a fixed seed and write the weights, half precision."""
    torch.manual_seed(0)
    batches = Batches(data, pairs, random.Random(0))
    network = Network(len(pairs)).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, STEPS, pct_start=0.1)
    start = time.monotonic()
    for step in range(STEPS):
        x, wanted = batches.next()
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x.contiguous(memory_format=torch.channels_last))
        loss = batches.loss({name: value.float() for name, value in logits.items()}, wanted)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 250 == 249:
            steps.say(f"  step {step + 1} of {STEPS}, {time.monotonic() - start:.0f} s, loss {loss:.3f}")
    state = {name: value.half().contiguous() for name, value in network.state_dict().items() if value.is_floating_point()}
    save_file(state, out, metadata={"designs": json.dumps(pairs)})


def main(arguments: list[str]) -> None:
    """The command line, without the program's name."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.oracles", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("train", "report"), help="report: only measure what is there")
    parser.add_argument("--emoji", type=Path, default=bootstrap.CACHE / "emoji", help="the emoji sets; fetched if missing")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.action == "train":
        data = scenes(options.emoji, SCENES, TRAIN_SEED)
        train(data, pairs_of(data), WEIGHTS)
    oracle_report.write(Oracles.load(), scenes(options.emoji, TEST_SCENES, TEST_SEED))


def pairs_of(data: Scenes) -> list[tuple[str, str]]:
    """All (word, designer) that the scenes show, sorted."""
    names = list(world.WORDS)
    both = torch.stack([data.words.flatten(), data.designers.flatten()], 1)
    return sorted((names[word], DESIGNERS[designer]) for word, designer in both[both[:, 0] != NONE].unique(dim=0).tolist())
