"""What people see of the nodes before they run them: tooltips, help, translations, workflows, thumbnails."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from scripts.harness.server import Server
from scripts.setup.bootstrap import ROOT

LANGUAGES = ("fr", "zh")
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")


@pytest.fixture(scope="module")
def nodes(object_info: dict) -> dict[str, dict]:
    return {name: info for name, info in object_info.items() if name.startswith("Perfusion")}


def inputs(info: dict) -> dict[str, list]:
    """A node's inputs that the page shows."""
    return {name: given for kind in ("required", "optional") for name, given in info["input"].get(kind, {}).items()}


def test_every_node_input_and_output_says_what_it_is(nodes: dict) -> None:
    assert len(nodes) == 21
    for name, info in nodes.items():
        assert info["description"] and info["display_name"].endswith(" (Perfusion)") and info["category"] == "perfusion", name
        for given, (_, options, *_) in inputs(info).items():
            assert options.get("tooltip"), f"{name}.{given}"
        tooltips = info["output_tooltips"] or []
        assert len(tooltips) == len(info["output"]) and all(tooltips), name


def test_every_node_has_help_on_all_its_inputs_and_outputs(nodes: dict) -> None:
    """The page shows it in place of what it would have made of the tooltips."""
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == set(nodes)
    for name, info in nodes.items():
        text = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
        assert text.startswith(f"# {info['display_name'].removesuffix(' (Perfusion)')}\n"), name
        rows = re.findall(r"^\| `([\w]+)` \| .{3,} \|$", text, re.M)
        assert rows == [*inputs(info), *info["output_name"]], name
        for said, path in PICTURE.findall(text):
            assert said and (ROOT / "web" / "docs" / path).is_file(), f"{name}: {path}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_of_the_nodes_is_translated(server: Server, nodes: dict, language: str) -> None:
    told = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    assert set(told) == set(nodes) and server.get("/i18n")[language]["nodeDefs"] == told
    for name, info in nodes.items():
        own = told[name]
        assert own["display_name"].endswith("(Perfusion)") and own["description"] != info["description"], name
        assert list(own["inputs"]) == list(inputs(info)), name
        assert list(own["outputs"]) == [str(i) for i in range(len(info["output"]))], name
        for part, given in [*own["inputs"].items(), *own["outputs"].items()]:
            assert given["name"] and given["tooltip"], f"{name}.{part}"
        for given, (_, options, *_) in inputs(info).items():
            assert own["inputs"][given]["tooltip"] != options["tooltip"], f"{name}.{given}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_sentence_of_the_pages_scripts_is_translated(server: Server, language: str) -> None:
    english = dict(re.findall(r'^  (\w+): "(.*)",$', (ROOT / "web" / "texts.js").read_text(encoding="utf-8"), re.M))
    told = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))["perfusion"]
    assert len(english) > 30 and list(told) == list(english) and server.get("/i18n")[language]["perfusion"] == told
    for key, text in english.items():
        assert told[key] != text and set(re.findall(r"{\w+}", told[key])) == set(re.findall(r"{\w+}", text)), key
    used = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js"))
    assert all(f'"{key}"' in used for key in english)


def test_no_language_is_shipped_that_the_host_does_not_have() -> None:
    assert {path.name for path in (ROOT / "locales").iterdir()} == set(LANGUAGES)


def test_every_node_is_used_by_a_workflow(nodes: dict) -> None:
    used = {node["type"] for path in WORKFLOWS for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]}
    assert set(nodes) <= used


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_has_a_thumbnail_and_a_note(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as thumbnail:
        assert thumbnail.format == "JPEG" and thumbnail.size == (320, 320)
    notes = [node for node in json.loads(path.read_text(encoding="utf-8"))["nodes"] if node["type"] == "MarkdownNote"]
    assert any(len(node["widgets_values"][0]) > 200 for node in notes)


def test_the_documents_show_pictures_and_pages_that_exist() -> None:
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        links = [link for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in link]
        assert all((path.parent / link).exists() for link in links), (path.name, links)


def fragments(node: ast.expr) -> list[str]:
    """The constant parts of a sentence in the code, as they stand in the page."""
    if isinstance(node, ast.JoinedStr):
        parts, part = [], ""
        for value in node.values:
            if isinstance(value, ast.Constant):
                part += value.value
            else:
                parts, part = [*parts, part], ""
        return [*parts, part]
    if isinstance(node, ast.BinOp):
        return [*fragments(node.left), *fragments(node.right)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def test_every_error_sentence_is_explained() -> None:
    """Each longer part of a sentence that nodes, core and fleet raise is in docs/troubleshooting.md."""
    said = re.sub(r"\s+", " ", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")).replace("\\<", "<")
    missing, count = [], 0
    for path in sorted(each for part in ("perfusion_core", "nodes", "perfusion_fleet") for each in (ROOT / part).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) and node.args else ""
            if name in ("PerfusionError", "require"):
                for part in fragments(node.args[-1 if name == "require" else 0]):
                    part = re.sub(r"\s+", " ", part).strip(" :.;,'()")
                    count += 1
                    missing += [(path.name, part)] if len(part) > 24 and part not in said else []
    assert count > 200 and not missing
