"""The concept's file: its size, its exactness, and one clear sentence for every file that is something else."""

import base64
import errno
import io
import itertools
import json
import os
import pickle
import random
import re
import string
import struct
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

from perfusion_core import PerfusionError, safe_files
from perfusion_core.concept import Concept, check_trigger
from perfusion_core.concept_file import DETAILS, MAX_BYTES, MAX_PREVIEW, READABLE, VERSIONS, pack_layers, unpack_layers
from perfusion_core.gated_edit import EXACT, MODES, Coefficients
from perfusion_core.lora_export import corrections
from perfusion_core.quantization import INT8, UINT4
from perfusion_core.stack import combine, edit_of, with_outputs
from perfusion_core.training.settings import Settings
from scripts.setup.bootstrap import ROOT

torch.set_num_threads(1)  # with tensors this small, threads only wait for each other

SD1 = {
    **{f"input_blocks.{i}.1": 320 for i in (1, 2)},
    **{f"input_blocks.{i}.1": 640 for i in (4, 5)},
    **{f"input_blocks.{i}.1": 1280 for i in (7, 8)},
    "middle_block.1": 1280,
    **{f"output_blocks.{i}.1": 1280 for i in (3, 4, 5)},
    **{f"output_blocks.{i}.1": 640 for i in (6, 7, 8)},
    **{f"output_blocks.{i}.1": 320 for i in (9, 10, 11)},
}
SD1_LAYERS = {f"{block}.transformer_blocks.0.attn2": width for block, width in SD1.items()}
SDXL = {
    **{f"input_blocks.{i}.1": (640, 2) for i in (4, 5)},
    **{f"input_blocks.{i}.1": (1280, 10) for i in (7, 8)},
    "middle_block.1": (1280, 10),
    **{f"output_blocks.{i}.1": (1280, 10) for i in (0, 1, 2)},
    **{f"output_blocks.{i}.1": (640, 2) for i in (3, 4, 5)},
}
SDXL_LAYERS = {f"{block}.transformer_blocks.{t}.attn2": width for block, (width, depth) in SDXL.items() for t in range(depth)}
TINY_LAYERS = {"input_blocks.1.1.attn2": 6, "middle_block.1.attn2": 4}
DETAIL = {"date": "2025-11-25", "author": "A. N. Author", "license": "CC BY-SA 4.0"}


def concept_of(
    layers: dict[str, int],
    width: int = 8,
    words: dict[str, int] | None = None,
    keys: bool = False,
    seed: int = 0,
    **changed: object,
) -> Concept:
    """A concept as training would leave it."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    target = normal(width)
    made = Concept(
        trigger="<my-teddy>",
        superclass="teddy",
        family="sd1",
        word={name: 0.02 * normal(1, size) for name, size in (words or {"clip_l": width}).items()},
        target_input=target,
        probe=(target + 0.3 * normal(width)) / width**2,
        superclass_encoding=target + 0.2 * normal(width),
        values={layer: normal(m) for layer, m in layers.items()},
        keys={layer: normal(m) for layer, m in layers.items()} if keys else {},
        training={k: v for k, v in asdict(Settings()).items() if k not in ("micro", "ema")},
        details=DETAIL,
    )
    return replace(made, **changed)


def jpeg(size: int = 96, seed: int = 0, quality: int = 80) -> bytes:
    """A small picture."""
    noise = random.Random(seed).randbytes(12 * 12 * 3)
    picture = Image.frombytes("RGB", (12, 12), noise).resize((size, size), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def same(one: Concept, other: Concept, but: tuple[str, ...] = ()) -> None:
    """Both are equal to the last bit."""
    for name, value in vars(one).items():
        found = getattr(other, name)
        if name in but:
            continue
        if isinstance(value, Tensor):
            assert torch.equal(found, value) and found.dtype == torch.float32, name
        elif name in ("word", "values", "keys"):
            assert list(found) == list(value) or (name == "word" and set(found) == set(value)), name
            for key, tensor in value.items():
                assert torch.equal(found[key], tensor) and found[key].dtype == torch.float32, (name, key)
        else:
            assert found == value, name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "teddy.safetensors"


@pytest.fixture
def tiny() -> Concept:
    return concept_of(TINY_LAYERS, preview=jpeg())


# ---- size ----------------------------------------------------------------------------------------------------------------


def test_the_layout_is_that_of_sd1() -> None:
    assert len(SD1_LAYERS) == 16 and sum(SD1_LAYERS.values()) == 12480
    assert len(SDXL_LAYERS) == 70


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 32 * 1024), (torch.bfloat16, 32 * 1024), (torch.float32, 62 * 1024)])
def test_a_whole_sd1_concept_is_small(dtype: torch.dtype, most: int, path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768, superclass="teddy bear")
    concept = replace(concept, training={**concept.training, "seed": 2**63 - 1, "word_rate": 0.00025, "steps": 1000})
    concept.save(path, dtype)
    size = path.stat().st_size
    numbers = (12480 + 4 * 768) * dtype.itemsize
    assert numbers < size <= most
    replace(concept, preview=jpeg(160)).save(path, dtype)
    assert path.stat().st_size <= size + 64 + MAX_PREVIEW * 4 / 3


def test_the_largest_preview_adds_no_more_than_its_text(path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768)
    concept.save(path)
    bare = path.stat().st_size
    picture = jpeg().ljust(MAX_PREVIEW, b"\0")
    replace(concept, preview=picture).save(path)
    assert Concept.load(path).preview == picture
    assert path.stat().st_size - bare <= 4 * MAX_PREVIEW / 3 + 64


# ---- exactness -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", [False, True])
def test_float32_survives_exactly(keys: bool, path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768, keys=keys, preview=jpeg(), bias=1 / 3, temperature=0.1 + 0.2, strength=2 / 3)
    concept.save(path, torch.float32)
    same(concept, Concept.load(path))
    Concept.load(path).save(path, torch.float32)
    same(concept, Concept.load(path))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype, path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768, keys=True, preview=jpeg())
    concept.save(path, dtype)
    once = Concept.load(path)
    for layer in SD1_LAYERS:
        assert torch.equal(once.values[layer], concept.values[layer].to(dtype).float())
        assert torch.equal(once.keys[layer], concept.keys[layer].to(dtype).float())
    assert torch.equal(once.target_input, concept.target_input.to(dtype).float())
    once.save(path, dtype)
    same(once, Concept.load(path))


@pytest.mark.parametrize("keys", [False, True])
def test_eight_bits_are_half_of_half_precision(keys: bool, path: Path) -> None:
    """Each number is off by half a step at most, each layer's steps being a 127th of its largest number; and then by no more."""
    made = concept_of(SD1_LAYERS, 768, keys=keys, preview=jpeg(), bias=1 / 3)
    concept = replace(made, values={name: (i + 1) * value for i, (name, value) in enumerate(made.values.items())})
    concept.save(path)
    half = path.stat().st_size
    concept.save(path, INT8)
    numbers = 12480 * (1 + keys) + 4 * 768
    assert half - path.stat().st_size > numbers - 300
    once = Concept.load(path)
    pairs = [(once.target_input, concept.target_input), (once.word["clip_l"], concept.word["clip_l"]), (once.probe, concept.probe)]
    pairs += [(once.values[layer], concept.values[layer]) for layer in SD1_LAYERS]
    pairs += [(once.keys[layer], concept.keys[layer]) for layer in concept.keys]
    for found, wanted in pairs:
        assert 0 < (found - wanted).abs().max() <= wanted.abs().max() / 127 / 2 * 1.0001
    once.save(path, INT8)
    again = Concept.load(path)
    for layer in SD1_LAYERS:
        assert torch.allclose(again.values[layer], once.values[layer], rtol=1e-6)
    assert again.bias == 1 / 3 and again.preview == concept.preview


