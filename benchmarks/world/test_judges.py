"""Tests of the benchmarks' judges on the demo's own pictures."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.world.judge_training import spoil, truth
from benchmarks.world.judges import AT_ONCE, QUESTIONS, WEIGHTS, WIDTH, Judges, left, right
from demo.individuals import MOODS, NAMES, SPLITS, STYLES
from demo.make_pictures import LAYOUT_OF, PLACES, SHOWN, individual
from demo.world import SIDE

PICTURES = Path(__file__).parents[2] / "demo" / "pictures"
LOOKS = {
    "monster": {"colour": "yellow", "head": "with horns", "pattern": "dotted", "eyes": "one-eyed"},
    "robot": {"colour": "blue", "head": "with a light", "pattern": "with a heart", "eyes": ""},
    "plant": {"colour": "orange", "head": "with a bush", "pattern": "dotted", "eyes": ""},
    "blob": {"colour": "blue", "head": "with horns", "pattern": "dotted", "eyes": "three-eyed"},
}
"""For each kind, the answers to questions about the demo's pictures of it."""
UPPER = {"monster": 0.33, "robot": 0.25, "plant": 0.55, "blob": 0.25}
"""For each kind, the share of the height taken by its head: what is on top of the body, or grows in the pot."""


@pytest.fixture(scope="module")
def judges() -> Judges:
    return Judges.load()


def opened(kind: str) -> list[Image.Image]:
    """Open the demo's four pictures of a kind, RGBA."""
    return [Image.open(PICTURES / f"{kind}-{i}.png") for i in range(len(PLACES))]


def as_images(pictures: list[Image.Image]) -> Tensor:
    """Convert to [B, SIDE, SIDE, 3], as the demo's base generates images."""
    small = [np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.BOX)) for picture in pictures]
    return torch.from_numpy(np.stack(small)).float() / 255


@pytest.fixture(scope="module")
def shown() -> dict[str, Tensor]:
    """The demo's pictures by kind."""
    return {kind: as_images(opened(kind)) for kind in SHOWN}


def known(judges: Judges, images: Tensor, kind: str) -> list[bool]:
    """Whether each picture is recognised as the demo's individual of a kind."""
    return judges.recognised(images, kind, "test", SHOWN[kind]).tolist()


@pytest.mark.parametrize("kind", SHOWN)
def test_what_the_demos_pictures_show(judges: Judges, shown: dict[str, Tensor], kind: str) -> None:
    one, images = individual(kind, "test", SHOWN[kind]), shown[kind]
    assert LOOKS[kind] == {"colour": one.colours[0]} | {part: one.said(part) for part in ("head", "pattern", "eyes")}
    for question, answer in ({"kind": kind, "balloon": "no"} | LOOKS[kind]).items():
        judgement = judges.say(question, images)
        # The judges are right in 95 of 100 pictures (results/judges.md), not in all, so one of four may be misread.
        assert judgement.best().count(answer) >= 3 and judgement.shares.mean(0).argmax() == QUESTIONS[question].index(answer), (
            question
        )
        assert judgement.names == QUESTIONS[question] and judgement.shares.dtype == torch.float32
        torch.testing.assert_close(judgement.shares.sum(1), torch.ones(4))
        read = torch.tensor([best == answer for best in judgement.best()])
        torch.testing.assert_close(judgement.of(answer)[read], judgement.shares.amax(1)[read])
    assert judges.say("place", images).best() == list(PLACES)
    assert judges.say("kind", images).of(kind).min() > 0.8 and judges.say("place", images).shares.amax(1).min() > 0.8
    if kind != "robot":
        assert judges.say("mood", images).best() == list(MOODS[kind])
    shade = torch.tensor([int(one.shades[0][i : i + 2], 16) / 255 for i in (1, 3, 5)])
    assert (judges.shades(images)[:, 0] - shade).abs().mean() < 0.1


@pytest.mark.parametrize("kind", SHOWN)
def test_each_picture_is_recognised_as_its_individual(judges: Judges, shown: dict[str, Tensor], kind: str) -> None:
    assert known(judges, shown[kind], kind) == [True] * 4
    near = judges.nearness(shown[kind], kind, "test", SHOWN[kind])
    assert near.min() > 0.5 and near.max() <= 1 + 1e-5
    vectors = judges.identity(shown[kind])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    # Whatever the mood and the place, they are nearer to each other than to individuals of other kinds.
    others = torch.cat([judges.identity(images) for other, images in shown.items() if other != kind])
    assert (vectors @ vectors.T).min() > (vectors @ others.T).max()


# Judges that accept everything would be worthless.


@pytest.mark.parametrize("kind", SHOWN)
def test_in_other_colours_it_is_far_from_itself(judges: Judges, shown: dict[str, Tensor], kind: str) -> None:
    turned = []
    for picture in opened(kind):
        hue, saturation, value = picture.convert("RGB").convert("HSV").split()
        turned.append(Image.merge("HSV", (hue.point(lambda h: (h + 85) % 256), saturation, value)))
    images = as_images(turned)
    assert LOOKS[kind]["colour"] not in judges.say("colour", images).best()
    # It may still be the nearest of its kind, where no other has its shape, but it is no longer near.
    index = SHOWN[kind]
    near = judges.nearness(shown[kind], kind, "test", index).min()
    assert near > 0.9 and judges.nearness(images, kind, "test", index).max() < near - 0.15


