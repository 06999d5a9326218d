"""SDXL: two text encoders, and a pooled output beside the encoding. In the real host, on its layout with few channels."""

from __future__ import annotations

import pytest

from scripts.bootstrap import Setup
from tests.measuring import measure

ROUNDING = 5e-6


@pytest.fixture(scope="module")
def measured(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return measure(setup.python, "inside_sdxl", setup.comfyui, tmp_path_factory.mktemp("sdxl"))


def test_the_one_who_is_taught_reads_and_predicts_as_the_host(measured: dict) -> None:
    """The pooled output of the prompt with the learned word, and the picture's size, among what it reads."""
    assert measured["encoding"] < ROUNDING and measured["pooled"] < ROUNDING and measured["denoised"] < ROUNDING


def test_gradients_reach_the_words_of_both_encoders(measured: dict) -> None:
    """Told over measured by finite differences in float32: through both encodings and the pooled output."""
    assert all(0.95 < each < 1.05 for each in (*measured["derivatives by words"], *measured["derivatives by outputs"]))


def test_it_is_taught_saved_and_used(measured: dict) -> None:
    before, after = measured["loss"]
    assert after < before and measured["words"] == {"clip_g": [1, 1280], "clip_l": [1, 768]}
    assert measured["a prompt without the word"] and measured["a prompt with it"] > 0.01
