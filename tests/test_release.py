"""What a release needs: the metadata that the registry reads, and the checks that look for what is wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.release import release_check
from scripts.release.release_check import FAILED, KNOWN, LEFT_OUT, OWN, PASSED
from scripts.setup import comfyui
from scripts.setup.bootstrap import ROOT

TOLD = {
    "project.name": "perfusion",
    "project.version": "1.2.3",
    "project.description": "A pack",
    "project.requires-python": ">=3.10",
    "project.license": {"file": "LICENSE"},
    "project.classifiers": ["Operating System :: OS Independent", "Environment :: GPU :: NVIDIA CUDA"],
    "project.dependencies": ["numpy", "pillow>=10"],
    "project.urls.Repository": "https://example.org/p",
    "project.urls.Documentation": "https://example.org/p/docs",
    "project.urls.Issues": "https://example.org/p/issues",
    "tool.comfy.PublisherId": "somebody",
    "tool.comfy.DisplayName": "Perfusion",
    "tool.comfy.Icon": "https://example.org/p/icon.svg",
    "tool.comfy.requires-comfyui": ">=0.30.0,<2.0.0",
}
CHANGES = "# Changes\n\n## 1.2.3 (2030-01-02)\n"
HOME = "/".join(["", "home", "somebody", "perfusion"])  # not in one piece: this file is published too
in_git = pytest.mark.skipif(
    not ((ROOT / ".git").exists() and shutil.which("git")),
    reason="not a git checkout, and git alone tells which files are published",
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A pack that is ready but for what is given; metadata of None are left out."""
    if not shutil.which("git"):
        pytest.skip("what is published is asked of git")

    def write(told: dict[str, object] | None = None, changes: str = CHANGES, files: dict[str, bytes] | None = None) -> Path:
        lines = [f"{key} = {toml(value)}\n" for key, value in (TOLD | (told or {})).items() if value is not None]
        own = {"LICENSE": b"", "CHANGELOG.md": changes.encode(), "pyproject.toml": "".join(lines).encode()}
        for name, content in (own | (files or {})).items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(content)
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
        return tmp_path

    return write


