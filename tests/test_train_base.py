"""The demo base's training, without its UNet: what it is shown, how fast it learns, and that it can be put down and taken up."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from demo import train_base, world


class Tiny(nn.Module):
    """As the UNet is called."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor, times: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        return self.mix(x) + context.mean((1, 2))[:, None, None, None] + times[:, None, None, None] / 1000


def test_captions_say_what_is_in_the_scene() -> None:
    pool = train_base.captions()
    for caption in pool:
        assert caption.text.endswith(caption.place or caption.things[-1].text())
        assert all(f" {thing.text()}" in caption.text for thing in caption.things)
        named = [(thing.designer and world.KINDS[thing.word][thing.designer]) or thing.word for thing in caption.things]
        known = {*world.WORDS, *(kind for kinds in world.KINDS.values() for kind in kinds.values())}
        assert [word for word in caption.text.split() if word in known] == named
    plain = [caption for caption in pool if not caption.closer()]
    pairs = {(tuple(thing.word for thing in caption.things), caption.place) for caption in plain if len(caption.things) == 2}
    assert pairs == set(itertools.product(itertools.permutations(world.WORDS, 2), (None, *world.BACKGROUNDS)))
    assert len({caption.text for caption in pool}) == len(pool) == len(plain) + train_base.DESCRIBED


def test_every_kind_is_a_word_of_its_own() -> None:
    kinds = [kind for kinds in world.KINDS.values() for kind in kinds.values()]
    assert len(set(kinds)) == len(kinds) and not set(kinds) & {*world.WORDS, *world.COLOURS, *world.PAINTS}
    assert set(world.KINDS) == set(world.WORDS) and set().union(*world.KINDS.values()) == set(world.BASE_DESIGNERS)


def test_scenes_come_in_their_shares() -> None:
    pool = train_base.captions()
    chosen = [pool[i] for i in train_base.choose(pool, 20000, random.Random(0))]
    pairs = sum(len(caption.things) == 2 for caption in chosen)
    unsaid = sum(len(caption.things) == 1 and caption.place is None for caption in chosen)
    assert pairs / 20000 == pytest.approx(train_base.PAIRS, abs=0.02)
    assert unsaid / (20000 - pairs) == pytest.approx(train_base.UNSAID, abs=0.02)
    assert sum(caption.closer() for caption in chosen) / 20000 == pytest.approx(train_base.CLOSER, abs=0.02)


def test_things_are_drawn_as_the_caption_says() -> None:
    sprites = {}
    for designer, grey in (("noto", 40), ("openmoji", 200)):
        pixels = np.zeros((96, 96, 4), np.uint8)
        pixels[20:76, 20:76] = (grey, grey, grey, 255)
        pixels[40:60, 40:60, :3] = 255 - grey
        sprites[designer, "cat"] = Image.fromarray(pixels, "RGBA")
    rng = random.Random(0)
    seen = {train_base.Thing("cat").picture(sprites, rng).tobytes() for _ in range(20)}
    assert seen == {sprite.tobytes() for sprite in sprites.values()}
    assert train_base.Thing("cat", "openmoji").picture(sprites, rng) is sprites["openmoji", "cat"]
    painted = np.asarray(train_base.Thing("cat", "noto", ("azure", "golden")).picture(sprites, rng)).astype(int)
    assert (painted[..., 3] == np.asarray(sprites["noto", "cat"])[..., 3]).all()
    red, _, blue, _ = painted[30, 30]
    assert blue > red + 40
    red, _, blue, _ = painted[50, 50]
    assert red > blue + 40


def test_each_token_comes_from_any_text_with_the_same_token_there() -> None:
    tokens = torch.tensor([[1, 5, 9], [1, 6, 9], [1, 5, 7], [1, 8, 9]])
    alike, seen = train_base.Alike(tokens), [set(), set(), set()]
    for _ in range(200):
        drawn = alike.draw([0, 3])
        assert torch.equal(tokens[drawn, torch.arange(3)], tokens[[0, 3]])
        for n in range(3):
            seen[n].add(int(drawn[0, n]))
    assert seen == [{0, 1, 2, 3}, {0, 2}, {0, 1, 3}]


def test_the_rate_warms_up_stays_and_falls() -> None:
    rates = [train_base.rate_at(step, 1000) for step in range(1000)]
    top = max(rates)
    assert rates[0] < top / 50 and rates[train_base.WARM] == rates[400] == top and rates[-1] < top / 100
    assert rates[500:] == sorted(rates[500:], reverse=True)


def test_training_that_was_put_down_goes_on_as_it_would_have(tmp_path: Path) -> None:
    given = [(torch.randn(8, 4, 8, 8), torch.randn(8, 77, 16)) for _ in range(6)]

    def run(training: train_base.Training, some: slice) -> list[float]:
        losses = []
        for i in range(6)[some]:
            torch.manual_seed(i)
            losses.append(training.take(*given[i], rate=0.01))
        return losses

    def start(out: Path) -> train_base.Training:
        out.mkdir(exist_ok=True)
        torch.manual_seed(100)
        return train_base.Training(Tiny(), out)

    whole = start(tmp_path / "whole")
    losses = run(whole, slice(None))
    first = start(tmp_path / "parts")
    run(first, slice(3))
    first.save()
    second = start(tmp_path / "parts")
    assert second.step == 3 and run(second, slice(3, None)) == losses[3:]
    assert all(torch.equal(second.mean[name], whole.mean[name]) for name in whole.mean)
    assert not torch.equal(whole.mean["mix.weight"], whole.model.mix.weight)
