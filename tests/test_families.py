"""The families beside SD1: SD2 with its v-prediction, SDXL with two text encoders and a pooled output beside the encoding, and
transformers: Wan, LTX-Video, PixArt, Cosmos-Predict2 and Anima, with biases, adapted encodings, ids beside them, encoders that look
both ways, and flows.

In the real host, on their layouts with few layers, and on all of KOALA-700M's, a smaller SDXL; their weights are seeded. The
transformers' files are read by the stock loader; their encoders are made by the host's own classes (see `tiny`).
"""

from __future__ import annotations

import pytest

from perfusion_core.covariance import MAX_BYTES
from scripts.setup.bootstrap import Setup
from tests.measuring import measure

ROUNDING = 5e-6
HALF = 0.02
"""Rounding where captions are encoded in bfloat16, as on processors that have it."""
BOTH = {"clip_g": [1, 1280], "clip_l": [1, 768]}
WORDS = {
    "sd2": {"clip_h": [1, 1024]}, "sdxl": BOTH, "koala": BOTH, "wan": {"clip_umt5xxl": [6, 4096]}, "ltxv": {"clip_t5xxl": [4, 64]},
    "pixart": {"clip_t5xxl": [6, 4096]}, "cosmos": {"clip_t5xxl": [6, 1024]},
    "anima": {"qwen3_06b": [4, 1024]},
}  # fmt: skip
UNETS = ("sd2", "sdxl", "koala")


