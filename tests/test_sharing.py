"""Concepts on their way between people: inside workflows, and from models/perfusion to the page that puts them there."""

from __future__ import annotations

import base64
import http.client
import json
import struct
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from perfusion_core import PerfusionError
from perfusion_core.concept import Concept
from perfusion_core.concept_file import MAX_TEXT, POSITIONS
from scripts.harness.graphs import Graph, latents
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import ROOT

MONSTER = "demo-monster.safetensors"
LONG = "x" * 201
CONTENT = (ROOT / "demo" / "concepts" / MONSTER).read_bytes()
TEXT = base64.b64encode(CONTENT).decode()


def test_a_concept_as_text_is_that_of_its_file() -> None:
    held, loaded = Concept.from_text(TEXT, "it"), Concept.load(ROOT / "demo" / "concepts" / MONSTER)
    assert (held.trigger, held.superclass, held.training, held.preview) == (
        loaded.trigger,
        loaded.superclass,
        loaded.training,
        loaded.preview,
    )
    assert all(torch.equal(held.values[layer], loaded.values[layer]) for layer in loaded.values)
    assert torch.equal(held.word["clip_l"], loaded.word["clip_l"]) and torch.equal(held.probe, loaded.probe)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a complete safetensors file"),
        ("not base64 at all", "not valid base64"),
        (TEXT[:-1], "not valid base64"),
        (TEXT[:4000], "not a complete safetensors file"),
        (TEXT + "\n", "not valid base64"),
        (base64.b64encode(b"\x80\x04\x95junk of a pickle").decode(), "not a complete safetensors file"),
        (base64.b64encode(struct.pack("<Q", 2**60) + CONTENT[8:]).decode(), "not a complete safetensors file"),
        ("A" * (MAX_TEXT + 4), f"more than the limit of {MAX_TEXT}"),
    ],
)
def test_a_text_that_is_no_concept_is_refused(text: str, said: str) -> None:
    with pytest.raises(PerfusionError, match=r"^The concept cannot be used: ") as refused:
        Concept.from_text(text, "The concept")
    assert said in str(refused.value) and len(str(refused.value)) < 300 and refused.value.__cause__ is None


def drawn(server: Server, **bring: str) -> torch.Tensor:
    """A latent with a concept from a node that brings it."""
    ((class_type, value),) = bring.items()
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    widget = {"PerfusionLoadConcept": "concept_name", "PerfusionConceptInWorkflow": "data"}[class_type]
    model, clip = graph.apply(model, clip, [graph.add(class_type, **{widget: value}), 0])
    (latent,) = latents(server, graph, graph.sample(model, graph.text(clip, "a <demo-monster>"), graph.text(clip, "")))
    return latent


def test_a_workflow_that_holds_a_concept_draws_what_its_file_draws(server: Server) -> None:
    held, loaded = drawn(server, PerfusionConceptInWorkflow=TEXT), drawn(server, PerfusionLoadConcept=MONSTER)
    assert torch.equal(held, loaded)


@pytest.mark.parametrize(
    ("data", "said"), [("", "contains no concept yet"), (TEXT[:400], "The concept in this workflow cannot be used")]
)
def test_a_workflow_that_holds_none_is_refused_before_it_runs(server: Server, data: str, said: str) -> None:
    with pytest.raises(GraphError, match=said) as refused:
        drawn(server, PerfusionConceptInWorkflow=data)
    assert "Custom validation failed" in str(refused.value)


def test_the_name_of_a_concept_may_come_from_another_node(server: Server) -> None:
    """Whose output is of any type: the host lets texts be linked to lists of names only in this way."""
    graph = Graph()
    names = [[graph.add("PrimitiveString", value=value), 0] for value in ("demo-robot.safetensors", "none.safetensors")]
    for switch in (True, False):
        name = [graph.add("ComfySwitchNode", switch=switch, on_true=names[0], on_false=names[1]), 0]
        shown = graph.add("PreviewAny", source=[graph.add("PerfusionLoadConcept", concept_name=name), 2])
        if switch:
            history = server.run(graph.nodes)
            assert history["outputs"][shown]["text"] == ["robot"]
        else:
            with pytest.raises(GraphError, match="There is no concept 'none"):
                server.run(graph.nodes)