@pytest.mark.parametrize("keys", [False, True])
def test_four_bits_are_a_third_of_half_precision(keys: bool, path: Path) -> None:
    """Target outputs are off by half a step at most, a group's steps being a seventh of its largest number."""
    made = concept_of(SD1_LAYERS, 768, keys=keys, preview=jpeg())
    concept = replace(made, values={name: 10.0 ** (i - 8) * value for i, (name, value) in enumerate(made.values.items())})
    concept.save(path, INT8)
    eight = path.stat().st_size
    other = Concept.load(path)
    concept.save(path, UINT4)
    once = Concept.load(path)
    assert eight - path.stat().st_size > (12480 / 2 - 12480 / 16) * (1 + keys) - 300
    assert torch.equal(once.target_input, other.target_input) and torch.equal(once.word["clip_l"], other.word["clip_l"])
    for found, wanted in ((once.values, concept.values), (once.keys, concept.keys)):
        for layer in wanted:
            groups, off = wanted[layer].view(-1, 32), (found[layer] - wanted[layer]).view(-1, 32)
            assert off.abs().max() > 0 and bool((off.abs().amax(1) <= groups.abs().amax(1) / 7 * (1 / 2 + 1 / 32)).all())
    once.save(path, UINT4)
    again = Concept.load(path)
    for layer in SD1_LAYERS:
        assert torch.allclose(again.values[layer], once.values[layer], rtol=2**-7)


def test_compact_files_have_the_sizes_promised(path: Path) -> None:
    for concept, kind, most in (
        (concept_of(SD1_LAYERS, 768), torch.float16, 32),
        (concept_of(SD1_LAYERS, 768), UINT4, 16),
        (concept_of(SDXL_LAYERS, 2048, {"clip_l": 768, "clip_g": 1280}, family="sdxl"), UINT4, 64),
    ):
        concept.save(path, kind)
        assert path.stat().st_size <= most * 1024


@pytest.mark.parametrize("kind", [INT8, UINT4])
def test_few_bits_hold_words_alone_zeros_positions_and_other_encoders(kind: torch.dtype, path: Path) -> None:
    odd = {"a.attn2": 3, "b.attn2": 34}
    for concept in (
        concept_of({}, 8, values={}),
        concept_of(TINY_LAYERS, superclass_encoding=torch.zeros(8)),
        replace(concept_of(TINY_LAYERS), values={layer: torch.zeros(m) for layer, m in TINY_LAYERS.items()}),
        replace(concept_of(TINY_LAYERS), values={layer: torch.randn(77, m) for layer, m in TINY_LAYERS.items()}),
        replace(concept_of(odd), values={layer: torch.randn(77, m) for layer, m in odd.items()}),
        concept_of(odd, values={layer: torch.randn(m) for layer, m in odd.items()}),
        concept_of(SDXL_LAYERS, 2048, {"clip_l": 768, "clip_g": 1280}, family="sdxl"),
    ):
        concept.save(path, kind)
        found = Concept.load(path)
        assert found.layers == concept.layers and set(found.word) == set(concept.word)
        largest = max((value.abs().max() for value in concept.values.values()), default=torch.tensor(0.0))
        for layer, wanted in concept.values.items():
            # Of four bits, layers may share a group.
            most = wanted.abs().max() / 127 / 2 * 1.0001 if kind == INT8 else largest / 7 * (1 / 2 + 1 / 32)
            assert (found.values[layer] - wanted).abs().max() <= most
        assert (found.superclass_encoding - concept.superclass_encoding).abs().max() < 0.02


Damages = dict[str, Callable[[dict[str, Tensor]], object]]
EIGHT_BITS: Damages = {
    "a scale too many": lambda tensors: tensors.update(scales=torch.ones(8)),
    "a scale too few": lambda tensors: tensors.update(scales=tensors["scales"][:-1].clone()),
    "scales of another type": lambda tensors: tensors.update(scales=tensors["scales"].half()),
    "scales of eight bits": lambda tensors: tensors.update(scales=tensors["scales"].to(torch.int8)),
    "a tensor of another type": lambda tensors: tensors.update(probe=tensors["probe"].float()),
    "a number alone": lambda tensors: tensors.update(probe=tensors["probe"][0].clone()),
    "outputs cut off": lambda tensors: tensors.update(target_outputs_v=tensors["target_outputs_v"][:-1].clone()),
    "scales of outputs that have none": lambda tensors: tensors.update({OUTPUT_SCALES: torch.ones(1, dtype=torch.bfloat16)}),
    "outputs' scales of eight bits": lambda tensors: tensors.update({OUTPUT_SCALES: torch.ones(3, dtype=torch.int8)}),
}
OUTPUT_SCALES = "target_outputs_v.scales"
FOUR_BITS: Damages = {
    "no scales of outputs": lambda tensors: tensors.pop(OUTPUT_SCALES),
    "a scale too many": lambda tensors: tensors.update({OUTPUT_SCALES: tensors[OUTPUT_SCALES].repeat(2)}),
    "one scale for all": lambda tensors: tensors.update({OUTPUT_SCALES: tensors[OUTPUT_SCALES][0].clone()}),
    "scales of another type": lambda tensors: tensors.update({OUTPUT_SCALES: tensors[OUTPUT_SCALES].float()}),
    "scales in four bits": lambda tensors: tensors.update({OUTPUT_SCALES: torch.zeros(16, dtype=torch.uint8)}),
    "outputs cut off": lambda tensors: tensors.update(target_outputs_v=tensors["target_outputs_v"][:-1].clone()),
    "a number alone": lambda tensors: tensors.update(target_outputs_v=tensors["target_outputs_v"][0].clone()),
    "one dimension more": lambda tensors: tensors.update(target_outputs_v=tensors["target_outputs_v"][None]),
    "a probe in four bits": lambda tensors: tensors.update(probe=tensors["probe"].to(torch.uint8)),
}


