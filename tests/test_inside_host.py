"""What no graph can show, measured inside the real host by inside_host.py: keys, recorded maps, regions, what a run keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.setup.bootstrap import CHECKPOINT, Setup
from tests.measuring import measure

ROUNDING = 5e-6


@pytest.fixture(scope="module")
def measured(setup: Setup, base_dir: Path) -> dict:
    concept = base_dir / "models" / "perfusion" / "demo-monster.safetensors"
    checkpoint = base_dir / "models" / "checkpoints" / CHECKPOINT
    return measure(setup.python, "inside_host", setup.comfyui, checkpoint, concept)


@pytest.mark.parametrize("name", ["same", "weighted", "shorter", "longer"])
def test_globally_locked_keys_are_those_of_the_superclass_prompt(measured: dict, name: str) -> None:
    assert measured[f"locked keys, {name}"] < ROUNDING


def test_a_locked_prompt_and_a_plain_one_share_a_batch(measured: dict) -> None:
    assert measured["both in one batch"]


def test_a_long_prompt_that_cannot_be_aligned_is_refused(measured: dict) -> None:
    assert "<two-tokens>" in measured["a prompt that breaks at another word"]
    assert "shorten it" in measured["a prompt that breaks at another word"]


def test_recorded_maps_are_the_mean_of_the_layers_own(measured: dict) -> None:
    """In a batch whose rows have prompts of different lengths."""
    assert measured["recorded maps"] < ROUNDING and measured["recorded shape"] == [2, 8, 8] and measured["calls counted"]
    assert measured["words"] == ["<start>", "a", "photo", "of", "a", "<demo-monster>", "on", "the", "grass", "<end>"]
    assert 0.5 < measured["gate"] <= 1


def test_in_a_region_attention_is_the_concepts_and_outside_the_bases_without_its_word(measured: dict) -> None:
    # A softmax of large logits is what rounds here: as far from float64 as torch's own, given the same words.
    assert measured["regions"] < 2 * measured["attention in float32"] < 1e-4 and measured["layers with regions"] == 7
    assert sorted(measured["barred words"]) == [0, 1]


def test_regions_read_the_prompt_in_which_their_concept_alone_is_named(measured: dict) -> None:
    assert measured["regions that read"] and measured["what regions read"] < ROUNDING
    assert measured["were it one prompt"] > 100 * ROUNDING
    assert measured["with hooks"]


def test_a_region_of_everywhere_and_a_prompt_without_the_word_change_nothing(measured: dict) -> None:
    assert measured["a region of everywhere"] == 0 and measured["a prompt without the word"] == 0


def test_captions_are_encoded_alike_without_their_padding(measured: dict) -> None:
    assert measured["shortened captions"] < ROUNDING and measured["their tokens"] == measured["wanted tokens"]


def test_a_training_that_runs_out_of_memory_goes_on_with_fewer_pictures_at_once(measured: dict) -> None:
    assert measured["half at once"] and measured["pictures tried"] == [4, 2, 2, 2, 2]
    assert "choose a smaller size" in measured["no room"]


def test_a_text_encoder_is_measured_where_nothing_can_be_written(measured: dict) -> None:
    assert measured["measured without a file"] == [768, 768]


def test_products_in_fp8_are_not_trained_through(measured: dict) -> None:
    """The host would fall back, with a line in its log for each of them."""
    assert measured["fp8 in training"] is None and measured["fp8 afterwards"]


def test_the_inspector_shows_the_words_of_every_section(measured: dict) -> None:
    after = "after the words"
    wanted = [["a", 0.0], ["b", 0.1], [after, 0.3], ["a", 0.0], ["<it>", 1.0], [after, 0.4]]
    assert measured["rows of a long prompt"] == wanted


def test_without_memory_to_judge_any_concept_the_last_is_kept(measured: dict) -> None:
    assert measured["kept without a judgement"] == [1, False]


def test_blocks_that_are_computed_twice_give_the_same_gradients(measured: dict) -> None:
    assert measured["blocks twice"] < ROUNDING and measured["no gradient is zero"]


def test_memory_is_foreseen(measured: dict) -> None:
    """By a pass that keeps nothing, against one that keeps all."""
    assert 0.95 < measured["memory counted"] < 1.05 and 3.9 < measured["memory of four"] / measured["memory counted"] <= 4
    assert measured["memory of blocks twice"] < 0.5 and 0.95 < measured["memory of words"] < 1.05


def test_a_base_can_be_taught_whose_weights_move_to_another_device_for_it(measured: dict) -> None:
    """And other nodes can use it afterwards: no tensor of it is one of inference mode by half."""
    assert measured["taught after a move"] and measured["whole after a move"]


def test_a_base_of_half_precision_can_be_taught_in_float32(measured: dict) -> None:
    """Where the layers compute in the weights' own precision, as on a graphics card; with blocks computed twice, too. This base's
    weights fit into halves.
    """
    assert measured["half weights in float32"] == [0, 0] and measured["computes as before"]


def test_as_much_is_computed_at_once_as_fits(measured: dict) -> None:
    """Beside 100 bytes a picture keeps 80, or 65 with blocks computed twice; a tenth of room, and on the way back twice 50."""
    assert measured["portions"] == [
        [8, False, 1614], [4, False, 862], [2, False, 486], [1, True, 282], [1, True, 282], [1, False, 298],
    ]  # fmt: skip


def test_pictures_are_shown_small_with_the_object_in_one_half(measured: dict) -> None:
    """At the left, then at the right; what counts is what shows it, and bare parts go on in the edge's colour."""
    large, small = measured["made small"]["large"], measured["made small"]["small"]
    assert large["ends"] == [[[0, 31], [16, 47]], [[32, 63], [16, 47]]]
    assert small["ends"] == [[[8, 23], [24, 39]], [[40, 55], [24, 39]]]
    assert large["rest"] == small["rest"] == 1 and small["picture and mask together"]
    assert measured["made small"]["no mask"] == [1, 32 * 32]


def test_a_mask_with_nothing_in_the_square_is_refused(measured: dict) -> None:
    """As of two things at both ends of a wide picture."""
    assert measured["made small"]["nothing in the square"].startswith(
        "Mask 1 of 1 is empty in the part of its picture that training uses"
    )


@pytest.mark.parametrize("kind", ["with notes", "without notes"])
def test_of_two_encodings_that_a_patch_brings_the_named_one_alone_is_edited(measured: dict, kind: str) -> None:
    edited, other_is_the_bases = measured["coupled"][kind]
    assert edited < ROUNDING and other_is_the_bases


def test_a_tile_is_told_from_what_was_cut_with_it(measured: dict) -> None:
    assert measured["windows"] < 0.01 and measured["no window"]
    assert measured["regions in windows"] == [0, 1, 0.5]


def test_words_of_many_vectors_are_known_at_the_end_of_a_section(measured: dict) -> None:
    for count, vectors, marked, named in measured["words of many vectors"]:
        assert vectors == marked == count and named


def test_what_torch_makes_of_an_encoding_still_says_what_it_names(measured: dict) -> None:
    assert measured["functions of torch"] > 100
    assert not measured["that say nothing"] and not measured["that do not act"]


def test_keys_and_values_are_made_once_in_a_run_and_nothing_else_comes_of_it(measured: dict) -> None:
    """Unless weights change between steps: then they are made anew at each."""
    assert all(measured["kept"].values()) and measured["what hooks change"] > 0.01
    assert measured["times made"] == {
        "a concept": 1, "a region": 1, "locked keys": 1, "a long prompt and a plain one": 1, "weights that change": 5,
    }  # fmt: skip
