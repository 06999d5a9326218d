"""What the oracles can do on scenes that they were not trained on, as a page of tables."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.oracle_scenes import DESIGNERS, LATENT_NOISE, NONE, Scenes
from benchmarks.oracles import LEFT, NOTHING, RIGHT, SIDE, WHOLE, Oracles
from demo import world

PAGE = Path(__file__).parent / "results" / "oracles.md"
COLUMNS = ("as drawn", "after the autoencoder", "the same, noised latents")
ROOM = 3
SHOWN = ("teddy", "cat")
WORST = 12

HEAD = f"""# What the oracles can do

Written by `python -m benchmarks.oracles train`. {{count}} scenes of a seed that was not trained on, with the same emoji as in
training, for the world has no others. Share of right answers in per cent. *The same, noised latents*: noise of {LATENT_NOISE} of
the latents' own standard deviation before decoding, as a stand-in for what a sampler gets wrong.

Asked whose teddy it is where there is none, the oracle should favour nobody: 25 per cent each.

A thing of a pair is half as large: the autoencoder keeps 4 x 4 latents of it, and some of them no one can tell.
"""


class Page:
    """Test scenes in their three versions, and the questions put to them."""

    def __init__(self, oracles: Oracles, data: Scenes) -> None:
        self.oracles, self.data = oracles, data
        self.versions = [x / 255 for x in (data.drawn, *data.decoded)]
        words = data.words
        self.single = ((data.counts == 1) & (words[:, 0] != NONE)).nonzero()[:, 0]
        self.empty = ((data.counts < 2) & (words[:, 0] == NONE)).nonzero()[:, 0]
        self.pairs = (data.counts == 2).nonzero()[:, 0]

    def regions(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Regions with one thing or none: name -> scenes [M], which of a scene's things [M], boxes [M, 4]."""
        one, two = torch.zeros_like(self.single), torch.arange(2).repeat_interleave(len(self.pairs))
        halves = torch.tensor([LEFT, RIGHT], dtype=torch.float32)[two]
        named = (self.data.words != NONE).nonzero()
        boxes = self.data.boxes[named[:, 0], named[:, 1]] + torch.tensor([-ROOM, -ROOM, ROOM, ROOM])
        return {
            "whole picture, one thing": (self.single, one, torch.tensor(WHOLE).expand(len(one), 4)),
            "half picture, one thing or none": (self.pairs.repeat(2), two, halves),
            "box around a thing": (named[:, 0], named[:, 1], boxes.clamp(0, SIDE)),
        }

    def words(self, scenes: Tensor, which: Tensor, boxes: Tensor) -> list[float]:
        """Share of right words, one for each version."""
        names = [*world.WORDS, NOTHING]  # NONE is the last
        wanted = [names[i] for i in self.data.words[scenes, which].tolist()]
        return [share(self.oracles.words(x[scenes], boxes).best(), wanted) for x in self.versions]

    def designs(self, version: int, word: str, scenes: Tensor, which: Tensor, boxes: Tensor) -> tuple[list[str], list[str]]:
        """Answers and truth for those of the regions that hold the word's thing."""
        asked = self.data.words[scenes, which] == list(world.WORDS).index(word)
        scenes, which, boxes = scenes[asked], which[asked], boxes[asked]
        truth = [DESIGNERS[i] for i in self.data.designers[scenes, which].tolist()]
        return self.oracles.designs(self.versions[version][scenes], word, boxes).best(), truth

    def all_designs(self, version: int, *region: Tensor) -> tuple[list[str], list[str]]:
        """The same for every word's things, each answer and truth with its word: "teddy by noto"."""
        found, truth = [], []
        for word in world.WORDS:
            answers, wanted = self.designs(version, word, *region)
            found += [f"{word} by {name}" for name in answers]
            truth += [f"{word} by {name}" for name in wanted]
        return found, truth

    def others(self) -> Tensor:
        """Scenes of one thing that is not the first of SHOWN, [M]."""
        return self.single[self.data.words[self.single, 0] != list(world.WORDS).index(SHOWN[0])]

    def both(self, version: int) -> float:
        """Share of whole pictures with two different words whose two likeliest answers are these."""
        words = self.data.words
        scenes = ((words != NONE).all(1) & (words[:, 0] != words[:, 1])).nonzero()[:, 0]
        best = self.oracles.words(self.versions[version][scenes]).shares.topk(2).indices
        return (best.sort(1).values == words[scenes].sort(1).values).all(1).float().mean().item()


