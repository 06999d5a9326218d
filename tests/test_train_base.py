"""The demo base's training, without its UNet: what it is shown, and that it can be put down and taken up."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from demo import muon, train_autoencoder, train_base


class Tiny(nn.Module):
    """As the UNet is called."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 64, 3, padding=1)
        self.narrow = nn.Conv2d(64, 4, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1)

    def forward(self, x: torch.Tensor, times: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        x = self.mix(x) + context.mean((1, 2))[:, None, None, None] + times[:, None, None, None] / 1000
        return self.narrow(self.deep(self.wide(x)))


class Words(train_base.Encodings):
    """Encodings of short rows of numbers, in place of CLIP's; 9 is "and", which tells two characters apart, and 2 is "with"."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.context = torch.tensor(rows, dtype=torch.float32)[..., None]
        self.rows = rows
        told = self.told_apart(torch.tensor(rows))
        self.order = told.argsort(0)
        self.ranked = told.gather(0, self.order).T.contiguous()

    def row(self, text: str) -> list[int]:
        return {"and": [0, 9], "with": [0, 2]}.get(text) or [int(word) for word in text.split()]


def drawn(words: Words, text: str) -> list[set[int]]:
    """Which rows' encodings stand for each token of a text."""
    first, count = words.places([text])
    seen = [set() for _ in text.split()]
    for _ in range(300):
        pick = first[0] + (torch.rand(first.shape[1]) * count[0]).long()
        rows = words.order.gather(0, pick[None])[0]
        for n, row in enumerate(rows.tolist()):
            seen[n].add(row)
    return seen


def test_each_token_comes_from_any_text_with_the_same_token_there() -> None:
    words = Words([[1, 5, 7], [1, 6, 7], [1, 5, 8], [1, 3, 7]])
    assert drawn(words, "1 5 7") == [{0, 1, 2, 3}, {0, 2}, {0, 1, 3}]


def test_of_two_characters_it_stays_known_which_is_which() -> None:
    words = Words([[1, 9, 5, 7], [1, 4, 5, 7], [1, 9, 5, 8]])
    assert drawn(words, "1 9 5 7") == [{0, 1, 2}, {0, 2}, {0, 2}, {0}]
    assert drawn(words, "1 4 5 7") == [{0, 1, 2}, {1}, {1}, {1}]


def test_of_two_colours_it_stays_known_which_is_that_of_the_horns() -> None:
    words = Words([[1, 2, 5, 9, 5], [1, 4, 5, 9, 5], [1, 2, 5, 2, 5], [1, 4, 5, 2, 5]])
    assert drawn(words, "1 2 5 9 5") == [{0, 1, 2, 3}, {0, 2}, {0, 2}, {0, 1}, {0, 1}]
    assert drawn(words, "1 4 5 2 5") == [{0, 1, 2, 3}, {1, 3}, {1, 3}, {2, 3}, {2, 3}]


def test_muon_moves_along_orthogonal_directions() -> None:
    for shape in ((40, 100), (100, 40), (64, 64)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = torch.linalg.svdvals(muon.orthogonal(matrix))
        assert found.max() < 1.3 and found.median() > 0.6
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        wanted = left @ right
        assert (muon.orthogonal(matrix) * wanted).sum() / wanted.norm() ** 2 > 0.8


def test_muon_finds_a_least_squares_solution() -> None:
    torch.manual_seed(0)
    layer, wanted = nn.Linear(48, 40), torch.randn(40, 48) / 7
    optimiser = muon.Muon(layer.parameters())
    assert len(optimiser.matrices) == 1 and len(optimiser.adam.param_groups[0]["params"]) == 1
    for step in range(300):
        x = torch.randn(64, 48)
        ((layer(x) - x @ wanted.T) ** 2).mean().backward()
        optimiser.step(0.02 * (1 - step / 300))
        assert all(each.grad is None for each in layer.parameters())
    assert (layer.weight - wanted).abs().max() < 0.02 and layer.bias.abs().max() < 0.02


def test_what_the_autoencoder_learns_from_is_least_for_the_picture_itself() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 16, 16)
    assert train_autoencoder.difference(x, x) == 0
    blurred = nn.functional.avg_pool2d(nn.functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    assert train_autoencoder.difference(blurred, x) > train_autoencoder.difference(x.lerp(blurred, 0.5), x) > 0


@pytest.mark.parametrize(("change", "even"), [("none", True), ("scaled", False), ("shifted", False), ("far", False)])
def test_latents_are_held_to_a_spread_about_0(change: str, even: bool) -> None:
    z = train_autoencoder.SPREAD * torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0)).clamp(-3, 3)
    changed = {"none": z, "scaled": z * 2, "shifted": z + 0.5, "far": z.masked_fill(z > 2, 9.0)}[change]
    assert bool(train_autoencoder.unevenness(changed) < 0.01) is even


def test_decibels_are_those_of_all_pictures_together() -> None:
    class Same(nn.Module):
        def __init__(self, add: float) -> None:
            super().__init__()
            self.add = add

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.add

    net = nn.ModuleDict({"encoder": Same(0.0), "decoder": Same(0.1)})
    images = torch.full((70, 8, 8, 3), 100, dtype=torch.uint8)
    assert math.isclose(train_autoencoder.decibels(net, images), 20, abs_tol=0.05)


def test_training_that_was_put_down_goes_on_as_it_would_have(tmp_path: Path) -> None:
    given = [(torch.randn(8, 4, 8, 8), torch.randn(8, 77, 16)) for _ in range(6)]

    def run(training: train_base.Training, some: slice) -> list[float]:
        losses = []
        for i in range(6)[some]:
            torch.manual_seed(i)
            losses.append(training.take(train_base.denoising(training.model, *given[i]), rate=0.01))
        return losses

    def start(out: Path) -> train_base.Training:
        out.mkdir(exist_ok=True)
        torch.manual_seed(100)
        return train_base.Training(Tiny(), out / "unet.pt")

    whole = start(tmp_path / "whole")
    losses = run(whole, slice(None))
    first = start(tmp_path / "parts")
    run(first, slice(3))
    first.save()
    second = start(tmp_path / "parts")
    assert second.step == 3 and run(second, slice(3, None)) == losses[3:]
    assert all(torch.equal(second.mean[name], whole.mean[name]) for name in whole.mean)
    assert not torch.equal(whole.mean["mix.weight"], whole.model.mix.weight)
