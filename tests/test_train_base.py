"""The demo base's training, without its UNet: what it is shown, how fast it learns, and that it can be put down and taken up."""

import itertools
import random
from pathlib import Path

import pytest
import torch
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
    for words, place, text in pool:
        assert all(f" {word}" in text for word in words) and text.endswith(place or words[-1])
        assert [word for word in text.split() if word in world.WORDS] == list(words)
    pairs = {(words, place) for words, place, _ in pool if len(words) == 2}
    assert pairs == set(itertools.product(itertools.permutations(world.WORDS, 2), (None, *world.BACKGROUNDS)))
    assert len({text for *_, text in pool}) == len(pool)


def test_scenes_come_in_their_shares() -> None:
    pool = train_base.captions()
    chosen = [pool[i] for i in train_base.choose(pool, 20000, random.Random(0))]
    pairs = sum(len(words) == 2 for words, *_ in chosen)
    unsaid = sum(len(words) == 1 and place is None for words, place, _ in chosen)
    assert pairs / 20000 == pytest.approx(train_base.PAIRS, abs=0.02)
    assert unsaid / (20000 - pairs) == pytest.approx(train_base.UNSAID, abs=0.02)


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
