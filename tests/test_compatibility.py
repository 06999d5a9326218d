"""The page on what works with what: that it names tests that exist, and claims of each what came of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from scripts.release import compatibility, make_compatibility
from scripts.setup import comfyui
from scripts.setup.bootstrap import ROOT

FIRST = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x]"><failure message="no" /></testcase>
<testcase classname="tests.test_a" name="test_two" />
</testsuite></testsuites>"""
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_one[x]" time="1" />
<testcase classname="tests.test_a" name="test_two"><failure message="no" /></testcase>
<testcase classname="tests.test_a" name="test_three"><skipped message="why" /></testcase>
</testsuite></testsuites>"""


@pytest.fixture(scope="module")
def existing() -> list[str]:
    """Full ids of the tests in the files that the page names."""
    files = sorted({test.path.partition("::")[0] for test in compatibility.tried()})
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", *files]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "::" in line]


def test_every_test_that_the_page_names_exists(existing: list[str]) -> None:
    assert len(compatibility.tried()) > 40
    assert [test.id for test in compatibility.tried() if not test.runs(existing)] == []


def test_the_page_is_that_of_a_run_in_which_all_passed(existing: list[str]) -> None:
    written = make_compatibility.PAGE.read_text(encoding="utf-8")
    assert written == make_compatibility.page(dict.fromkeys(existing, True), make_compatibility.told())


def test_the_command_writes_the_page_of_an_earlier_run(
    existing: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def case(test: str, came: str = "") -> str:
        path, _, name = test.partition(".py::")
        return f"<testcase classname={quoteattr(path.replace('/', '.'))} name={quoteattr(name)}>{came}</testcase>"

    (tmp_path / "first.xml").write_text(f"<testsuite>{''.join(map(case, existing))}</testsuite>")
    ill = next(test for test in existing if compatibility.tried()[0].runs([test]))
    (tmp_path / "second.xml").write_text(f"<testsuite>{case(ill, '<failure />')}</testsuite>")
    monkeypatch.setattr(comfyui, "version_of", lambda _: comfyui.VERSION)  # whatever host this suite runs with
    monkeypatch.setattr(make_compatibility, "PAGE", tmp_path / "page.md")
    command = ["make_compatibility", "--junit", str(tmp_path / "first.xml")]
    monkeypatch.setattr(sys, "argv", command)
    assert make_compatibility.main() == 0
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", [*command, str(tmp_path / "second.xml")])
    assert make_compatibility.main() == 1 and f"did not pass: {compatibility.tried()[0].id}" in capsys.readouterr().out


def test_only_what_passed_is_ticked(tmp_path: Path) -> None:
    (tmp_path / "first.xml").write_text(FIRST)
    (tmp_path / "junit.xml").write_text(JUNIT)
    passed, skipped = make_compatibility.read([tmp_path / "first.xml", tmp_path / "junit.xml"])
    names = ("test_one", "test_one[x]", "test_one[y]", "test_two", "test_three", "test_four")
    cells = [make_compatibility.shown(compatibility.Tried(f"test_a.py::{name}"), passed).split(" `")[0] for name in names]
    assert cells == ["✓", "✓", "not run:", "**failed**", "**failed**", "not run:"]
    assert "| not all tests of this page passed |" in make_compatibility.page(passed, {})
    assert skipped == {"tests/test_a.py::test_three": "why"}


def test_another_host_has_a_row_of_its_own_and_changes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_compatibility.PAGE.read_text(encoding="utf-8").splitlines()
    monkeypatch.setattr(make_compatibility, "HOSTS", tmp_path / "hosts.json")
    monkeypatch.setattr(make_compatibility, "PAGE", tmp_path / "page.md")
    (tmp_path / "page.md").write_text("\n".join(line for line in before if not line.startswith("| 0.1")) + "\n", encoding="utf-8")
    make_compatibility.note("0.12.0", make_compatibility.outcome({"a": True, "b": True, "c": False}, {"c": "it has no C"}))
    make_compatibility.note("0.11.0", make_compatibility.outcome({"a": True, "b": False}, {}))
    after = (tmp_path / "page.md").read_text(encoding="utf-8").splitlines()
    rows = ["| 0.12.0 | ✓ all 2 tests; 1 more cannot run: it has no C |", "| 0.11.0 | 1 of 2 tests; not `b` |"]
    assert [line for line in after if line not in before] == rows
    assert [line for line in before if line not in after] == [line for line in before if line.startswith("| 0.1")]