def toml(value: object) -> str:
    """A text, or a list or a table of texts."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {json.dumps(each)}" for key, each in value.items()) + " }"
    return json.dumps(value)


def test_a_pack_that_is_ready_passes_every_check(make: Callable[..., Path]) -> None:
    root = make(files={"nodes/a.py": b'"""Nothing."""\n', "demo/base.bin": bytes(release_check.LARGE + 1)})
    assert {name: check(root) for name, check in OWN.items()} == {name: [] for name in OWN}


@in_git
@pytest.mark.parametrize("name", [name for name in OWN if name not in ("filled in", "forbidden calls")])
def test_this_project_passes(name: str) -> None:
    assert OWN[name](ROOT) == []


@in_git
def test_nothing_that_the_host_loads_makes_a_forbidden_call() -> None:
    assert [told for told in release_check.forbidden_calls(ROOT) if release_check.LOADED.match(told)] == []


def test_what_is_left_to_fill_in_stands_in_the_page_on_releasing() -> None:
    listed = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    for left in release_check.left_to_fill_in(ROOT):
        assert f"`{left.removesuffix(' in CHANGELOG.md').removeprefix('copies in ')}`" in listed


def test_the_host_that_is_fetched_for_the_tests_is_one_that_the_pack_asks_for() -> None:
    bounds = release_check.metadata(ROOT)["tool"]["comfy"]["requires-comfyui"].split(",")
    lowest = next(bound.removeprefix(">=") for bound in bounds if bound.startswith(">="))
    assert [int(part) for part in comfyui.VERSION.split(".")] >= [int(part) for part in lowest.split(".")]


def test_the_icon_has_a_size_that_the_registry_takes() -> None:
    path = ROOT / "docs" / "pictures" / "icon.svg"
    width, height = re.findall(r'^<svg [^>]*width="(\d+)" height="(\d+)"', path.read_text(encoding="utf-8"))[0]
    assert int(width) <= 800 and int(height) <= 400
    assert release_check.metadata(ROOT)["tool"]["comfy"]["Icon"].endswith(path.relative_to(ROOT).as_posix())


@pytest.mark.parametrize("changes", ["", "# Changes\n\n## 1.2.2\n\n## 1.2.3\n", "# Changes\n\n## 1.2.30 (2030-01-02)\n"])
def test_a_changelog_without_the_version_on_top_is_seen(make: Callable[..., Path], changes: str) -> None:
    assert len(release_check.wrong_version(make(changes=changes))) == 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[(key, None) for key in TOLD if key != "project.dependencies"],
        *[("project.name", name) for name in ("ComfyUI-perfusion", "1st", "a--b", "a b", "-a", "a" * 100)],
        *[("project.version", version) for version in ("1.2", "v1.2.3", "1.2.3rc1")],
        *[("project.license", licence) for licence in ("MIT", {"file": "COPYING"}, {"text": "MIT"})],
        ("project.classifiers", ["Operating System :: BeOS", "Environment :: GPU :: NVIDIA CUDA"]),
        ("project.classifiers", ["Operating System :: MacOS", "Environment :: Console"]),
        ("project.urls.Issues", "example.org"),
        ("tool.comfy.Icon", "https://example.org/icon.webp"),
        *[("tool.comfy.requires-comfyui", bounds) for bounds in ("0.30.0", ">=0.30", ">=0.30.0,", "newest")],
    ],
)
def test_metadata_that_the_registry_would_miss_are_named(make: Callable[..., Path], key: str, value: object) -> None:
    told = release_check.missing_metadata(make({key: value}))
    assert told and all(each.startswith(key) for each in told)


@pytest.mark.parametrize("package", ["torch", "torch>=2", "Torchvision", "xformers", "nvidia-cudnn-cu12", "comfy-cli"])
def test_a_package_that_the_host_brings_may_not_be_installed(make: Callable[..., Path], package: str) -> None:
    root = make({"project.dependencies": ["numpy", package]})
    assert release_check.replaced_packages(root) == [f"{package} is the host's to bring"]


def test_large_files_are_seen_unless_they_are_not_published(make: Callable[..., Path]) -> None:
    files = {name: bytes(release_check.LARGE + 1) for name in ("weights.bin", ".cache/weights.bin", "tests/data.bin")}
    root = make(files=files | {".gitignore": b".cache/\n", ".comfyignore": b"/tests/\n"})
    assert release_check.large_files(root) == ["weights.bin has 1.0 MB"]


@pytest.mark.parametrize("place", [HOME + "/x", "C:" + r"\Users\x", f"{ROOT.as_posix()}/nodes", f"{Path.home().as_posix()}/x"])
def test_places_on_this_machine_are_seen(make: Callable[..., Path], place: str) -> None:
    root = make(
        files={"a.md": b"See https://example.org/home/x/y, ../home/x/y and models/.work/x.\n", "b.png": b"\0\xff" + place.encode()}
    )
    (told,) = release_check.machine_paths(root)
    assert told.startswith("b.png names ")


@pytest.mark.parametrize("code", ["exec('1')", "eval('1')", "a = 1; b = 2", "call(['-m', 'p' 'ip'])".replace("' '", "")])
def test_calls_that_the_registry_forbids_are_seen(make: Callable[..., Path], code: str) -> None:
    root = make(files={"nodes/a.py": code.encode() + b"\n", "nodes/b.py": b"model.eval()\n"})
    (told,) = release_check.forbidden_calls(root)
    assert told.startswith("nodes/a.py")


def test_placeholders_and_a_missing_date_are_seen(make: Callable[..., Path]) -> None:
    told = {"tool.comfy.PublisherId": "to-be-filled-in", "tool.comfy.Icon": "https://a.invalid/icon.svg"}
    root = make(told, "## 1.2.3 (not yet released)\n")
    assert release_check.left_to_fill_in(root) == [
        "tool.comfy.PublisherId",
        "tool.comfy.Icon",
        "(not yet released) in CHANGELOG.md",
    ]


def test_workflows_that_were_not_kept_are_seen(make: Callable[..., Path]) -> None:
    kept = "tests/data/workflows/1.2.3/a.json"
    for files, left in (({}, 1), ({kept: b"{ }"}, 1), ({kept: b"{}", "tests/data/workflows/1.2.2/b.json": b"{}"}, 0)):
        root = make(files={"workflows/a.json": b"{}", **files})
        assert release_check.left_to_fill_in(root) == ["copies in tests/data/workflows"] * left


def test_a_folder_without_git_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(release_check.steps.SetupError, match="expected a git checkout"):
        release_check.published(tmp_path)


# ---- reading what comfy-test says ------------------------------------------------------------------------------------------------


def ran(code: int, told: str) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess([], code, told, "")


def test_a_level_that_passed_says_what_it_found() -> None:
    found = release_check._judge("registration", ran(0, "x\nNo import errors detected\nFound 9 registered nodes\n"))
    assert str(found) == "passed    comfy-test registration: No import errors detected, Found 9 registered nodes"


def test_only_widgets_that_comfy_test_misreads_are_forgiven() -> None:
    widget, link = "[schema] Node 9 (KSampler): x", "[graph] Node 9 (KSampler): y"
    for told, status in ((f"- a: {widget}; {widget}", KNOWN), (f"- a: {widget}; {link}", FAILED), ("no server", FAILED)):
        found = release_check._judge("validation", ran(1, f"linux: FAILED\nError: Failed\nDetails: {told}\nSession log: z\n"))
        assert found.status == status
    assert release_check._judge("validation", ran(1, "")).status == FAILED


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("nodes/a.py:\n  Line 1: torch.autocast() -- x\ntests/b.py:\n  Line 2: nn.Linear() -- y\n", [KNOWN, KNOWN]),
        ("nodes/a.py:\n  Line 1: nn.Linear() -- x\n", [KNOWN, FAILED]),
        ("", [KNOWN, PASSED]),
    ],
)
def test_of_forbidden_patterns_only_known_ones_are_forgiven(
    told: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run is about characters; the second, on a copy without them, is the one that is told here."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "a.py").write_text("# σ\n", encoding="utf-8")
    second = ran(1, f"Error: Forbidden patterns found (not ComfyUI-native)\nDetails: Use:\n\n{told}") if told else ran(0, "")
    runs = iter([ran(1, "Error: Non-ASCII characters found that can't encode on Windows (cp1252)"), second])
    monkeypatch.setattr(release_check, "WORK", tmp_path / "work")
    monkeypatch.setattr(release_check, "_level", lambda python, pack, level: next(runs))
    assert [found.status for found in release_check._syntax(tmp_path, tmp_path / "pack")] == expected
    assert (tmp_path / "work" / "cp1252" / release_check.PACK / "a.py").read_text(encoding="utf-8") == "# ?\n"


def test_levels_that_are_left_out_name_tests_that_exist() -> None:
    for why in [*release_check.NOT_RUN.values(), release_check.MISREAD]:
        assert all((ROOT / path).is_file() for path in re.findall(r"(?:tests|scripts)/\w+\.py", why)) and "ours: " in why
    assert LEFT_OUT not in (PASSED, KNOWN, FAILED)