@pytest.mark.parametrize(("kind", "name"), [*((INT8, name) for name in EIGHT_BITS), *((UINT4, name) for name in FOUR_BITS)])
def test_refuses_few_bits_whose_scales_do_not_fit(kind: torch.dtype, name: str, tiny: Concept, path: Path) -> None:
    tiny.save(path, kind)
    tensors, metadata = safe_files.read(path, 2**20, READABLE)
    (EIGHT_BITS if kind == INT8 else FOUR_BITS)[name](tensors)
    safe_files.write(path, tensors, metadata)
    assert "its scales do not match its tensors" in sentence(path)


@pytest.mark.parametrize(("kind", "name"), [(INT8, "scales"), (UINT4, "scales"), (UINT4, OUTPUT_SCALES)])
def test_refuses_few_bits_that_stand_for_infinity(kind: torch.dtype, name: str, tiny: Concept, path: Path) -> None:
    tiny.save(path, kind)
    tensors, metadata = safe_files.read(path, 2**20, READABLE)
    tensors[name] = torch.full_like(tensors[name], torch.finfo(tensors[name].dtype).max)
    safe_files.write(path, tensors, metadata)
    assert "contains infinity" in sentence(path)


@pytest.mark.parametrize("kind", [INT8, UINT4])
def test_refuses_few_bits_without_scales(kind: torch.dtype, tiny: Concept, path: Path) -> None:
    tiny.save(path, kind)
    tensors, metadata = safe_files.read(path, 2**20, READABLE)
    del tensors["scales"]
    safe_files.write(path, tensors, metadata)
    assert ("contains torch.int8 instead" if kind == INT8 else "contains tensors that do not belong to a concept") in sentence(path)


def test_a_tiny_probe_survives_half_precision(path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768)
    small = replace(concept, probe=concept.probe * 1e-6)
    assert (small.probe.half() == 0).all()
    small.save(path)
    back = Concept.load(path)
    one, other = (edit_of((each,), EXACT) for each in (small, back))
    # Three tensors of about 1e-3 relative rounding, over 768 numbers.
    assert (one.probes - other.probes).norm() / one.probes.norm() < 1e-3


@pytest.mark.parametrize("keys", [False, True])
def test_sdxl_with_two_encoders_survives_exactly(keys: bool, path: Path) -> None:
    concept = concept_of(SDXL_LAYERS, 2048, {"clip_l": 768, "clip_g": 1280}, keys, family="sdxl")
    concept = replace(concept, word={name: each.repeat(3, 1) + torch.arange(3.0)[:, None] for name, each in concept.word.items()})
    concept.save(path, torch.float32)
    same(concept, Concept.load(path))


def test_the_same_concept_gives_the_same_bytes(path: Path) -> None:
    """And they are what the library would write, but for the order of the metadata."""
    concept = replace(
        Concept.load(ROOT / "demo" / "concepts" / "demo-monster.safetensors"),
        details={"author": "テディ \u2028\x01", "license": "CC0"},
    )
    written = set()
    for _ in range(8):
        concept.save(path)
        written.add(path.read_bytes())
    (content,) = written
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    again = safetensors.torch.save(tensors, metadata)
    (length,) = struct.unpack("<Q", again[:8])
    assert again[:8] == content[:8] and again[8 + length :] == content[8 + length :]
    assert json.loads(again[8 : 8 + length]) == json.loads(content[8 : 8 + length])


def test_every_text_survives(path: Path) -> None:
    concept = concept_of(
        TINY_LAYERS,
        trigger="<größe_2-ж>",
        superclass='a "stuffed"\n bear 🧸',
        family="sd2.1-v",
        training={"steps": 7, "rate": 1e-7, "lock": "local", "note": "ünï\n\"'"},
        details={name: f"{name} «é»\n\t{{}}" for name in DETAILS},
    )
    concept.save(path)
    same(concept, Concept.load(path), ("word", "values", "keys", "target_input", "probe", "superclass_encoding"))


def test_the_hosts_keys_are_there(path: Path, tiny: Concept) -> None:
    tiny.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "sd1/perfusion" and metadata["modelspec.base_model"] == "sd1"
    assert metadata["modelspec.trigger_phrase"] == "<my-teddy>" and json.loads(metadata["trained_words"]) == ["<my-teddy>"]
    assert metadata["modelspec.title"] == "my-teddy"
    assert {name: metadata[f"modelspec.{name}"] for name in DETAIL} == DETAIL
    (picture,) = json.loads(metadata["ssmd_cover_images"])
    assert Image.open(io.BytesIO(base64.b64decode(picture))).size == (96, 96)
    assert names == {"word.clip_l", "target_input", "probe", "superclass_encoding", "target_outputs_v"}


@pytest.mark.parametrize(("dtype", "most"), [(torch.float16, 8 * 1024), (torch.float32, 14 * 1024)])
def test_a_word_alone_is_smaller_and_survives(dtype: torch.dtype, most: int, path: Path) -> None:
    alone = concept_of({}, 768, words={"clip_l": 768})
    alone.save(path, dtype)
    numbers = 4 * 768 * dtype.itemsize
    assert numbers < path.stat().st_size <= most
    tensors, metadata = parts_of(path)
    assert set(tensors) == {"word.clip_l", "target_input", "probe", "superclass_encoding"} and metadata["layers"] == ""
    once = Concept.load(path)
    assert once.values == once.keys == {} and torch.equal(once.word["clip_l"], alone.word["clip_l"].to(dtype).float())
    once.save(path, dtype)
    same(once, Concept.load(path))


# ---- layers as text ------------------------------------------------------------------------------------------------------


def random_layers(rng: random.Random) -> dict[str, int]:
    """Names of few distinct parts, so that ends are often shared."""
    parts = ["a", "b", "attn2", "0", "10", "blocks_é", "transformer_blocks"]
    end = [rng.choice(parts) for _ in range(rng.randint(0, 3))]
    names = [".".join([*(rng.choice(parts) for _ in range(rng.randint(0, 4))), *end]) for _ in range(rng.randint(1, 30))]
    return {name: rng.randint(1, 99999) for name in names if name} or {"a": 1}


@pytest.mark.parametrize("layers", [SD1_LAYERS, SDXL_LAYERS, {}, {"a": 1}, {"a.b.c": 7}, {"x": 1, "a.x": 2}, {"a.b": 1, "c": 2}])
def test_layers_come_back_from_their_text(layers: dict[str, int], path: Path) -> None:
    assert list(unpack_layers(pack_layers(layers), path).items()) == list(layers.items())


def test_any_layers_come_back_from_their_text(path: Path) -> None:
    rng = random.Random(0)
    for _ in range(2000):
        layers = random_layers(rng)
        assert list(unpack_layers(pack_layers(layers), path).items()) == list(layers.items())


def test_the_shared_end_is_written_once() -> None:
    assert pack_layers(SD1_LAYERS).count("transformer_blocks") == 1
    assert pack_layers({"a.1.x": 5, "a.2.x": 5, "b.2.x": 5, "b.3.x": 6}) == ".x a.1:5 .2 b.2 .3:6"
    assert len(pack_layers(SD1_LAYERS)) < 200 and len(pack_layers(SDXL_LAYERS)) < 800


