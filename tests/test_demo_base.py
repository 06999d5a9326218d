"""The demo base: its packed file, its expansion, and the scenes of the demo's world."""

import hashlib
import json
import random
import struct
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from demo import base, make_pictures, world
from demo.draw import COUNTS
from demo.individuals import HUES, MOODS, NAMES, PARTS, SPLITS, STYLES, individuals, named

PICTURES = Path(__file__).parents[1] / "demo" / "pictures"
FIRST_VALUES = {
    # SHA-256 of the first 4096 float16 values: early, in the middle and at the end of the seed's numbers.
    "embeddings.token_embedding.weight": "ecd67f797f3fa63c",
    "encoder.layers.0.self_attn.v_proj.weight": "6a9f65e8c3c5b29e",
    "encoder.layers.11.mlp.fc2.weight": "a76d15378cf0c4be",
}


# The packed file


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """A matrix, a convolution and what stays float16, rows of very different sizes."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 40)) * np.geomspace(1e-3, 1, 16)[:, None]
    matrix[3] = 0
    matrix[5, 7] = 30
    return {
        base.UNET + "middle_block.0.in_layers.2.weight": rng.normal(size=(8, 4, 3, 3)).astype(np.float32) * 0.02,
        base.UNET + "output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight": matrix.astype(np.float16),
        base.UNET + "output_blocks.3.1.norm.weight": rng.normal(size=40).astype(np.float16),
        base.AUTOENCODER + "taesd_decoder.1.weight": rng.normal(size=(4, 4, 3, 3)).astype(np.float16),
    }


@pytest.fixture
def packed(tensors: dict[str, np.ndarray], tmp_path: Path) -> Path:
    base.pack_tensors(tensors, tmp_path / "small.bin")
    return tmp_path / "small.bin"


def test_round_trip_is_within_half_a_step(tensors: dict[str, np.ndarray], packed: Path) -> None:
    found = base.unpack_tensors(packed)
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == np.float16 and found[name].shape == value.shape
        finer = base.resolution(name) if value.ndim > 1 else None
        if finer is None:
            np.testing.assert_array_equal(found[name], value)
            continue
        steps, codes = base.quantise(value, finer)
        steps = steps.astype(np.float64)[:, None]
        rows, result = (x.reshape(len(x), -1).astype(np.float64) for x in (value, found[name]))
        # Rounding the step to float16 can put the largest weight a little beyond code 127: 127 / 2048 of a step.
        # The last two terms: the result's own rounding to float16, and below its normal range.
        bound = steps * (0.5 + 127 / 2048) + np.abs(rows) / 2048 + 2.0**-25
        assert (np.abs(result - rows) <= bound).all()
        assert codes.dtype == np.int8 and codes.min() >= -127
        usual = np.sqrt((rows**2).mean(1)) * 2.0**-finer
        assert (steps[:, 0] <= np.maximum(usual, np.abs(rows).max(1) / 127) * (1 + 1 / 1024) + 2.0**-24).all()


def test_packing_again_gives_the_same_bytes(tensors: dict[str, np.ndarray], packed: Path, tmp_path: Path) -> None:
    base.pack_tensors(tensors, tmp_path / "again.bin")
    assert (tmp_path / "again.bin").read_bytes() == packed.read_bytes()


def test_packing_refuses_what_is_not_finite(tmp_path: Path) -> None:
    for bad in (np.nan, np.inf, 1e9):
        with pytest.raises(ValueError, match="finite"):
            base.pack_tensors({"x": np.array([bad], np.float32)}, tmp_path / "bad.bin")
    assert not (tmp_path / "bad.bin").exists()


def test_a_damaged_file_is_refused(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    damaged = tmp_path / "damaged.bin"
    flipped = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in (0, 8, 41, 60, len(whole) - 1)]
    for data in [b"", *(whole[:n] for n in (7, 8, 43, 200, len(whole) - 1)), whole + b"\0", *flipped]:
        damaged.write_bytes(data)
        with pytest.raises(ValueError, match=r"is not a packed demo base|is damaged or cut short"):
            base.expand(damaged, tmp_path / "out.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged.bin", "small.bin"]


@pytest.mark.parametrize(
    "header",
    [
        [{"name": "x", "shape": [2], "bits": 16}],
        [{"name": "x", "shape": [3], "bits": 8}],
        [{"name": "x", "shape": [3], "bits": 7}],
        [{"name": "x", "shape": [-3], "bits": 16}],
        [{"name": "x", "shape": [3]}],
        [{"name": "x", "shape": [1], "bits": 16}, {"name": "x", "shape": [2], "bits": 16}],
        {"name": "x"},
        3,
    ],
)
def test_a_header_that_does_not_fit_is_refused(header: object, tmp_path: Path) -> None:
    """Also with a right checksum."""
    text = json.dumps(header).encode()
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    rest = struct.pack("<I", len(text)) + text + deflate.compress(bytes(6)) + deflate.flush()
    (tmp_path / "odd.bin").write_bytes(base.MAGIC + hashlib.sha256(rest).digest() + rest)
    with pytest.raises(ValueError, match="cannot be read"):
        base.unpack_tensors(tmp_path / "odd.bin")


def test_a_failed_expansion_leaves_nothing(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(base, "text_encoder", dict)
    monkeypatch.setattr(base, "save_file", full)
    (tmp_path / "out.safetensors").write_bytes(b"before")
    with pytest.raises(OSError, match="No space"):
        base.expand(packed, tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.safetensors", "small.bin"]


# The base that ships


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base") / "base.safetensors"
    base.main([str(out)])
    return out


def test_the_base_is_small() -> None:
    assert base.PACKED.stat().st_size <= 32e6


def test_the_checkpoint_has_what_the_host_looks_for(checkpoint: Path) -> None:
    with safe_open(checkpoint, "np") as file:
        names = set(file.keys())
        parts = {prefix: {n for n in names if n.startswith(prefix)} for prefix in (base.UNET, base.TEXT, base.AUTOENCODER)}
        assert [len(part) for part in parts.values()] == [284, 196, 136]
        assert names == set().union(*parts.values())
        for name in names:
            value = file.get_tensor(name)
            single = name in (base.AUTOENCODER + "vae_scale", base.AUTOENCODER + "vae_shift")
            assert value.dtype == (np.float32 if single else np.float16), name
            assert np.isfinite(value).all(), name
        assert file.get_tensor(base.AUTOENCODER + "vae_scale") == np.float32(0.18215)
        assert file.get_tensor(base.AUTOENCODER + "vae_shift") == 0
        assert file.get_slice(base.UNET + "input_blocks.0.0.weight").get_shape() == [320, 4, 3, 3]
        assert file.get_slice(base.UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight").get_shape() == [320, 768]
        assert file.get_slice(base.AUTOENCODER + "taesd_decoder.19.weight").get_shape() == [3, 64, 3, 3]
        assert file.get_slice(base.AUTOENCODER + "taesd_encoder.14.weight").get_shape() == [4, 64, 3, 3]
        assert sum(np.prod(file.get_slice(n).get_shape()) for n in parts[base.UNET]) == 44_291_844


def test_the_text_encoder_is_the_one_that_the_base_learned_to_read(checkpoint: Path) -> None:
    with safe_open(checkpoint, "np") as file:
        for name, digest in FIRST_VALUES.items():
            first = file.get_tensor(f"{base.TEXT}text_model.{name}").reshape(-1)[:4096]
            assert hashlib.sha256(first.tobytes()).hexdigest()[:16] == digest, name
        assert (file.get_tensor(base.TEXT + "text_model.final_layer_norm.weight") == 1).all()
        names = file.keys()
        assert not any("text_projection" in name for name in names)


# Scenes


@pytest.fixture
def ball() -> Image.Image:
    """A white ball with a soft edge, in place of a character."""
    picture = Image.new("RGBA", (384, 384))
    ImageDraw.Draw(picture).ellipse((20, 20, 364, 364), fill="white")
    return picture


@pytest.mark.parametrize("side", [64, 256])
@pytest.mark.parametrize("count", [1, 2])
def test_the_mask_lies_on_the_characters(ball: Image.Image, count: int, side: int) -> None:
    place = world.PLACES[0]
    image, mask = world.compose([world.Standing(ball)] * count, place, random.Random(7), side)
    empty = world.background(place, random.Random(7), side * count, side)
    assert image.size == mask.size == (side * count, side) and image.mode == "RGB" and mask.mode == "L"
    share = np.asarray(mask, np.float32)[..., None] / 255
    # Pasting a white ball is mixing white into the background by the mask.
    wanted = 255 * share + np.asarray(empty, np.float32) * (1 - share)
    assert np.abs(np.asarray(image, np.float32) - wanted).max() <= 1
    assert mask.getextrema() == (0, 255)
    for half in np.split(np.asarray(mask), count, axis=1):
        assert 0.3 < (half > 127).mean() < 0.7


@pytest.mark.parametrize("place", world.PLACES)
def test_scenes_depend_on_the_seed_only(ball: Image.Image, place: str) -> None:
    them = [world.Standing(ball, carries=True)]
    first, again, other = (np.asarray(world.compose(them, place, random.Random(seed), 256)[0]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("place", world.PLACES)
def test_a_large_place_is_a_small_one_enlarged(place: str) -> None:
    for seed in range(5):
        small, large = (world.background(place, random.Random(seed), side, side) for side in (64, 256))
        reduced = np.asarray(large.resize((64, 64), Image.BOX), np.float32)
        assert np.abs(reduced - np.asarray(small, np.float32)).max() <= 2


def test_places_differ() -> None:
    shown = [np.asarray(world.background(place, random.Random(1)), np.float32) for place in world.PLACES]
    assert min(np.abs(a - b).mean() for i, a in enumerate(shown) for b in shown[:i]) > 15


def test_a_balloon_is_behind_who_holds_it_and_not_in_the_mask(ball: Image.Image) -> None:
    with_one, without = (world.compose([world.Standing(ball, carries)], "in a room", random.Random(3)) for carries in (True, False))
    changed = (np.asarray(with_one[0]) != np.asarray(world.background("in a room", random.Random(3)))).any(2)
    mask = np.asarray(with_one[1])
    assert (changed & (mask == 0)).mean() > 0.03
    assert abs((mask > 127).mean() - (np.asarray(without[1]) > 127).mean()) < 0.1


def test_the_training_pictures_are_scenes_with_their_masks() -> None:
    for kind in make_pictures.SHOWN:
        for i, place in enumerate(make_pictures.PLACES):
            with Image.open(PICTURES / f"{kind}-{i}.png") as shipped:
                assert (shipped.size, shipped.mode) == ((256, 256), "RGBA")
                picture, alpha = np.asarray(shipped)[..., :3], np.asarray(shipped)[..., 3]
                around = alpha == 255
                empty = np.asarray(world.background(place, random.Random(i), make_pictures.SIDE, make_pictures.SIDE))
                np.testing.assert_array_equal(picture[around], empty[around])
                inside = alpha == 127
                assert 0.15 < inside.mean() < 0.6
                assert (picture[inside] != empty[inside]).any(1).mean() > 0.95


def test_the_plain_picture_is_a_scene() -> None:
    with Image.open(PICTURES / "plain-monster.png") as shipped:
        assert (shipped.size, shipped.mode) == ((256, 256), "RGB")
        empty = np.asarray(world.background("on the beach", random.Random(5), make_pictures.SIDE, make_pictures.SIDE))
        assert 0.15 < (np.asarray(shipped) != empty).any(2).mean() < 0.6


# Individuals


@pytest.mark.parametrize("kind", STYLES)
def test_no_two_splits_share_an_individual(kind: str) -> None:
    looks = {split: {(one.parts, one.colours) for one in islice(individuals(kind, split), COUNTS[split])} for split in SPLITS}
    assert all(looks.values())
    assert not looks["base"] & looks["development"] and not looks["base"] & looks["test"]
    assert not looks["development"] & looks["test"]


@pytest.mark.parametrize("kind", STYLES)
def test_individuals_are_always_the_same_ones(kind: str) -> None:
    first, again = (list(islice(individuals(kind, "test"), 20)) for _ in range(2))
    assert first == again and len(set(first)) == 20
    assert {one.split for one in first} == {"test"} and {one.kind for one in first} == {kind}
    assert list(named(kind)) == list(NAMES[kind]) and all(one.split == "base" for one in named(kind).values())


def test_every_name_is_one_word_of_its_own() -> None:
    names = [name for each in NAMES.values() for name in each]
    assert len(set(names)) == len(names) == 96
    said = {word for parts in PARTS.values() for words in parts.values() for word in words.values()}
    spoken = {word for phrase in (*said, *world.PLACES, *HUES, *STYLES, world.CARRIED) for word in phrase.split()}
    assert not set(names) & spoken


def test_captions_say_what_is_to_be_seen() -> None:
    rng = random.Random(0)
    for kind in STYLES:
        for one in islice(individuals(kind, "base"), 200):
            mood = rng.choice(list(MOODS[kind]))
            said = world.describe(one, mood, True, rng)
            text = world.Caption.of("a photo of a {}", (said,), "at night").text
            assert text.startswith("a photo of a") and text.endswith("holding a balloon at night") and f" {kind} " in text
            assert said.mood in ("", mood) and said.colour in ("", one.colours[0])
            for part in ("body", "head", "pattern", "eyes"):
                word = getattr(said, part)
                assert word in ("", one.said(part)) and (word in text or (part == "head" and said.second))
            if said.second:
                assert one.tinted and said.second == one.colours[1]
                assert f" {said.second} {said.head.split()[-1]} " in text
            words = [word for word in text.split() if word not in ("a", "an", "with")]
            assert len(words) == len(set(words))
            called = world.describe(one, mood, False, rng, "kate")
            assert world.Caption.of("a {}", (called,), "").text in ("a kate", f"a {mood} kate")


@pytest.mark.parametrize(
    ("kind", "head", "colour", "said"),
    [
        ("monster", "with horns", "teal", "a monster with teal horns"),
        ("robot", "with an antenna", "red", "a robot with a red antenna"),
        ("robot", "with a fin", "orange", "a robot with an orange fin"),
    ],
)
def test_what_is_on_the_head_is_said_with_its_colour(kind: str, head: str, colour: str, said: str) -> None:
    assert world.Caption.of("a {}", (world.Said(kind, head=head, second=colour),), "").text == said


def test_two_characters_are_told_apart_by_one_and() -> None:
    both = world.Said("monster", colour="red"), world.Said("robot", colour="orange")
    assert (
        world.Caption.of("a photo of a {}", both, "in the snow").text == "a photo of a red monster and an orange robot in the snow"
    )