def test_other_individuals_are_not_taken_for_it(judges: Judges, shown: dict[str, Tensor]) -> None:
    plain = as_images([Image.open(PICTURES / "plain-monster.png")])
    assert known(judges, plain, "monster") == [False]
    assert judges.recognised(plain, "monster", "base", NAMES["monster"].index(LAYOUT_OF)).tolist() == [True]
    assert judges.nearness(plain, "monster", "test", SHOWN["monster"]).item() < 0.5
    # Other kinds, some of them with the same features on another body.
    for kind, other in (("monster", "blob"), ("blob", "monster"), ("robot", "plant"), ("plant", "robot")):
        assert known(judges, shown[other], kind) == [False] * 4
        assert kind not in judges.say("kind", shown[other]).best()


@pytest.mark.parametrize("kind", SHOWN)
def test_without_what_is_on_its_head_it_is_another_one(judges: Judges, shown: dict[str, Tensor], kind: str) -> None:
    cut = []
    for picture in opened(kind):
        there, pixels = np.asarray(picture.getchannel("A")) < 255, np.asarray(picture.convert("RGB")).copy()
        rows = np.flatnonzero(there.any(1))
        for y in rows[: round(UPPER[kind] * len(rows))]:
            pixels[y, there[y]] = np.median(pixels[y, ~there[y]], axis=0)
        cut.append(Image.fromarray(pixels))
    images, index = as_images(cut), SHOWN[kind]
    assert (judges.nearness(images, kind, "test", index) < judges.nearness(shown[kind], kind, "test", index)).all()
    heads = [head == LOOKS[kind]["head"] for head in judges.say("head", images).best()]
    assert not any(head and same for head, same in zip(heads, known(judges, images, kind), strict=True))


def test_of_two_characters_each_is_judged_in_its_half(judges: Judges, shown: dict[str, Tensor]) -> None:
    both = torch.cat([shown["monster"], shown["robot"]], 2)
    assert torch.equal(left(both), shown["monster"]) and torch.equal(right(both), shown["robot"])
    for images, kind, other in ((left(both), "monster", "robot"), (right(both), "robot", "monster")):
        assert judges.say("kind", images).best() == [kind] * 4 and judges.say("place", images).best() == list(PLACES)
        assert known(judges, images, kind) == [True] * 4 and known(judges, images, other) == [False] * 4
    mirrored = both.flip(2)
    assert judges.say("kind", left(mirrored)).best() == ["robot"] * 4
    assert judges.say("kind", right(mirrored)).best() == ["monster"] * 4
    assert known(judges, left(mirrored), "monster") == known(judges, right(mirrored), "robot") == [False] * 4


def test_a_picture_is_judged_alike_alone_and_among_others(judges: Judges, shown: dict[str, Tensor]) -> None:
    images, times = shown["monster"], AT_ONCE // 4 + 3
    many, alone = judges.say("head", images.repeat(times, 1, 1, 1)).shares, [judges.say("head", x[None]).shares for x in images]
    torch.testing.assert_close(many, torch.cat(alone).repeat(times, 1))


def test_what_is_no_picture_is_refused_in_one_sentence(judges: Judges, shown: dict[str, Tensor]) -> None:
    images = shown["monster"]
    wide = torch.cat([images, images], 2)
    refusal = rf"^expected float pictures \[B, {SIDE}, {SIDE}, 3\], but got .*; cut or scale them first$"
    for wrong in (images[0], images.movedim(3, 1), images[:, ::2], (images * 255).to(torch.uint8), wide):
        for asked in (lambda x: judges.say("kind", x), judges.identity, judges.shades, lambda x: known(judges, x, "monster")):
            with pytest.raises(ValueError, match=refusal) as told:
                asked(wrong)
            assert "\n" not in str(told.value)
    for kind, split, index in (("cat", "test", 0), ("monster", "train", 0), ("monster", "test", 1000), ("monster", "test", -1)):
        with pytest.raises(ValueError, match=r"^expected an individual that the judges know") as told:
            judges.recognised(images, kind, split, index)
        assert "\n" not in str(told.value)
    with pytest.raises(ValueError, match=r"^expected one of kind, place, .*, but got 'word'; ask for one of these$"):
        judges.say("word", images)
    with pytest.raises(ValueError, match=r"^expected one of 'monster', .*, but got 'teddy'; ask for one of these$"):
        judges.say("kind", images).of("teddy")


def test_the_weights_are_small_and_finite(judges: Judges) -> None:
    assert WEIGHTS.stat().st_size <= 3e6
    assert all(torch.isfinite(value).all() for value in judges.network.state_dict().values())
    assert set(judges.galleries) == {(kind, split) for kind in STYLES for split in SPLITS}
    for (kind, split), vectors in judges.galleries.items():
        assert vectors.ndim == 2 and vectors.shape[1] == WIDTH and len(vectors) > (SHOWN[kind] if split == "test" else 100)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))


# Training data


def test_what_a_picture_does_not_show_is_not_asked_of_it() -> None:
    monster = individual("monster", "test", SHOWN["monster"])
    seen = {"kind": "monster", "place": "at night", "mood": "sad", "balloon": "yes", "second": "teal", "body": "pointed"}
    assert truth(monster, "sad", "at night", True) == seen | LOOKS["monster"]
    bare = replace(monster, parts=tuple((part, "" if part in ("head", "pattern") else variant) for part, variant in monster.parts))
    told = truth(bare, "sad", "at night", False)
    assert told["second"] is None and told["head"] == told["pattern"] == "" and told["balloon"] == "no"
    robot = truth(individual("robot", "test", SHOWN["robot"]), "", "at night", False)
    assert robot["mood"] is None and robot["body"] is None and robot["second"] == "orange"


def test_spoiled_pictures_are_pictures_still() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 3, SIDE, SIDE)
    spoiled = spoil(images)
    assert spoiled.shape == images.shape and torch.isfinite(spoiled).all() and spoiled.min() >= 0 and spoiled.max() <= 1
    assert 0.01 < (spoiled - images).abs().mean() < 0.5