def test_layers_may_be_written_out(path: Path) -> None:
    text = " ".join([".", *(f"{name}:{width}" for name, width in SDXL_LAYERS.items())])
    assert unpack_layers(text, path) == SDXL_LAYERS
    thousand = [f"l{i}:1" for i in range(1000)]
    assert len(unpack_layers(" ".join([".", *thousand]), path)) == 1000
    with pytest.raises(PerfusionError, match="list of layers cannot be read"):
        unpack_layers(" ".join([".", *thousand, "more:1"]), path)


# ---- files that are something else ---------------------------------------------------------------------------------------


def sentence(path: Path) -> str:
    """The one sentence that refuses a file; anything but a PerfusionError fails the test."""
    with pytest.raises(PerfusionError) as caught:
        Concept.load(path)
    text = str(caught.value)
    assert text.startswith(path.name) and text.endswith(".")
    assert len(text) < 500 and text.isprintable(), text
    return text


def parts_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata, without the code under test."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


Change = Callable[[dict[str, Tensor], dict[str, str]], object]


@pytest.fixture
def changed(tiny: Concept, path: Path) -> Callable[[Change], str]:
    """Writes a good file with something changed, and gives the sentence that refuses it."""
    tiny.save(path, torch.float32)
    tensors, metadata = parts_of(path)

    def write(change: Change) -> str:
        given, told = {name: tensor.clone() for name, tensor in tensors.items()}, dict(metadata)
        change(given, told)
        safetensors.torch.save_file(given, path, told)
        return sentence(path)

    return write


def test_unchanged_parts_load(changed: Callable[[Change], str], tiny: Concept, path: Path) -> None:
    with pytest.raises(pytest.fail.Exception):
        changed(lambda tensors, metadata: None)
    same(tiny, Concept.load(path))


def test_refuses_every_truncation(tiny: Concept, path: Path) -> None:
    tiny.save(path)
    whole = path.read_bytes()
    for length in [*range(0, 64), *range(64, len(whole), 41), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert "not a complete safetensors file" in sentence(path)
    path.write_bytes(whole + b"\0")
    assert "not a complete safetensors file" in sentence(path)


def test_a_flipped_bit_in_the_header_gives_a_concept_or_a_sentence(path: Path) -> None:
    concept_of(TINY_LAYERS).save(path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    rng, refused = random.Random(0), 0
    for _ in range(1500):
        broken = bytearray(whole)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            broken[rng.randrange(8 + length)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            found = Concept.load(path)
        except PerfusionError as error:
            refused += 1
            assert str(error).startswith(path.name) and str(error).isprintable()
        else:
            check_trigger(found.trigger)
            assert found.superclass and set(found.values) and edit_of((found,), EXACT).probes.isfinite().all()
    assert 500 < refused < 1500


def test_random_numbers_behind_a_good_header_never_crash(path: Path) -> None:
    concept_of(TINY_LAYERS).save(path)
    whole = path.read_bytes()
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    rng = random.Random(1)
    for _ in range(300):
        path.write_bytes(whole[:start] + rng.randbytes(len(whole) - start))
        try:
            assert edit_of((Concept.load(path),), EXACT).probes.isfinite().all()
        except PerfusionError as error:
            assert str(error).startswith(path.name)


@pytest.mark.parametrize("name", ["target_input", "probe", "superclass_encoding", "target_outputs_v"])
def test_refuses_a_missing_tensor(name: str, changed: Callable[[Change], str]) -> None:
    assert f"these tensors are missing: {name}" in changed(lambda tensors, _: tensors.pop(name))


def test_refuses_a_missing_word(changed: Callable[[Change], str]) -> None:
    assert "lacks a learned word" in changed(lambda tensors, _: tensors.pop("word.clip_l"))


def test_outputs_without_layers_are_refused(path: Path, changed: Callable[[Change], str]) -> None:
    for name in ("target_outputs_v", "target_outputs_k"):

        def change(tensors: dict[str, Tensor], metadata: dict[str, str], name: str = name) -> None:
            tensors.pop("target_outputs_v")
            tensors[name] = torch.ones(0)
            metadata["layers"] = ""

        assert "its list of layers is empty" in changed(change)
    concept_of({}).save(path, INT8)
    tensors, metadata = parts_of(path)
    more = {"target_outputs_v": torch.ones(0, dtype=torch.int8), "scales": torch.ones(len(tensors) - 1)}
    safetensors.torch.save_file(tensors | more, path, metadata)
    assert "its scales do not" in sentence(path)
    concept_of({}).save(path)
    tensors, metadata = parts_of(path)
    safetensors.torch.save_file(tensors, path, {name: text for name, text in metadata.items() if name != "layers"})
    assert "its list of layers is missing" in sentence(path)


@pytest.mark.parametrize(
    "name", ["more", "word.", "word.a-b", "word.a.b", "target_outputs_q", "", "a\nb" * 300, "word." + "x" * 41]
)
def test_refuses_an_extra_tensor(name: str, changed: Callable[[Change], str]) -> None:
    assert "tensors that do not belong to a concept" in changed(lambda tensors, _: tensors.update({name: torch.ones(8)}))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *itertools.product(("target_input", "probe", "superclass_encoding"), [(9,), (7,), (8, 1), (1, 8), (2, 4), ()]),
        *itertools.product(("target_outputs_v", "target_outputs_k"), [(11,), (9,), (10, 1), (2, 5), (1,), (0,)]),
        *itertools.product(("word.clip_l",), [(8,), (1, 1, 8), (33, 8), (1, 8193), (), (1,) * 9]),
    ],
)
def test_refuses_another_shape(name: str, shape: tuple[int, ...], changed: Callable[[Change], str]) -> None:
    assert re.search("shape|dimensions", changed(lambda tensors, _: tensors.update({name: torch.ones(shape)})))


@pytest.mark.parametrize("shape", [(0, 8), (1, 0)])
def test_refuses_an_empty_word(shape: tuple[int, ...], changed: Callable[[Change], str]) -> None:
    assert "word.clip_l has the shape" in changed(lambda tensors, _: tensors.update({"word.clip_l": torch.ones(shape)}))


def test_refuses_words_of_different_length(changed: Callable[[Change], str]) -> None:
    said = changed(lambda tensors, _: tensors.update({"word.clip_g": torch.ones(2, 8)}))
    assert "have different numbers of vectors" in said


def test_refuses_tensors_without_a_width(changed: Callable[[Change], str]) -> None:
    names = ("target_input", "probe", "superclass_encoding")
    changed(lambda tensors, _: tensors.update({name: torch.ones(0) for name in names}))


def test_refuses_a_thousand_dimensions(path: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1] * 1000, "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert "x has 1000 dimensions" in sentence(path)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.bool,
        torch.float64,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    ],
)
@pytest.mark.parametrize("name", ["probe", "word.clip_l", "target_outputs_v"])
def test_refuses_another_type_of_number(name: str, dtype: torch.dtype, changed: Callable[[Change], str]) -> None:
    said = changed(lambda tensors, _: tensors.update({name: torch.ones_like(tensors[name]).to(dtype)}))
    assert f"{name} contains {dtype}" in said


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["target_input", "probe", "superclass_encoding", "word.clip_l", "target_outputs_v"])
def test_refuses_what_is_not_finite(name: str, bad: float, changed: Callable[[Change], str]) -> None:
    assert f"{name} contains NaN or infinity" in changed(lambda tensors, _: tensors[name].view(-1)[-1].fill_(bad))