@pytest.fixture(scope="module", params=WORDS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def measured(setup: Setup, family: str, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return measure(setup.python, "inside_family", setup.comfyui, family, tmp_path_factory.mktemp(family))


def test_the_one_who_is_taught_reads_and_predicts_as_the_host(measured: dict, family: str) -> None:
    """With SDXL the pooled output of the prompt with the learned word, and the picture's size, are among what it reads."""
    assert max(measured[name] for name in ("encoding", "encodings together", "denoised")) < ROUNDING
    assert len(measured["pooled"]) == (family in ("sdxl", "koala")) and all(each < ROUNDING for each in measured["pooled"])
    assert measured["v-prediction"] == (family == "sd2")


def test_gradients_reach_the_words_of_all_encoders(measured: dict, family: str) -> None:
    """Told over measured by finite differences, in float64 throughout: through encodings and the pooled output.

    KOALA's layers are SDXL's.
    """
    if family == "koala":
        assert "derivatives by words" not in measured
        return
    assert len(measured["derivatives by words"]) == len(WORDS[family]) and len(measured["derivatives by outputs"]) == 1
    assert all(abs(each - 1) < 1e-5 for each in (*measured["derivatives by words"], *measured["derivatives by outputs"]))


def test_blocks_that_are_computed_twice_give_the_same_gradients(measured: dict, family: str) -> None:
    """As where memory is short; some of the host's blocks change their own input."""
    assert family == "koala" or measured["computed twice"] < ROUNDING


def test_the_memory_of_all_blocks_is_counted(measured: dict, family: str) -> None:
    """A backward pass that computes them twice is told to need less."""
    if family == "koala":
        return
    counted, blocks = measured["blocks counted"]
    assert counted == blocks > 0 and (blocks == 1 or measured["bytes twice"] < measured["bytes once"])


def test_keys_and_values_are_those_of_the_formula(measured: dict) -> None:
    assert measured["layers against float64"] < ROUNDING


def test_ids_beside_an_encoding_are_the_superclasses(measured: dict, family: str) -> None:
    """So that under global key-locking keys are those of the prompt with the superclass, as in test_attention_nodes.py."""
    if family != "anima":
        assert "ids of the superclass" not in measured
        return
    assert measured["ids of the superclass"] and measured["locked keys"] < ROUNDING
    assert measured["adapted within the model"] < ROUNDING


def test_variants_of_wan_that_read_a_picture_take_its_concepts_and_are_taught(measured: dict, family: str) -> None:
    """2.1's by further keys and values beside the prompt's, which are not edited; 2.2's by further channels.

    Each reads its prompt's keys as the superclass's under global key-locking.
    """
    assert len(measured.get("variants", {})) == (3 if family == "wan" else 0)
    for untouched, changed, gradient, locked in measured.get("variants", {}).values():
        assert untouched and changed > 0.001 and gradient > 0 and locked < ROUNDING


def test_the_small_wan_of_the_benchmarks_is_trained_on_what_the_host_reads(measured: dict, family: str) -> None:
    """Without padding, which is as good as one more token; see benchmarks/transformer."""
    assert ("read without padding" in measured) == (family == "wan") and measured.get("read without padding", 0) < ROUNDING


def test_two_concepts_are_combined(measured: dict) -> None:
    """One behind the other or together is the same to the bit, and both act."""
    assert measured["combined"] and min(measured["without one of them"]) > 0.01


def test_what_is_exported_is_the_static_edit(measured: dict, family: str) -> None:
    """Weights that hold the edit, against the edit added to what they give: they differ by rounding alone."""
    if family == "pixart":
        said = "ComfyUI has no LoRA format with separate keys and values for pixart_sigma models; choose embedding."
        assert measured["said to an export"] == said
        return
    assert measured["exported"] < 5e-5 and measured["without the LoRA"] > 0.01


def test_it_is_taught_saved_and_used(measured: dict, family: str) -> None:
    before, after = measured["loss"]
    assert after < before and measured["words"] == WORDS[family]
    assert measured["a prompt without the word"] and measured["a prompt with it"] > 0.01


def test_a_concept_of_another_family_is_refused(measured: dict, family: str) -> None:
    name = {"koala": "sdxl", "pixart": "pixart_sigma", "cosmos": "cosmos_predict2"}.get(family, family)
    said = f"<it> was trained on an sd3000 model, but this one is {name}; use an sd3000 checkpoint."
    assert measured["said to another family"] == said


def test_a_prompt_for_either_text_encoder_names_the_concept(measured: dict, family: str) -> None:
    if family == "sdxl":
        assert measured["two prompts"] == [True] * 5 + [False]
    else:
        assert "two prompts" not in measured


def test_freeu_acts_beside_the_concept(measured: dict, family: str) -> None:
    """It has nothing to scale in blocks that are all as narrow as the first, as this SD2's and the demo base's are."""
    if family not in ("sd2", "sdxl"):
        assert "FreeU, itself" not in measured
        return
    assert measured["FreeU, a prompt without the word"] and measured["FreeU, the concept"] > 0.01
    assert (measured["FreeU, itself"] > 0.01) == (family != "sd2")


@pytest.fixture(scope="module")
def whole(setup: Setup) -> dict:
    return measure(setup.python, "inside_layouts", setup.comfyui)


def test_those_made_of_sdxl_are_its_family_and_take_their_own_concepts_alone(whole: dict) -> None:
    """Whole layouts without weights: SDXL, SSD-1B, Vega and both KOALA. Each transformer block has one layer that is edited."""
    layouts = whole["unets"]
    assert {name: each["layers"] for name, each in layouts.items()} == {
        "SDXL": 70, "SSD1B": 34, "Segmind_Vega": 15, "KOALA_700M": 21, "KOALA_1B": 30
    }  # fmt: skip
    for name, each in layouts.items():
        assert each["family"] == "sdxl" and each["layers"] == each["blocks"]
        assert each["said"].pop(name) == ""
        for other, told in each["said"].items():
            assert "trained on an sdxl model of a different shape" in told
            assert f"{layouts[other]['layers']} cross" in told and f"has {each['layers']} cross" in told


def test_transformers_of_real_sizes_have_all_their_layers_and_take_their_own_concepts_alone(whole: dict) -> None:
    """Without weights. A concept of the largest one has half a megabyte at most, and its covariance fits into a file."""
    layouts = whole["transformers"]
    assert {name: (each["family"], each["layers"]) for name, each in layouts.items()} == {
        "Wan 2.1 1.3B": ("wan", 30), "Wan 14B": ("wan", 40), "LTX-Video 2B": ("ltxv", 28),
        "PixArt Sigma": ("pixart_sigma", 28), "Cosmos-Predict2 2B": ("cosmos_predict2", 28), "Anima": ("anima", 28),
    }  # fmt: skip
    for name, each in layouts.items():
        assert 50_000 < each["bytes"] < 500_000 and 4 * each["width"] ** 2 + 1000 < MAX_BYTES
        assert each["said"].pop(name) == ""
        for other, told in each["said"].items():
            theirs = layouts[other]["family"]
            wanted = "of a different shape" if theirs == each["family"] else f"{theirs} model, but this one is {each['family']}"
            assert wanted in told


def test_fine_layers_are_those_of_the_highest_resolution_and_transformers_have_one_resolution(whole: dict) -> None:
    """Whole layouts: SD1.5 has cross-attention at full resolution, SDXL and its kin from half of it on."""
    outer, half = ([f"{way}_blocks.{i}" for way, i in each] for each in (
        [("input", 1), ("input", 2), ("output", 10), ("output", 11), ("output", 9)],
        [("input", 4), ("input", 5), ("output", 3), ("output", 4), ("output", 5)],
    ))  # fmt: skip
    koala = ["input_blocks.3"] * 2 + ["output_blocks.2"] * 2 + ["output_blocks.3"] * 2
    assert whole["fine"] == {
        "SD15": outer,
        "SDXL": sorted(2 * half),
        "SSD1B": sorted([*half[:3], *half]),
        "Segmind_Vega": half,
        "KOALA_700M": koala,
        "KOALA_1B": koala,
    }
    assert len(whole["not fine"]) == 6
    assert all(said.startswith("lock cannot be fine for this model") for said in whole["not fine"])


def test_a_model_that_needs_a_control_video_is_not_taught(whole: dict) -> None:
    assert whole["VACE"].startswith("This model (VACE) needs a control video, which training cannot provide; ")


def test_models_with_joint_attention_are_refused_with_the_reason(whole: dict) -> None:
    assert len(whole["joint"]) == 5
    for name, told in whole["joint"].items():
        known = "use a Stable Diffusion 1, 2 or XL, Wan, LTX-Video, PixArt, Cosmos-Predict2 or Anima model."
        shared = "text and image are processed together by joint attention, so there is no cross-attention for Perfusion to edit; "
        assert told == f"In this model ({name}), {shared}{known}"


def test_gates_are_of_what_the_layers_read(measured: dict, family: str) -> None:
    """As reported: with a prompt's notes, and without, as far as numbers tell; padding stays shut where it is encoded alike."""
    if family in UNETS:
        assert "gates" not in measured
        return
    assert measured["gates"] < ROUNDING and measured["words of the prompt"][1] == "<it>"
    assert measured["layers that change"] == {"pixart": 1, "cosmos": 10}.get(family, 2) and measured["named without notes"]
    assert family == "ltxv" or measured["padding of a prompt without notes"] == 0


def test_captions_are_measured_where_the_layers_read_them(measured: dict, family: str) -> None:
    if family in UNETS:
        return
    assert measured["covariance"] < HALF and measured["covariance of"] == [True, family == "cosmos"]
    assert "connect the model to Measure Text Encoder as well" in measured["said to no model"]


def test_what_does_not_reach_a_transformers_attention_is_refused(measured: dict, family: str) -> None:
    if family in UNETS:
        return
    for what in ("said to a region", "said to a watch"):
        assert measured[what].startswith(
            "Regions and attention maps work only with Stable Diffusion 1, 2 and XL, but this model is "
        )
