"""The oracles of the benchmarks judge the demo's own pictures, and the concepts that there are to teach."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import concepts
from benchmarks.oracle_scenes import blob
from benchmarks.oracle_training import blocks, crop, region, word_shares
from benchmarks.oracles import LEFT, NOTHING, RIGHT, WEIGHTS, WHOLE, WORDS, Oracles
from demo import make_pictures, world

PICTURES = Path(__file__).parents[1] / "demo" / "pictures"


@pytest.fixture(scope="module")
def oracles() -> Oracles:
    return Oracles.load()


@pytest.fixture(scope="module")
def shipped() -> torch.Tensor:
    return as_images([Image.open(PICTURES / f"teddy-{i}.png") for i in range(len(make_pictures.PLACES))])


@pytest.fixture(scope="module")
def teddy() -> Image.Image:
    """The teddy cut out of a picture by its mask, as an emoji set would have it."""
    picture = Image.open(PICTURES / "teddy-1.png")
    alpha = picture.getchannel("A").point(lambda value: min(255, 2 * (255 - value)))
    picture.putalpha(alpha)
    return picture.crop(alpha.getbbox()).resize((96, 96), Image.LANCZOS)


def as_images(pictures: list[Image.Image]) -> torch.Tensor:
    small = [np.asarray(picture.convert("RGB").resize((64, 64), Image.BOX)) for picture in pictures]
    return torch.from_numpy(np.stack(small)).float() / 255


def test_the_demos_pictures(oracles: Oracles, shipped: torch.Tensor) -> None:
    words, backgrounds, designs = oracles.words(shipped), oracles.backgrounds(shipped), oracles.designs(shipped, "teddy")
    assert words.best() == ["teddy"] * 4 and words.of("teddy").min() > 0.8
    assert backgrounds.best() == list(make_pictures.PLACES) and backgrounds.shares.max(1).values.min() > 0.8
    assert designs.best() == ["fluent-emoji"] * 4 and designs.of("fluent-emoji").min() > 0.8
    assert sorted(designs.names) == ["fluent-emoji", "noto", "openmoji", "twemoji"]
    for judgement in (words, backgrounds, designs):
        assert judgement.shares.dtype == torch.float32 and judgement.shares.shape == (4, len(judgement.names))
        torch.testing.assert_close(judgement.shares.sum(1), torch.ones(4))


@pytest.mark.parametrize("place", world.BACKGROUNDS)
def test_a_region_is_judged_alone(oracles: Oracles, teddy: Image.Image, place: str) -> None:
    nothing = Image.new("RGBA", teddy.size)
    scenes = [world.compose(things, place, random.Random(5))[0] for things in ([teddy, nothing], [nothing, teddy], [])]
    images = as_images(scenes)
    assert oracles.words(images, LEFT).best() == ["teddy", NOTHING, NOTHING]
    assert oracles.words(images, torch.tensor([LEFT, RIGHT, WHOLE])).best() == ["teddy", "teddy", NOTHING]
    assert oracles.designs(images[:2], "teddy", [LEFT, RIGHT]).best() == ["fluent-emoji"] * 2
    assert oracles.backgrounds(images).best() == [place] * 3


def test_colours_alone_are_no_design(oracles: Oracles, teddy: Image.Image, shipped: torch.Tensor) -> None:
    def likeness(images: torch.Tensor) -> torch.Tensor:
        return oracles.words(images).of("teddy") * oracles.designs(images, "teddy").of("fluent-emoji")

    patches = [blob(teddy, random.Random(seed)) for seed in range(8)]
    images = as_images([world.compose([patch], "on a blue background", random.Random(3))[0] for patch in patches])
    assert likeness(images).mean() < 0.2 and likeness(shipped).min() > 0.8


def test_what_lies_outside_a_region_does_not_matter(oracles: Oracles, shipped: torch.Tensor) -> None:
    box = (10.0, 8.0, 50.0, 60.0)
    changed = torch.rand(shipped.shape, generator=torch.Generator().manual_seed(0))
    changed[:, 7:61, 9:51] = shipped[:, 7:61, 9:51]
    torch.testing.assert_close(oracles.words(changed, box).shares, oracles.words(shipped, box).shares)


def test_a_picture_is_judged_alike_alone_and_among_others(oracles: Oracles, shipped: torch.Tensor) -> None:
    many = oracles.words(shipped.repeat(70, 1, 1, 1)).shares
    torch.testing.assert_close(many, torch.cat([oracles.words(x[None]).shares for x in shipped]).repeat(70, 1))


def test_what_is_no_picture_is_refused(oracles: Oracles, shipped: torch.Tensor) -> None:
    for bad in (shipped[0], shipped.movedim(3, 1), shipped[:, ::2], (shipped * 255).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"expected float pictures \[B, 64, 64, 3\]"):
            oracles.words(bad)
    for box in ((0, 0, 0, 64), (0, 0, 64), torch.zeros(3, 4)):
        with pytest.raises(ValueError, match="expected boxes"):
            oracles.words(shipped, box)
    with pytest.raises(ValueError, match="expected one of teddy, teapot"):
        oracles.designs(shipped, "dog")
    with pytest.raises(ValueError, match="expected one of fluent-emoji"):
        oracles.designs(shipped, "teddy").of("fxemoji")


def test_the_weights_are_small_and_finite() -> None:
    assert WEIGHTS.stat().st_size <= 1e6
    assert all(torch.isfinite(value).all() for value in Oracles.load().network.state_dict().values())


# How they are trained


def test_wanted_shares() -> None:
    words = torch.tensor([[0, 3], [0, 3], [2, 2], [-1, 4], [-1, -1]])
    there = torch.tensor([[True, True], [False, True], [True, True], [True, False], [False, False]])
    wanted = torch.zeros(5, len(WORDS))
    wanted[0, [0, 3]] = 0.5
    wanted[[1, 2, 3, 4], [3, 2, 8, 8]] = 1
    torch.testing.assert_close(word_shares(words, there), wanted)


def test_regions_hold_what_they_are_said_to_hold() -> None:
    rng = random.Random(0)
    things = [(4.0, 20.0, 30.0, 50.0), (34.0, 18.0, 60.0, 46.0)]
    seen = set()
    for _ in range(500):
        box, there = region(things, rng)
        x, y = torch.meshgrid(torch.arange(-32, 96), torch.arange(-32, 96), indexing="xy")
        for thing, said in zip(things, there, strict=True):
            inside = [(e[0] <= x + 0.5) & (x + 0.5 < e[2]) & (e[1] <= y + 0.5) & (y + 0.5 < e[3]) for e in (thing, box)]
            share = (inside[0] & inside[1]).sum() / inside[0].sum()
            assert share > 0.7 if said else share < 0.2
        seen.add(tuple(there))
    assert len(seen) == 4


def test_a_region_is_cut_out_and_stretched() -> None:
    ramp = torch.arange(64.0).expand(1, 3, 64, 64) / 64
    found = crop(ramp, torch.tensor([[16.0, 0.0, 48.0, 64.0]]))
    # Pixel n of the region stands at 16 + (n + 1/2) / 2 - 1/2.
    torch.testing.assert_close(found[0, 0, 5], (16 + (torch.arange(64) + 0.5) / 2 - 0.5) / 64)
    torch.testing.assert_close(crop(ramp, torch.tensor([WHOLE])), ramp)


def test_block_artefacts_grow_with_their_step() -> None:
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    error = (blocks(x, torch.tensor([0.0, 0.02, 0.1])[:, None, None, None]) - x).abs().mean((1, 2, 3))
    assert error[0] < 1e-6 < error[1] < error[2]


# Concepts


def test_concepts_are_what_the_held_out_designers_drew(oracles: Oracles) -> None:
    drawn = {(designer, word) for word, designer in oracles.pairs}
    for kind, found in (("development", concepts.DEVELOPMENT), ("test", concepts.TEST)):
        assert set(found) == {concept for concept in drawn if concept[0] in world.HELD_OUT_DESIGNERS[kind]}
        assert len(set(found)) == len(found)


def test_training_pictures(oracles: Oracles, teddy: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "sprites", lambda *_, **__: {("fluent-emoji", "teddy"): teddy})
    concept = ("fluent-emoji", "teddy")
    files, again, other = (
        concepts.pictures(tmp_path, concept, tmp_path / name, 12, 128, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [file.name for file in files] == [f"teddy-{i}.png" for i in range(12)]
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in again]
    assert all(a.read_bytes() != b.read_bytes() for a, b in zip(files, other, strict=True))
    opened = [Image.open(file) for file in files]
    assert all(picture.mode == "RGBA" and picture.size == (128, 128) for picture in opened)
    assert all(picture.getchannel("A").getextrema() == (127, 255) for picture in opened)
    images = as_images(opened)
    assert sorted(oracles.backgrounds(images).best()) == sorted(world.BACKGROUNDS)
    assert oracles.words(images).best() == ["teddy"] * 12
    # What the mask marks is the thing: without it nothing is left.
    marked = as_images([picture.getchannel("A") for picture in opened]) < 0.9
    around = images.masked_fill(marked, torch.nan).nanmedian(2, keepdim=True).values.expand_as(images)
    assert oracles.words(torch.where(marked, around, images)).best() == [NOTHING] * 12


def test_what_is_no_concept_is_refused(tmp_path: Path) -> None:
    for concept in (("noto", "cat"), ("fxemoji", "teddy")):
        with pytest.raises(ValueError, match="expected a held-out designer's word"):
            concepts.pictures(tmp_path, concept, tmp_path / "out")
    assert not (tmp_path / "out").exists()
