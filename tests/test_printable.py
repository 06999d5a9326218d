"""Text from outside on its way to a terminal: nothing of it can steer one, whatever file, table or graph it comes from."""

from __future__ import annotations

import ast
import copy
import json
import logging
import pickle
import struct
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perfusion_core import PerfusionError, safe_files
from perfusion_core.concept import Concept
from perfusion_core.printable import printable
from perfusion_core.stack import combine
from perfusion_fleet import command, index, table
from scripts.setup.bootstrap import ROOT
from tests.test_concept_file import concept_of

STEERING = "a\x1b[2Jb\x9b31mc\x07d\u202ee\u2028f\u2066g\rh\ni\x7fj\x85k\u200bl\udc9bm\ufeffn"
"""Escapes of both kinds, a bell, directions, ends of lines, what cannot be seen, and half a pair."""


def safe(text: str) -> bool:
    """Whether a terminal only prints a text, in lines."""
    return text.replace("\n", "").isprintable()


def test_what_steers_a_terminal_becomes_an_escape_and_the_rest_stays() -> None:
    assert printable("Grüße, 猫 – “{x}” \\x1b 😀") == "Grüße, 猫 – “{x}” \\x1b 😀"
    shown = printable(STEERING)
    assert shown.isprintable() and shown.startswith(r"a\x1b[2Jb\x9b31mc\x07d\u202ee\u2028f") and printable(shown) == shown
    assert all(printable(chr(code)).isprintable() for code in range(0x11000))


def test_an_error_is_printable_whatever_it_tells_of() -> None:
    error = PerfusionError(f"It is {STEERING}.")
    assert str(error).isprintable() and str(error).startswith(r"It is a\x1b[2J")
    lines = PerfusionError("All of these:", f"one {STEERING}", "two")
    assert len(str(lines).split("\n")) == 3 and safe(str(lines)) and str(lines).endswith("\n  two")
    for again in (copy.copy(lines), pickle.loads(pickle.dumps(lines))):
        assert str(again) == str(lines)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> logging.Logger:
    caplog.set_level(logging.INFO, "perfusion")
    return logging.getLogger("perfusion")


def test_the_log_is_printable_and_its_own_lines_stay(log: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    log.info("%d files:\n%s and %s, %.1f", 2, STEERING, Path(STEERING.replace("\0", "")), 0.25)
    log.warning(f"{STEERING}")
    log.info("%(name)s: %(count)03d", {"name": STEERING, "count": 7})
    first, second, third = (record.getMessage() for record in caplog.records)
    assert first.startswith("2 files:\na\\x1b[2J") and first.endswith(", 0.2") and first.count("\n") == 1
    assert safe(first) and safe(second) and third.isprintable() and third.endswith(": 007")


def test_whatever_the_pack_logs_goes_through_that_logger_and_nothing_is_printed() -> None:
    """So that none can be forgotten."""
    written = set()
    for path in [*ROOT.glob("nodes/**/*.py"), *ROOT.glob("perfusion_*/**/*.py"), ROOT / "__init__.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).removesuffix(".addFilter")
                if called == "print" or called.startswith(("logging.", "warnings.", "sys.std", "traceback.")):
                    written.add(f"{path.name}: {called}" if "getLogger" not in called + ast.unparse(node) else ast.unparse(node))
    assert written == {
        "logging.getLogger('perfusion')",
        "logging.getLogger('perfusion').addFilter(printable_record)",
        "inside.py: logging.disable",
        "command.py: print",  # that of say
    }


def test_what_a_stranger_wrote_into_a_concept_reaches_no_terminal(tmp_path: Path) -> None:
    concept = replace(concept_of({"layer": 4}), superclass=STEERING.replace("\udc9b", ""))
    concept.save(tmp_path / "file.safetensors")
    loaded = Concept.load(tmp_path / "file.safetensors")
    with pytest.raises(PerfusionError) as caught:
        combine((loaded, concept_of({"layer": 4}, seed=1)))
    assert str(caught.value).isprintable() and "\\x1b[2J" in str(caught.value)


def test_no_more_does_what_is_told_of_an_errors_cause() -> None:
    """The host prints an error with those that caused it."""
    header = json.dumps({"a": {"dtype": STEERING.replace("\udc9b", ""), "shape": [1], "data_offsets": [0, 4]}}).encode()
    content = struct.pack("<Q", len(header)) + header + bytes(4)
    with pytest.raises(PerfusionError) as caught:
        safe_files.parse(content, Path(STEERING))
    assert safe("".join(traceback.format_exception(caught.value)))


@pytest.fixture
def hostile_table(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / f"t{STEERING.encode(errors='replace').decode()}.json".replace("/", "")
    rows = [{"name": STEERING.replace("\udc9b", ""), "superclass": "x"}, {"name": "a", STEERING.replace("\udc9b", ""): 1}]
    path.write_text(json.dumps(rows), encoding="utf-8")
    yield path


def test_a_table_of_jobs_reaches_the_console_as_text(hostile_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs, faults = table.read(hostile_table)
    assert not jobs and faults
    command.say(*str(PerfusionError(f"The concepts in {hostile_table} cannot be trained:", *faults)).splitlines())
    command.say(f"[1/1] {STEERING}: failed: {STEERING}", "two")
    out = capsys.readouterr().out
    assert safe(out) and out.count("\n") == len(faults) + 3


def test_the_index_is_a_table_whatever_stands_in_it() -> None:
    entry = index.Entry("one", index.FAILED, "<one>", STEERING, fault=STEERING)
    lines = list(index.page([entry], []))
    assert all(line.isprintable() for line in lines) and sum(line.startswith("| one |") for line in lines) == 1