@pytest.mark.parametrize("factor", [-1.0, 0.0])
def test_refuses_a_probe_that_does_not_measure_its_target_input(factor: float, changed: Callable[[Change], str]) -> None:
    assert "probe does not match" in changed(lambda tensors, _: tensors["probe"].mul_(factor))


def test_refuses_numbers_whose_product_is_not_finite(changed: Callable[[Change], str]) -> None:
    def change(tensors: dict[str, Tensor], _: object) -> None:
        tensors |= {name: torch.full((8,), 1e30) for name in ("probe", "target_input")}

    assert "probe does not match" in changed(change)


def test_refuses_a_probe_whose_gates_would_overflow(changed: Callable[[Change], str]) -> None:
    """Their product is above 0, but the probe divided by it is not finite."""

    def change(tensors: dict[str, Tensor], _: object) -> None:
        tensors["probe"], tensors["target_input"] = torch.zeros(8), torch.zeros(8)
        tensors["probe"][:2], tensors["target_input"][1] = torch.tensor([1.0, 1e-39]), 1.0

    assert "probe does not match" in changed(change)


LONG = "x" * 100_000
BAD_TEXTS = {
    "format": (["perfusion-covariance", "", LONG, "Perfusion"], "not a Perfusion concept"),
    "version": ([str(len(VERSIONS) + 1), "0", "", "1.0", " 1", "1\n2", "9" * 9999, LONG], "its format version is"),
    "modelspec.trigger_phrase": (
        ["", "teddy", "<>", "<a b>", "<a", "a>", "<a>x", "<a>\n", "<a\n>", "<(a:1.2)>", "<{}>", f"<{'a' * 65}>", LONG],
        "trigger word is not a name",
    ),
    "superclass": (["", " ", "\n\t", "x" * 201, LONG], "its superclass"),
    "modelspec.base_model": (["", "a b", "a\n", "../sd1", "x" * 41, LONG], "its base family"),
    "gate": (
        [
            *(
                "",
                "0.6",
                "0.6 0.15",
                "0.6 0.15 1 1",
                "a b c",
                "nan 0.15 1",
                "0.6 nan 1",
                "0.6 0.15 nan",
                "inf 0.15 1",
                "0.6 inf 1",
            ),
            *(
                "0.6 0 1",
                "0.6 -1 1",
                "0.6 0.15 1.1",
                "0.6 0.15 -0.1",
                "11 0.15 1",
                "0.6,0.15,1",
                "0.6 0.15  1",
                "1e999 1 1",
                LONG,
            ),
        ],
        "bias, temperature or strength is missing or out of range",
    ),
    "layers": (
        [
            *("", ".", ". ", ".attn2", ".attn2 ", "a:1", ".attn2 a", ".attn2 a:", ".attn2 a:0", ".attn2 a:-1", ".attn2 a:1.5"),
            *(".attn2 a:100000", ".attn2 a:٣", ".attn2 a:1 b:x", ".attn2 a:1  b:2", ".attn2 a:1\nb:2", ".attn2 :1", "\0 a:1"),
            *(".attn2 a:5 a:5", ". a.x:5 a.x:5", ".attn2 a:1:2", "a b:1 ../c:2", f".{LONG} a:1", f". {LONG}:10"),
            *(f". {' '.join(f'l{i}:1' for i in range(1001))}", f". {' '.join(f'l{i}:99999' for i in range(1000))}"),
            *(". .a:10", ". a:5 .b:5", ". a.b:5 .c.d:5", ". a.b:5 .c .c", ". a.b:5 a.b", ". a:9", ". a:11", ". a:99999", LONG),
        ],
        "layers|target_outputs_v has the shape",
    ),
    "training": (
        [
            *("", "[]", "null", "1", '"text"', "{", "{'a': 1}", '{"a": null}', '{"a": [1]}', '{"a": {"b": 1}}', LONG),
            *("[" * 90_000, '{"a":' * 50_000, '{"a": ' + "9" * 90_000 + "}", "\ufeff{}"),
        ],
        "training settings",
    ),
    "ssmd_cover_images": (
        [
            *(
                "",
                "[]",
                "null",
                "1",
                "{}",
                '"x"',
                "[1]",
                "[null]",
                "[[]]",
                '[""]',
                '["é"]',
                '["***"]',
                '["abc"]',
                "[" * 90_000,
                LONG,
            ),
            json.dumps([base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(99)).decode()]),
            json.dumps([base64.b64encode(b"\xff\xd8").decode()]),
            json.dumps([base64.b64encode(b"\xff\xd8\xff" + bytes(MAX_PREVIEW - 2)).decode()]),
            json.dumps([base64.b64encode(b"\xff\xd8\xff" + bytes(600_000)).decode()]),
            json.dumps({"0": base64.b64encode(b"\xff\xd8\xff").decode()}),
        ],
        "preview is not a JPEG",
    ),
}


@pytest.mark.parametrize("key", BAD_TEXTS)
def test_refuses_texts_that_mean_something_else(key: str, changed: Callable[[Change], str]) -> None:
    texts, says = BAD_TEXTS[key]
    for text in texts:
        said = changed(lambda _, metadata, text=text: metadata.update({key: text}))
        assert re.search(says, said), (text[:80], said)


@pytest.mark.parametrize("key", sorted(set(BAD_TEXTS) - {"training", "ssmd_cover_images"}))
def test_refuses_a_missing_text(key: str, changed: Callable[[Change], str]) -> None:
    assert re.search(BAD_TEXTS[key][1], changed(lambda _, metadata: metadata.pop(key)))


def test_keys_at_the_word_are_in_files_of_the_second_version_alone(path: Path) -> None:
    trained = concept_of(TINY_LAYERS, keys=True)
    trained.save(path, torch.float32)
    assert parts_of(path)[1]["version"] == "1" and "keys_at" not in parts_of(path)[1]
    at_word = replace(trained, keys_at_word=True, key_lock=0.3)
    for dtype in (torch.float32, torch.float16, INT8, UINT4):
        at_word.save(path, dtype)
        assert parts_of(path)[1]["version"] == "2" and parts_of(path)[1]["keys_at"] == "word"
        assert Concept.load(path).keys_at_word and Concept.load(path).key_lock == 0.3
    assert at_word.with_settings(key_lock=0.8).key_lock == 0.8 and trained.with_settings(key_lock=0.8) == trained
    edit = edit_of((trained, at_word), EXACT)
    assert edit.keys_at_word.tolist() == [False, True]
    assert all(each.tolist() == [True, True] for each in edit.keys_trained.values())
    assert edit.key_lock.tolist() == pytest.approx([0, 0.3])


