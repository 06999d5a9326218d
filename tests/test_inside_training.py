"""The training side inside the real host, as inside_training.py measures it."""

from __future__ import annotations

from pathlib import Path

import pytest

from perfusion_core.judgement import PictureJudgement
from scripts.setup.bootstrap import CHECKPOINT, Setup
from tests.measuring import measure


@pytest.fixture(scope="module")
def measured(setup: Setup, base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    concept = base_dir / "models" / "perfusion" / "demo-monster.safetensors"
    checkpoint = base_dir / "models" / "checkpoints" / CHECKPOINT
    return measure(setup.python, "inside_training", setup.comfyui, checkpoint, concept, tmp_path_factory.mktemp("files"))


def test_an_identity_covers_what_is_computed_with_whatever_is_loaded(measured: dict) -> None:
    """A merged or deeper CLIP, a patched or changed UNet and another objective differ, also while one of them is loaded."""
    assert measured["identities"] == {"different": 7, "same when loaded": [True, True], "restored": True}


def test_training_differentiates_whatever_attention_the_server_uses(measured: dict) -> None:
    """Sampling still uses that attention, and the host is not left in training."""
    found = measured["attention"]
    assert found["apart"] < 1e-4 and found["in sampling"] and not any(found["in sampling"]) and not found["left"]


def test_what_cannot_be_trained_on_is_refused_in_one_sentence_before_any_work(measured: dict) -> None:
    wanted = {
        "no model": "No model",
        "no text encoder": "load one with Load CLIP",
        "no VAE": "load one with Load VAE",
        "an empty VAE": "load one with Load VAE",
        "a GGUF model": "is a GGMLTensor of torch.float32",
        "a model of integers": "is a Tensor of torch.uint8",
        "a VAE that gives NaN": "--fp32-vae",
        "a picture of NaN": "Picture 1 of 1 contains NaN or infinity",
    }
    assert measured["refused"].keys() == wanted.keys()
    assert all(said in measured["refused"][name] for name, said in wanted.items())


def test_a_picture_of_one_channel_is_grey(measured: dict) -> None:
    assert measured["grey"]


@pytest.mark.parametrize(("kind", "channels"), [("inpainting", 9), ("InstructPix2Pix", 8)])
def test_bases_that_read_further_channels_are_taught_with_blank_ones(measured: dict, kind: str, channels: int) -> None:
    """As the host draws with them where no picture is given; and they take a concept that was taught to the plain base."""
    found = measured["channels"][kind]
    assert {each["reads"] for each in found.values()} == {channels}
    same, other = found["as it is"], found["other"]
    assert same["gradients"] < 1e-4 and same["drawn"] < 1e-3 and same["found"] < 1e-3
    # InstructPix2Pix reads a picture of zeros where there is none, so that its further weights do not matter.
    assert all((other[each] > 1e-2) == (kind == "inpainting") for each in ("gradients", "drawn"))
    assert all(each["denoised"] < 1e-5 and each["the concept"] > 0.01 for each in found.values())


def test_a_folder_that_cannot_be_written_is_passed_over(measured: dict) -> None:
    assert measured["next folder"]


def test_without_a_folder_to_write_to_the_best_concept_is_kept_under_the_trigger_of_now(measured: dict) -> None:
    """Two concepts, a checkpoint and the concept so far are not saved, also when the user stops the training."""
    found = measured["unwritable"]
    assert measured["anew"] and found["kept"] == 0.1 and found["trigger"] == "<new>"
    assert all("was not saved: " in each for each in found["warnings"])
    assert [each.rsplit("Training ", 1)[1] for each in found["warnings"]] == [
        *["continues without a file of the best concept so far."] * 2,
        *["stopped."] * 2,
    ]


def test_pictures_keep_their_shape_in_buckets_of_about_the_same_area(measured: dict) -> None:
    found = measured["shapes"]
    assert found["512"] == [[512, 512], [640, 448], [448, 640], [384, 704], [320, 896]]
    assert found["1024"] == [[1024, 1024], [1280, 832], [832, 1280], [768, 1344], [576, 1792]]
    assert found["96"] == [[96, 96], [120, 80], [80, 120], [72, 128], [56, 168]]
    assert found["as it is"] == [[1, 48, 88, 3], [1, 48, 88], 1.0]


def test_a_mask_of_a_cut_out_looks_inverted(measured: dict) -> None:
    assert measured["inverted"] == [True, False, False, False, False]


def test_the_best_step_is_chosen_by_pictures(measured: dict) -> None:
    """Of steps 5 and 10, with what was seen of it in its training metadata."""
    judged, kept = measured["by pictures"]["judged"], measured["by pictures"]["kept"]
    assert len(judged) == 2 and judged[0] != judged[1] and all(part <= 1 for each in judged for part in each)
    first, second = (PictureJudgement(*each) for each in judged)
    best = judged[int(second.beats(first))]
    assert kept["steps"] == 5 * (1 + judged.index(best))
    assert [kept["likeness"], kept["prompted"]] == pytest.approx(best, abs=1e-4) and "followed" not in kept
