"""The pack on a device that is not the processor, where weights move and are halves: measured by inside_device.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.setup.bootstrap import CACHE, CHECKPOINT, Setup
from tests import accelerator
from tests.measuring import measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the device is written for torch as it is built on Linux")
HALF = 0.03
"""What half precision may change of a picture's latents, as a share of the largest."""


@pytest.fixture(scope="module")
def measured(setup: Setup, base_dir: Path) -> dict:
    concept = base_dir / "models" / "perfusion" / "demo-monster.safetensors"
    checkpoint = base_dir / "models" / "checkpoints" / CHECKPOINT
    library = accelerator.build(setup.python, CACHE / "accelerator")
    return measure(setup.python, "inside_device", setup.comfyui, checkpoint, concept, library)


def test_the_host_computes_there_in_half_precision(measured: dict) -> None:
    assert (measured["device"], measured["weights"]) == (accelerator.NAME, "torch.float16")


def test_concepts_are_drawn_and_plain_prompts_are_untouched(measured: dict) -> None:
    assert measured["plain prompt"] == 0 and measured["modes differ"] > 0.1


def test_regions_and_locked_prompts_work(measured: dict) -> None:
    assert measured["region everywhere"] < HALF < measured["region left"] and measured["locked"]


def test_attention_is_recorded_and_a_layout_kept(measured: dict) -> None:
    assert measured["map"] > 0 and measured["a layout of its own"] < HALF and measured["gates"]


def test_an_object_is_found(measured: dict) -> None:
    assert measured["mask"] == [0, 1, "cpu"]


def test_a_concept_is_taught_in_either_precision(measured: dict) -> None:
    half, whole = (measured["losses"][name] for name in ("half", "whole"))
    assert abs(half / whole - 1) < 0.02 and measured["projected"]


def test_other_models_make_room_for_a_training(measured: dict) -> None:
    """The autoencoder is unloaded when memory runs out, and then both pictures are computed at once after all."""
    before, after = measured["loaded"]
    assert "TAESD" in before and after == [name for name in before if name != "TAESD"]
    assert measured["pictures at once"] == [2, 2] and not measured["others again"]


@pytest.fixture(scope="module")
def trained(setup: Setup, base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    checkpoint = base_dir / "models" / "checkpoints" / CHECKPOINT
    library = accelerator.build(setup.python, CACHE / "accelerator")
    return measure(setup.python, "inside_device_training", setup.comfyui, checkpoint, library, tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("layout", ["SD1.5", "SDXL"])
@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-4), ("float16", 0.1)])
def test_gradients_are_those_of_the_processor(trained: dict, layout: str, precision: str, apart: float) -> None:
    """In half precision but for what it rounds."""
    assert trained[layout][precision] < apart


def test_an_encoder_on_the_processor_teaches_a_unet_elsewhere(trained: dict) -> None:
    """In bf16, on both."""
    assert trained["places"] == [accelerator.NAME, accelerator.NAME, "cpu", "cpu"]
    assert trained["the encoder on the processor"] < 0.25


def test_a_lora_on_the_encoder_alone_takes_part(trained: dict) -> None:
    assert trained["a LoRA on the encoder"] < 0.02 < 0.5 < trained["without that LoRA"]


def test_the_base_stays_one_that_other_nodes_can_use(measured: dict) -> None:
    assert measured["whole"]


def test_what_the_host_moves_in_parts_is_taught_as_a_whole(measured: dict) -> None:
    assert measured["in parts"] and measured["whole for teaching"] and measured["encodings"] == [1, 77, 768]


def test_the_copies_that_were_taught_leave_the_device(measured: dict) -> None:
    assert measured["copies on the device"] == [[True, True], [False, False]] and not measured["copies kept"]
    before, after = measured["loaded around projecting"]
    assert before == after


def test_a_model_that_cannot_be_read_again_is_refused(measured: dict) -> None:
    assert measured["cannot be read again"].startswith("This model must be reloaded in full, but the node that loaded it")