@pytest.mark.parametrize("at_word", [False, True])
def test_keys_in_some_layers_are_in_files_of_the_third_version_alone(at_word: bool, path: Path) -> None:
    whole = replace(concept_of(TINY_LAYERS, keys=True), keys_at_word=at_word)
    chosen = dict(list(TINY_LAYERS.items())[1:])
    partly = replace(whole, keys={layer: whole.keys[layer] for layer in chosen})
    for dtype in (torch.float32, torch.float16, torch.bfloat16, INT8, UINT4):
        whole.save(path, dtype)
        exact = Concept.load(path)
        partly.save(path, dtype)
        metadata = parts_of(path)[1]
        assert metadata["version"] == "3" and metadata["key_layers"] == pack_layers(chosen)
        found = Concept.load(path)
        assert found.key_layers == chosen and found.layers == TINY_LAYERS and found.keys_at_word == at_word
        assert found.with_settings(key_lock=0.8).key_lock == (0.8 if at_word else 0)
        assert all(torch.equal(found.values[layer], exact.values[layer]) for layer in TINY_LAYERS)
        if dtype != UINT4:  # whose groups of columns begin elsewhere
            assert all(torch.equal(found.keys[layer], exact.keys[layer]) for layer in chosen)
    assert Concept.load(path).keys[next(iter(chosen))].shape == (next(iter(chosen.values())),)


def test_refuses_key_layers_that_are_not_some_of_its_layers(path: Path) -> None:
    whole = concept_of(TINY_LAYERS, keys=True)
    chosen = dict(list(TINY_LAYERS.items())[1:])
    replace(whole, keys={layer: whole.keys[layer] for layer in chosen}).save(path, torch.float32)
    tensors, metadata = parts_of(path)
    (name, width), *_ = chosen.items()
    for text in (
        "",
        pack_layers({"other.attn2": 4}),
        pack_layers({name: width + 1}),
        pack_layers(dict(reversed(TINY_LAYERS.items()))),
    ):
        safetensors.torch.save_file(tensors, path, metadata | {"key_layers": text})
        with pytest.raises(PerfusionError, match="its key_layers are not some of its layers, in their order"):
            Concept.load(path)
    without = {key: each for key, each in tensors.items() if key != "target_outputs_k"}
    safetensors.torch.save_file(without, path, metadata)
    with pytest.raises(PerfusionError, match="it has key_layers, but no trained keys"):
        Concept.load(path)
    # Without the entry, and in earlier versions, all layers have trained keys, which these tensors do not fit.
    for change in ({"version": "1"}, {"version": "2"}):
        safetensors.torch.save_file(tensors, path, metadata | change)
        with pytest.raises(PerfusionError, match="target_outputs_k has the shape"):
            Concept.load(path)


def test_refuses_keys_at_another_place_or_without_keys(path: Path) -> None:
    replace(concept_of(TINY_LAYERS, keys=True), keys_at_word=True).save(path, torch.float32)
    tensors, metadata = parts_of(path)
    for held, told, says in (
        (tensors, {"keys_at": "padding"}, "its keys_at is not 'word'"),
        (tensors, {"keys_at": LONG}, "its keys_at is not 'word'"),
        *((tensors, {"key_lock": text}, "its key_lock is not a number") for text in ("", "1.1", "-0.1", "nan", "inf", "a", LONG)),
        ({name: each for name, each in tensors.items() if name != "target_outputs_k"}, {}, "it has keys_at, but no trained keys"),
    ):
        safetensors.torch.save_file(held, path, metadata | told)
        with pytest.raises(PerfusionError, match=says):
            Concept.load(path)
    # To the first version the key means nothing, as any other that it does not know.
    safetensors.torch.save_file(tensors, path, metadata | {"version": "1"})
    assert not Concept.load(path).keys_at_word


def test_training_and_preview_may_be_missing_and_other_texts_may_come(tiny: Concept, path: Path) -> None:
    tiny.save(path, torch.float32)
    tensors, metadata = parts_of(path)
    del metadata["training"], metadata["ssmd_cover_images"]
    safetensors.torch.save_file(tensors, path, metadata | {"more": "x", "modelspec.author": "y" * 9999})
    found = Concept.load(path)
    assert found.training == {} and found.preview == b"" and found.details["author"] == "y" * 2000