def asked(server: Server, name: str) -> tuple[int, str]:
    """The status and the sentence with which the page's request for a file is refused."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.get(f"/perfusion/file?name={urllib.parse.quote(name)}")
    return refused.value.code, json.loads(refused.value.read())["error"]


def test_the_page_gets_concept_files_and_nothing_else(server: Server) -> None:
    folder: Path = server.base / "models" / "perfusion"
    address = f"{server.address}/perfusion/file?name={MONSTER}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address) as answer:
        assert answer.read() == CONTENT and answer.headers.get_content_type() == "application/octet-stream"
    secret = server.base / "secret.safetensors"
    secret.write_bytes(CONTENT)
    (folder / "other.safetensors").write_bytes(b"something else")
    for name in ("../../secret.safetensors", str(secret), "..", "", "missing.safetensors", "\x00"):
        status, sentence = asked(server, name)
        assert status == 400 and sentence.startswith("There is no concept"), name
    status, sentence = asked(server, "other.safetensors")
    assert status == 400 and "not a complete safetensors file" in sentence
    concept = Concept.load(folder / MONSTER)
    large = {layer: output.repeat(POSITIONS, 1) for layer, output in concept.values.items()}
    replace(concept, values=large, keys=large).save(folder / "large.safetensors", torch.float32)
    status, sentence = asked(server, "large.safetensors")
    assert status == 400 and "more than the limit of 768 KB in a workflow" in sentence


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8188"}, 200),
        ({"Host": "[::1]:8188"}, 200),
        ({"Host": "192.168.1.20:8188"}, 200),
        ({"Host": "workshop:8188"}, 200),
        ({"Host": "workshop.local:8188"}, 200),
        # A tunnel or a proxy with https, where browsers say where a page comes from.
        ({"Host": "me.tunnel.example", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "me.tunnel.example", "Sec-Fetch-Site": "cross-site"}, 403),
        # A stranger's site, whose name points to this machine by now.
        ({"Host": "site.example:8188"}, 403),
        ({"Host": "site.example:8188", "Origin": "http://site.example:8188"}, 403),
        ({"Host": "127.0.0.1.site.example"}, 403),
        ({"Host": "["}, 403),
    ],
)
@pytest.mark.parametrize("address", [f"/perfusion/file?name={MONSTER}", f"/perfusion/picture?name={MONSTER}", "/perfusion/words"])
def test_a_page_of_another_name_gets_no_concepts(server: Server, address: str, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", address, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status == status
    if status == 403 and "Sec-Fetch-Site" not in headers:
        assert json.loads(content)["error"].startswith("Concepts are sent only to a page opened through localhost, ")


def test_the_page_gets_the_words_that_concepts_are_found_by(server: Server) -> None:
    folder = server.base / "models" / "perfusion"

    def words() -> dict[str, list[str]]:
        return json.loads(server.get("/perfusion/words"))

    one, path = Concept.load(folder / MONSTER), folder / "found.safetensors"
    for trigger, superclass in (("<first>", "bear"), ("<second>", "wolf")):
        replace(one, trigger=trigger, superclass=superclass).save(path)
        assert words()[path.name] == [trigger, superclass]
    assert words()[MONSTER] == ["<demo-monster>", "monster"] and not any(name.startswith(".work") for name in words())
    for content in (CONTENT[:100], b"", b"no safetensors at all", struct.pack("<Q", 2**60) + CONTENT[8:]):
        path.write_bytes(content)
        assert words()[path.name] == ["", ""]
    for told, found in (
        ({"modelspec.trigger_phrase": "x" * 500_000, "superclass": "wolf"}, ["", "wolf"]),
        ({"superclass": LONG}, ["", ""]),
    ):
        save_file({"probe": torch.ones(1)}, path, told)
        assert words()[path.name] == found
    path.unlink()
    assert path.name not in words()


def test_the_page_gets_a_concepts_picture_and_nothing_that_is_none(server: Server) -> None:
    folder = server.base / "models" / "perfusion"
    one, path = Concept.load(folder / MONSTER), folder / "pictured.safetensors"
    address = f"{server.address}/perfusion/picture?name="
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address + MONSTER) as answer:
        assert answer.read() == one.preview and answer.headers.get_content_type() == "image/jpeg"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    replace(one, preview=b"").save(path)
    assert server.get(f"/perfusion/picture?name={path.name}") == b""
    save_file({"probe": torch.ones(1)}, path, {"ssmd_cover_images": json.dumps([base64.b64encode(b"<svg/>").decode()])})
    for name in (path.name, "missing.safetensors", "../secret.safetensors"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.get(f"/perfusion/picture?name={name}")
        assert refused.value.code == 400
    path.unlink()


ROW = '{"name": "demo-monster.safetensors"'


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("{", "needs a JSON list of at most 64 rows"),
        ("{}", "needs a JSON list of at most 64 rows"),
        ('[{"file": "a"}]', "needs a JSON list of at most 64 rows"),
        (f'[{ROW}, "strength": "much"}}]', "needs a JSON list of at most 64 rows"),
        (f'[{ROW}, "bias": 1e999}}]', "needs a JSON list of at most 64 rows"),
        ("[" * 5000, "needs a JSON list of at most 64 rows"),
        (f"[{', '.join([ROW + '}'] * 65)}]", "at most 64"),
        ('[{"name": "missing.safetensors"}]', "There is no concept"),
        ('[{"name": "../secret.safetensors"}]', "There is no concept"),
        (f"[{ROW}}}, {ROW}}}]", "Two concepts have the trigger word"),
    ],
)
def test_rows_that_cannot_be_loaded_are_refused_before_the_graph_runs(server: Server, rows: str, said: str) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    applied = graph.apply(model, clip, [graph.add("PerfusionLoadConcepts", concepts=rows), 0])
    graph.sample(*applied[:1], graph.text(applied[1], "a"), graph.text(clip, ""), steps=1)
    graph.add("PreviewAny", source=graph.text(applied[1], "a"))
    with pytest.raises(GraphError, match=said) as refused:
        server.run(graph.nodes)
    assert "Custom validation failed" in str(refused.value)


def test_rows_that_are_off_bring_nothing(server: Server) -> None:
    """Not even a concept whose file is gone."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    rows = json.dumps([{"name": "missing.safetensors", "on": False}])
    with_model, with_clip = graph.apply(model, clip, [graph.add("PerfusionLoadConcepts", concepts=rows), 0])
    drawn = [
        graph.sample(m, graph.text(c, "a monster"), graph.text(clip, ""), steps=1)
        for m, c in ((with_model, with_clip), (model, clip))
    ]
    assert torch.equal(*latents(server, graph, *drawn))
