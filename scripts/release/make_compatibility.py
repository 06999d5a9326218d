"""Write docs/compatibility.md: what was tested in combination with what, with the test of each cell.

`python -m scripts.release.make_compatibility`, in the environment that the set-up created, runs the tests that the page names on
the host in use, and writes the page. With `--junit FILE ...` it reads the results of earlier runs instead (pytest's
`--junitxml FILE`). For a host version other than the usual one, such as those that `scripts/release/test_hosts.py` runs all
tests with, it only writes that version's row.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import textwrap
import xml.etree.ElementTree
from collections.abc import Sequence
from pathlib import Path

from scripts.release.compatibility import NOT_TESTED, TABLES, Cell, Table, tried
from scripts.setup import bootstrap, comfyui, steps

PAGE = bootstrap.ROOT / "docs" / "compatibility.md"
HOSTS = bootstrap.ROOT / "benchmarks" / "results" / "hosts.json"
"""Maps other versions of the host to the outcome of all tests with them."""
VERSIONS = "Versions of ComfyUI"


def read(junits: Sequence[Path]) -> tuple[dict[str, bool], dict[str, str]]:
    """Read pytest's reports of some runs.

    Returns:
        For each test, by its full id, whether it passed in the last run that contained it; and the reasons of skipped tests.
    """
    cases = {
        f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}": case
        for junit in junits
        for case in xml.etree.ElementTree.parse(junit).iter("testcase")
    }
    bad = ("failure", "error", "skipped")
    passed = {one: not any(case.find(how) is not None for how in bad) for one, case in cases.items()}
    skips = {one: case.find("skipped") for one, case in cases.items()}
    return passed, {one: skip.attrib["message"] for one, skip in skips.items() if skip is not None}


def page(passed: dict[str, bool], others: dict[str, str]) -> str:
    """Return the page's text, from the outcome of a run on the usual host and the recorded outcomes of other versions."""
    ran = [one for test in tried() for one in test.runs(passed)]
    whole = all(test.runs(passed) for test in tried()) and all(passed[one] for one in ran)
    parts = [
        "# What works with what",
        "`python -m scripts.release.make_compatibility` runs the tests listed here and writes this page. ✓ marks a test that "
        "passed in that run; its name is that of a function in `tests/`, with the parameters in brackets. If a combination does "
        "not work, the reason is given instead of the test or beside it.",
    ]
    hosts = f"✓ all {len(ran)} tests of this page" if whole else "not all tests of this page passed"
    for table in (*TABLES, versions(hosts, others)):
        parts += section(table, passed)
    return "\n\n".join(wrapped(part) for part in parts) + "\n"


def versions(usual: str, others: dict[str, str]) -> Table:
    """Return the section on host versions: the outcome of the page's tests with the usual one, and of all tests with others."""
    rows = [(comfyui.VERSION, usual), *sorted(others.items(), reverse=True), ("all others", NOT_TESTED)]
    return Table(VERSIONS, "", ("version", "tests"), rows)


def section(table: Table, passed: dict[str, bool]) -> list[str]:
    """Return the paragraphs of a section."""
    lines = [table.columns, ["---"] * len(table.columns)]
    lines += [[row[0], *(shown(cell, passed) for cell in row[1:])] for row in table.rows]
    body = "\n".join(" ".join(f"| {cell}".rstrip() for cell in line) + " |" for line in lines)
    return [f"## {table.title}", *filter(None, [table.intro]), body]


def outcome(passed: dict[str, bool], lacking: dict[str, str]) -> str:
    """Summarize all tests with another host version.

    Skipped tests, whose nodes this version does not have (`lacking` maps test to reason), do not count as failures.
    """
    failed = sorted(one for one, good in passed.items() if not good and one not in lacking)
    tried = len(passed) - len(lacking)
    reasons = "; ".join(dict.fromkeys(lacking.values()))
    more = f"; {len(lacking)} more cannot run: {reasons}" if lacking else ""
    if not failed:
        return f"✓ all {tried} tests{more}"
    return f"{tried - len(failed)} of {tried} tests; not {', '.join(f'`{one}`' for one in failed)}{more}"


def note(version: str, told_of_it: str) -> None:
    """Record another host version's outcome and rewrite the page's section on versions, leaving the rest of the page as it is."""
    others = told() | {version: told_of_it}
    HOSTS.write_text(json.dumps(others, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    before, _, after = PAGE.read_text(encoding="utf-8").partition(f"## {VERSIONS}")
    usual = next(
        line.split(" | ")[1].removesuffix(" |") for line in after.splitlines() if line.startswith(f"| {comfyui.VERSION} |")
    )
    PAGE.write_text(before + "\n\n".join(section(versions(usual, others), {})) + "\n", encoding="utf-8")


def told() -> dict[str, str]:
    """Return the recorded outcomes of other host versions."""
    return json.loads(HOSTS.read_text(encoding="utf-8")) if HOSTS.exists() else {}


def shown(cell: Cell, passed: dict[str, bool]) -> str:
    """Return a cell's text."""
    if isinstance(cell, str):
        return cell
    runs = cell.runs(passed)
    if not runs:
        return f"not run: `{cell.id}`"
    return f"{'✓' if all(passed[one] for one in runs) else '**failed**'} `{cell.id}`"


def wrapped(text: str) -> str:
    """Wrap a paragraph into lines; headings and tables are returned unchanged."""
    if text.startswith(("#", "|")):
        return text
    return textwrap.fill(text, 132, break_long_words=False, break_on_hyphens=False)


def run(setup: bootstrap.Setup, junit: Path) -> None:
    """Run the tests that the page names, and let pytest write its report to `junit`."""
    command = [str(setup.tools), "-m", "pytest", "-q", "-n", "0", f"--junitxml={junit}", *(test.path for test in tried())]
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with steps.child(subprocess.Popen(command, cwd=bootstrap.ROOT, env=os.environ | threads)) as process:
        process.wait()
    if not junit.exists():
        raise steps.SetupError("expected pytest to run the tests, but it did not (see above).")


def main() -> int:
    """Run the tests or read earlier reports, then write the page.

    Returns:
        0 if all tests that the page names passed (on another host version: all tests except skipped ones), otherwise 1.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    earlier = "pytest's reports of earlier runs; without them the tests are run. If a test is in several, the last one counts"
    parser.add_argument("--junit", type=Path, nargs="+", help=earlier)
    given, setup = parser.parse_args(), bootstrap.locate()
    with tempfile.TemporaryDirectory() as folder:
        junits = given.junit or [Path(folder) / "junit.xml"]
        if given.junit is None:
            run(setup, junits[0])
        passed, lacking = read(junits)
    version = comfyui.version_of(setup.comfyui)
    if version != comfyui.VERSION:
        told_of_it = outcome(passed, lacking)
        note(version, told_of_it)
        steps.say(f"docs/{PAGE.name}: {version}: {told_of_it}")
        return not all(good or one in lacking for one, good in passed.items())
    PAGE.write_text(page(passed, told()), encoding="utf-8")
    bad = [test.id for test in tried() if not test.runs(passed) or not all(passed[one] for one in test.runs(passed))]
    steps.say(f"docs/{PAGE.name}: {len(tried()) - len(bad)} of {len(tried())} tests passed")
    for each in bad:
        steps.say(f"  did not pass: {each}")
    return bool(bad)


if __name__ == "__main__":
    steps.exit_with(main)