def with_header(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header, which may lie about its length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\0" * 8,
        b"\xff" * 4096,
        b"plain text, and no safetensors file at all",
        b"PK\x03\x04" + bytes(500),
        with_header(b""),
        with_header(b"null"),
        with_header(b"[]"),
        with_header(b"1"),
        with_header(b"\xff\xfe{}"),
        with_header("{}".encode("utf-16")),
        with_header(b'{"__metadata__": null}'),
        with_header(b'{"__metadata__": []}'),
        with_header(b'{"__metadata__": {"format": 1}}'),
        with_header(b'{"__metadata__": {"format": "perfusion"}, "__metadata__": []}'),
        with_header(b'{"__metadata__": {"a": "\\ud800"}}'),
        with_header(b'{"__metadata__": ' + b"[" * 200_000),
        with_header(b'{"x": 1}'),
        with_header(b'{"x": {"dtype": "F32"}}'),
        with_header(b'{"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}', bytes(1)),
        with_header(b'{"x": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}', bytes(4)),
        with_header(b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', bytes(4)),
        with_header(b'{"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
        with_header(b'{"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', bytes(4)),
        with_header(b'{"x": {"dtype": "F32", "shape": [0, 18446744073709551615], "data_offsets": [0, 0]}}'),
        with_header(b'{"x": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 4]}}', bytes(4)),
        with_header(b'{"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 400]}}', bytes(4)),
        with_header(b"{}", length=3),
        with_header(b"{}", length=1),
        with_header(b"{}", length=2**63),
        with_header(b"{}", length=2**64 - 1),
        with_header(b" " * (2**20 + 1)),
    ],
)
def test_refuses_headers_that_lie(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert "not a complete safetensors file" in sentence(path)


def test_refuses_a_header_whose_length_is_changed(tiny: Concept, path: Path) -> None:
    tiny.save(path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for lie in (0, 1, length - 1, length + 1, length + 8, len(whole) - 8, len(whole), 2**31, 2**32, 2**63 - 1):
        path.write_bytes(struct.pack("<Q", lie) + whole[8:])
        assert "not a complete safetensors file" in sentence(path)


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_is_not_opened(path: Path, tmp_path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    assert "not a complete safetensors file" in sentence(path)
    torch.save({"target_input": Trap(tmp_path / "mark")}, path)
    assert "not a complete safetensors file" in sentence(path)
    assert not (tmp_path / "mark").exists()


def test_refuses_a_file_that_is_too_large_without_reading_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(path, "wb") as file:
        file.truncate(2**40)

    def read(self: Path) -> bytes:
        raise AssertionError("the file was read")

    monkeypatch.setattr(Path, "read_bytes", read)
    assert f"is {2**40} bytes, more than the limit of {MAX_BYTES}" in sentence(path)


def test_refuses_what_is_no_file(path: Path, tmp_path: Path) -> None:
    assert "no such file" in sentence(path)
    path.mkdir()
    assert "no such file" in sentence(path)
    (tmp_path / "loop.safetensors").symlink_to(tmp_path / "loop.safetensors")
    assert "no such file" in sentence(tmp_path / "loop.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "no such file" in sentence(tmp_path / "pipe.safetensors")
    with pytest.raises(PerfusionError, match=r"cannot be read|no such file"):
        Concept.load(tmp_path / ("x" * 300))


def test_refuses_a_file_that_cannot_be_read(tiny: Concept, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(path)

    def read(self: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", read)
    assert sentence(path) == f"{path.name} cannot be read: {os.strerror(errno.EIO)}."


# ---- saving --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", ["open", "fsync", "replace"])
@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    failing: str, there: bool, tiny: Concept, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there:
        tiny.save(path, torch.float32)
    before = {each.name: each.read_bytes() for each in path.parent.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(PerfusionError) as caught:
        replace(tiny, superclass="cat").save(path)
    text = str(caught.value)
    assert text.startswith(f"{path.name} was not saved: {os.strerror(errno.ENOSPC)}") and text.isprintable()
    assert {each.name: each.read_bytes() for each in path.parent.iterdir()} == before
    monkeypatch.undo()
    replace(tiny, superclass="cat").save(path)
    assert Concept.load(path).superclass == "cat"


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(
    tiny: Concept, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.save(path)
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(tiny, superclass="cat").save(path)
    assert [each.name for each in path.parent.iterdir()] == [path.name] and path.read_bytes() == before


def test_a_folder_in_the_way_is_one_sentence(tiny: Concept, path: Path) -> None:
    path.mkdir()
    with pytest.raises(PerfusionError, match="was not saved"):
        tiny.save(path)
    blocked = path.parent / "file"
    blocked.write_text("x")
    with pytest.raises(PerfusionError, match="was not saved"):
        tiny.save(blocked / "teddy.safetensors")
    assert sorted(each.name for each in path.parent.iterdir()) == ["file", path.name]


def test_the_new_file_appears_whole(tiny: Concept, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.save(path, torch.float32)
    moved = os.replace

    def check(scratch: str, target: Path) -> None:
        same(tiny, Concept.load(path))
        assert safe_files.parse(Path(scratch).read_bytes(), path)[1]["superclass"] == "cat"
        assert Path(scratch).parent == path.parent
        moved(scratch, target)

    monkeypatch.setattr(os, "replace", check)
    replace(tiny, superclass="cat").save(path)
    assert Concept.load(path).superclass == "cat" and path.stat().st_mode & 0o777 == 0o644


def test_refuses_to_save_what_half_precision_cannot_hold(tiny: Concept, path: Path) -> None:
    tiny.save(path)
    before = path.read_bytes()
    large = replace(tiny, values={layer: each * 1e6 for layer, each in tiny.values.items()})
    with pytest.raises(PerfusionError, match=r"target_outputs_v contains a number that torch\.float16 cannot"):
        large.save(path)
    assert path.read_bytes() == before
    large.save(path, torch.float32)
    same(large, Concept.load(path))
    with pytest.raises(PerfusionError, match="was not saved"):
        replace(tiny, target_input=tiny.target_input * float("nan")).save(path, torch.float32)


# ---- settings and stacks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["<a>", "<my-teddy>", "<Größe_2>", "<" + "x" * 64 + ">"])
def test_trigger_words(trigger: str, tiny: Concept) -> None:
    assert check_trigger(trigger) == trigger
    assert tiny.with_settings(trigger=trigger, bias=0.4).trigger == trigger


@pytest.mark.parametrize(
    "trigger", ["", "teddy", "<>", "<a b>", "<a>b", "<<a>>", "<a:1>", "<a,b>", "<a>\n", "<{}>", "<" + "x" * 9999 + ">"]
)
def test_what_is_no_trigger_word(trigger: str, tiny: Concept) -> None:
    for refuse in (lambda: check_trigger(trigger), lambda: tiny.with_settings(trigger=trigger)):
        with pytest.raises(PerfusionError, match="A trigger word must be in angle brackets") as caught:
            refuse()
        assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


def test_settings_change_nothing_else(tiny: Concept) -> None:
    made = tiny.with_settings(bias=0.3, temperature=0.2, strength=0.5)
    assert (made.bias, made.temperature, made.strength) == (0.3, 0.2, 0.5)
    same(tiny, made, ("bias", "temperature", "strength"))
    assert (tiny.bias, tiny.temperature, tiny.strength) == (0.6, 0.15, 1.0)


def some(count: int, **changed: object) -> list[Concept]:
    """Concepts with names of their own."""
    return [concept_of(TINY_LAYERS, seed=i, trigger=f"<{string.ascii_lowercase[i]}>", **changed) for i in range(count)]


def test_the_order_of_combining_does_not_matter() -> None:
    concepts = some(4)
    stacks = {
        tuple(each.trigger for each in combine(*((concept,) for concept in order))) for order in itertools.permutations(concepts)
    }
    assert stacks == {("<a>", "<b>", "<c>", "<d>")}
    a, b, c, d = concepts
    assert combine(combine((d,), (b,)), (a, c)) == combine((a,), (), (b, c, d)) == (a, b, c, d)
    assert combine() == combine((), ()) == ()


@pytest.mark.parametrize("other", ["<a>", "<A>"])
def test_two_of_one_trigger_word_are_refused_by_name(other: str) -> None:
    first, second, third = some(3)
    clash = replace(third, trigger=other, superclass="cat")
    for order in itertools.permutations([first, second, clash]):
        with pytest.raises(PerfusionError) as caught:
            combine(*((each,) for each in order))
        text = str(caught.value)
        assert "teddy" in text and "cat" in text and text.isprintable()
        assert "<a>" in text.casefold()
    # Another name helps.
    assert len(combine((first, second), (clash.with_settings(trigger="<c>"),))) == 3


def test_concepts_of_different_families_are_refused_by_name() -> None:
    first, second, third = some(3)
    with pytest.raises(PerfusionError) as caught:
        combine((first, second), (replace(third, family="sdxl"),))
    text = str(caught.value)
    assert all(each in text for each in ("<c>", "sd1", "sdxl")) and text.isprintable()


def test_the_edit_of_locked_and_trained_concepts() -> None:
    locked, trained = concept_of(TINY_LAYERS, seed=1, bias=0.3), concept_of(TINY_LAYERS, seed=2, keys=True, strength=0.5)
    trained = replace(trained, probe=trained.probe * 50)
    edit = edit_of((locked, trained), EXACT)
    assert set(edit.keys) == set(edit.keys_trained) == set(edit.values) == set(TINY_LAYERS)
    for layer in TINY_LAYERS:
        assert edit.keys_trained[layer].tolist() == [False, True]
        assert torch.equal(edit.keys[layer][1], trained.keys[layer])
        assert torch.equal(edit.values[layer], torch.stack([locked.values[layer], trained.values[layer]]))
    assert edit.bias.tolist() == pytest.approx([0.3, 0.6]) and edit.strength.tolist() == [1.0, 0.5]
    assert edit.temperature.tolist() == pytest.approx([0.15, 0.15])
    assert torch.equal(edit.superclass_encodings, torch.stack([locked.superclass_encoding, trained.superclass_encoding]))
    # A factor of a probe does not matter: sim(i*) is 1.
    torch.testing.assert_close((edit.probes * edit.target_inputs).sum(-1), torch.ones(2))
    # The locked concept's keys are W_K of its superclass, whatever stands beside it.
    weight = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    layer = "input_blocks.1.1.attn2"
    by = edit.coefficients(torch.stack([locked.target_input, trained.target_input])[None])
    got = edit.key_correction(layer, by, lambda vectors: vectors @ weight.T)
    outputs = torch.stack([weight @ locked.superclass_encoding, trained.keys[layer]])
    torch.testing.assert_close(got, by.add @ outputs - by.remove @ edit.target_inputs @ weight.T, rtol=1e-5, atol=1e-5)


def test_the_edit_of_locked_concepts_holds_no_keys() -> None:
    edit = edit_of(tuple(some(2)), EXACT)
    assert edit.keys == edit.keys_trained == {}


def test_the_edit_of_a_concept_with_keys_in_some_layers_keeps_its_others_locked() -> None:
    everywhere, partly = concept_of(TINY_LAYERS, seed=1, keys=True), concept_of(TINY_LAYERS, seed=2, keys=True)
    first, *others = TINY_LAYERS
    partly = replace(partly, keys={first: partly.keys[first]}, keys_at_word=True)
    alone, both = edit_of((partly,), EXACT), edit_of((everywhere, partly), EXACT)
    assert set(alone.keys) == {first} and set(both.keys) == set(TINY_LAYERS)
    assert both.keys_trained[first].tolist() == [True, True]
    assert all(both.keys_trained[layer].tolist() == [True, False] for layer in others)
    for layer, width in TINY_LAYERS.items():
        weight = torch.randn(width, 8, generator=torch.Generator().manual_seed(3))
        by = Coefficients(torch.zeros(1, 2, 2), torch.eye(2)[None])
        got = both.key_correction(layer, by, lambda vectors, weight=weight: vectors @ weight.T)[0]
        wanted = partly.keys[layer] if layer == first else weight @ partly.superclass_encoding
        torch.testing.assert_close(got, torch.stack([everywhere.keys[layer], wanted]))


@pytest.mark.parametrize("mode", MODES)
def test_the_edit_is_that_of_the_saved_file(mode: str, path: Path) -> None:
    concept = concept_of(SD1_LAYERS, 768)
    concept.save(path, torch.float32)
    encoding = torch.randn(1, 4, 768, generator=torch.Generator().manual_seed(1))
    encoding[0, 1] = concept.target_input
    by, again = (edit_of((each,), mode).coefficients(encoding) for each in (concept, Concept.load(path)))
    assert torch.equal(by.add, again.add) and torch.equal(by.remove, again.remove) and by.any()


def test_concepts_of_different_shape_are_refused_by_name() -> None:
    first, second = some(2)
    for other in (
        concept_of(TINY_LAYERS, 9, trigger="<b>"),
        concept_of({**TINY_LAYERS, "middle_block.1.attn2": 5}, trigger="<b>"),
        concept_of({**TINY_LAYERS, "more.attn2": 4}, trigger="<b>"),
    ):
        with pytest.raises(PerfusionError, match=r"<b> and <a> were trained on models of different shapes"):
            edit_of(combine((first,), (other,)), EXACT)
    turned = replace(second, values=dict(reversed(second.values.items())))
    assert edit_of((first, turned), EXACT).values["middle_block.1.attn2"].shape == (2, 4)


@pytest.mark.parametrize("mode", MODES)
def test_words_alone_have_no_part_in_the_edit(mode: str) -> None:
    first, second = some(2)
    alone, other = (concept_of({}, seed=i, trigger=f"<alone-{i}>") for i in (7, 8))
    stack = combine((second, alone), (other, first))
    assert [each.trigger for each in stack] == ["<a>", "<alone-7>", "<alone-8>", "<b>"] and with_outputs(stack) == (first, second)
    assert edit_of((alone, other), mode) is None and edit_of((), mode) is None
    mixed, edited = edit_of(stack, mode), edit_of((first, second), mode)
    encoding = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mixed.coefficients(encoding).add, edited.coefficients(encoding).add)
    for layer in TINY_LAYERS:
        assert torch.equal(mixed.values[layer], edited.values[layer])
    for clash in (replace(alone, trigger="<a>"), replace(alone, family="sdxl")):
        with pytest.raises(PerfusionError):
            combine((first, clash))


@pytest.mark.parametrize("keys", ["locked", "at the word", "at the word in this layer", "at the word in another layer"])
def test_the_example_in_the_file_formats_page_makes_the_edit_that_it_describes(keys: str, tmp_path: Path) -> None:
    """Its lines, run on the demo's concept, against the core."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "file_format.md").read_text(encoding="utf-8"), re.S)
    given: dict = {}
    exec(code, given)
    path = ROOT / "demo" / "concepts" / "demo-monster.safetensors"
    concept = Concept.load(path)
    layer = list(concept.layers)[2]
    if keys != "locked":
        path = tmp_path / "at-word.safetensors"
        chosen = {"at the word in this layer": list(concept.layers)[1:3], "at the word in another layer": list(concept.layers)[3:]}
        trained = {each: -concept.values[each] for each in chosen.get(keys, concept.layers)}
        replace(concept, keys=trained, keys_at_word=True, key_lock=0.3).save(path, torch.float32)
    concept, (tensors, metadata) = Concept.load(path), given["load"](path)
    first, random = 5, torch.Generator().manual_seed(1)
    weights = {which: torch.randn(concept.layers[layer], 768, generator=random) / 28 for which in ("k", "v")}
    encodings = concept.target_input + 0.7 * concept.target_input.std() * torch.randn(12, 768, generator=random)
    encodings[:first] = torch.randn(first, 768, generator=random)
    encodings[-2:] *= 0.3
    edit = edit_of((concept,), EXACT)
    projected = {layer: tuple(edit.vectors.float() @ weight.T for weight in weights.values())}
    named = (torch.arange(12) >= first).float()[None, :, None]
    by = edit.coefficients(encodings[None], named)
    for which, correction in zip(weights, corrections(edit, by, layer, projected), strict=True):
        plain = encodings @ weights[which].T
        told = given["edited"](encodings, first, weights[which], which, layer, tensors, metadata)
        assert (told - plain).abs().max() > 0.01
        torch.testing.assert_close(told, plain + correction[0], rtol=1e-4, atol=1e-4)