def share(found: list[str], wanted: list[str]) -> float:
    """Share of right answers."""
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def table(head: list[str], rows: list[list[object]]) -> str:
    """A Markdown table; shares become per cent."""
    lines = [head, ["---"] * len(head), *([f"{100 * x:.1f}" if isinstance(x, float) else str(x) for x in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def accuracy(page: Page) -> str:
    """The table of all heads."""
    versions, regions = range(len(COLUMNS)), page.regions()
    rows: list[list[object]] = [["word", name, *page.words(*region)] for name, region in regions.items()]
    nothing = [share(page.oracles.words(x[page.empty]).best(), [NOTHING] * len(page.empty)) for x in page.versions]
    rows.append(["word", "whole picture, no thing, or one of no word", *nothing])
    rows.append(["both words", "whole picture, two words", *(page.both(version) for version in versions)])
    places = [world.BACKGROUNDS[i] for i in page.data.places.tolist()]
    rows.append(["background", "whole picture", *(share(page.oracles.backgrounds(x).best(), places) for x in page.versions)])
    for name, region in regions.items():
        rows.append(["design", name, *(share(*page.all_designs(version, *region)) for version in versions)])
    for name, scenes in (("no thing, or one of no word", page.empty), ("another word's thing", page.others())):
        certainty = [page.oracles.designs(x[scenes], SHOWN[0]).shares.amax(1).mean().item() for x in page.versions]
        rows.append([f"design of a {SHOWN[0]}: mean of the largest probability", f"whole picture, {name}", *certainty])
    return table(["question", "region", *COLUMNS], rows)


def by_word(page: Page) -> str:
    """Designs after the autoencoder, word by word."""
    whole, half, _ = page.regions().values()
    rows = [[word, *(share(*page.designs(1, word, *region)) for region in (whole, half))] for word in world.WORDS]
    return table(["word", "whole picture", "half picture"], rows)


def confusion(page: Page, word: str) -> str:
    """Whose drawing was taken for whose, after the autoencoder, whole pictures."""
    found, truth = page.designs(1, word, *next(iter(page.regions().values())))
    names = [designer for known, designer in page.oracles.pairs if known == word]
    pairs = list(zip(truth, found, strict=True))
    rows = [[name, *(pairs.count((name, other)) for other in names)] for name in names]
    return table([f"{word} by / taken for", *names], rows)


def worst(page: Page) -> str:
    """The commonest mistakes about designs, after the autoencoder."""
    whole, half, _ = page.regions().values()
    answers, truth = (a + b for a, b in zip(page.all_designs(1, *whole), page.all_designs(1, *half), strict=True))
    pairs = Counter(zip(truth, answers, strict=True))
    rows = [[a, b.split(" by ")[1], count / truth.count(a)] for (a, b), count in pairs.items() if a != b]
    return table(["thing", "taken for", "share"], sorted(rows, key=lambda row: (-row[2], row[0]))[:WORST])


def write(oracles: Oracles, data: Scenes) -> None:
    """Measure, and write the page."""
    page = Page(oracles, data)
    parts = [HEAD.format(count=len(data.drawn)), accuracy(page), "## Designs, word by word, after the autoencoder\n", by_word(page)]
    parts += ["## Whose drawing was taken for whose\n\nWhole pictures after the autoencoder, counted.\n"]
    parts += [confusion(page, word) for word in SHOWN]
    parts += ["## The commonest mistakes about designs\n\nAfter the autoencoder, whole and half pictures.\n", worst(page)]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(parts))
    print("\n".join(parts))
