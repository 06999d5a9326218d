"""The command, unpacked from its archive into an empty folder, rehearsed on the CPU."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks.card import archive
from benchmarks.card.__main__ import faults
from scripts.setup import comfyui
from scripts.setup.bootstrap import Setup
from scripts.setup.environment import clean_environment


def test_the_unpacked_archive_rehearses(setup: Setup, tmp_path: Path) -> None:
    if comfyui.version_of(setup.comfyui) in (hosts := set(comfyui.CARRIERS) - {comfyui.VERSION}):
        pytest.skip(f"benchmarks.card needs ComfyUI {comfyui.VERSION}; the trainers in {' and '.join(sorted(hosts))} are different")
    assert archive.write(tmp_path / "card.tar.xz", wheels=False) < archive.MOST_MB / 2
    with tarfile.open(tmp_path / "card.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    folder = tmp_path / archive.UNPACKED
    command = [setup.python, "-m", "benchmarks.card", "--rehearse", "--comfyui", f"../{archive.HOST_FOLDER}", "--out", tmp_path]
    ran = subprocess.run(command, cwd=folder / archive.PACK, env=clean_environment(), capture_output=True, text=True)
    page = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert ran.returncode == 0 and "Everything is as expected." in page, ran.stdout + ran.stderr
    rows = ("same: torch.float32", "repeated: the same to the bit | True", "base the same to the bit | True", "ratio", "100000")
    assert [row in page for row in rows] == [True, True, True, True, False]


def test_what_is_not_as_it_should_be_is_said_in_words() -> None:
    bad = {
        "the card": {
            "same": {"torch.bfloat16": {"losses apart": 0.5, "learned apart": float("nan")}},
            "taught": {"base the same to the bit": False},
            "failed": {"presets": "RuntimeError: no room"},
        }
    }
    assert faults(bad) == [
        "With the card, presets failed: RuntimeError: no room",
        "With the card in torch.bfloat16, 'losses apart' (compared with the processor) is 0.5; the limit is 0.05.",
        "With the card in torch.bfloat16, 'learned apart' (compared with the processor) is nan; the limit is 0.3.",
        "With the card, the base generates a different picture after a training than before it.",
    ]
