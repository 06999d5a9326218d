"""Import Concept in a real server: what it takes in is what Load Concept gives afterwards, and what it refuses."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from perfusion_core.concept import Concept
from perfusion_core.concept_file import POSITIONS
from perfusion_core.foreign_formats import MAX_BYTES
from scripts.generate.foreign_file import write
from scripts.harness.graphs import TRIGGER, Graph, Link, concepts, latents
from scripts.harness.server import GraphError, Server

NAMED, PLAIN, LONG = f"a photo of a {TRIGGER} on the grass", "a photo of a monster", f"{'very ' * 90} a {TRIGGER} at night"


def folder(server: Server) -> Path:
    """Where concepts are."""
    return server.base / "models" / "perfusion"


@pytest.fixture(scope="module")
def taught(server: Server) -> Path:
    """A concept taught in two steps, its outputs doubled and turned so that a test can see them."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, _ = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, steps=2, batch=2, seed=11, precision="fp32"), 0], "to-import")
    server.run(graph.nodes)
    path = folder(server) / "to-import_00001.safetensors"
    concept = Concept.load(path)
    replace(concept, values={layer: 2 * o.roll(1) for layer, o in concept.values.items()}).save(path, torch.float32)
    return path


@pytest.fixture(scope="module")
def peer(server: Server, taught: Path) -> Path:
    """The same as a file of perfusion-pytorch."""
    return write(server.base, taught, "peer.pt")


@pytest.fixture(scope="module")
def positions(server: Server, taught: Path) -> Path:
    """A checkpoint of ChenDarYen's: the same concept, its outputs growing from position to position."""
    concept = Concept.load(taught)
    probe = concept.probe / (concept.probe @ concept.target_input)
    share = torch.linspace(0.5, 2, POSITIONS)[:, None]
    outputs = {f"{layer}.{which}.target_output": share * o for layer, o in concept.values.items() for which in ("to_k", "to_v")}
    words = nn.ParameterDict({"*": nn.Parameter(concept.word["clip_l"])})
    saved = {"C_inv": torch.outer(probe, probe), "target_input": concept.target_input, "target_output": outputs}
    saved["embedding"] = {"initializer_words": ["monster"], "string_to_token": {"*": 265}, "string_to_param": words}
    path = folder(server) / "sub" / "positions.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save(saved, path)
    return path


def importing(graph: Graph, model: Link, clip: Link, name: str, **inputs: object) -> Link:
    """Import a file."""
    given = {"trigger": TRIGGER, "superclass": "monster", "number": 1} | inputs
    return [graph.add("PerfusionImport", file_name=name, model=model, clip=clip, **given), 0]


def drawn(graph: Graph, model: Link, clip: Link, concept: Link | None, prompt: str, mode: str = "exact") -> Link:
    """A prompt sampled, with a concept applied or without."""
    m, c = graph.apply(model, clip, concept, mode) if concept else (model, clip)
    return graph.sample(m, graph.text(c, prompt), graph.text(c, ""), steps=2)


@pytest.mark.parametrize("kind", ["peer", "positions"])
def test_imported_it_draws_what_it_draws_from_our_file(
    kind: str, server: Server, taught: Path, request: pytest.FixtureRequest
) -> None:
    name, prefix = str(request.getfixturevalue(kind).relative_to(folder(server))), f"imported-{kind}"
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    taken = importing(graph, model, clip, name, superclass="" if kind == "positions" else "monster")
    graph.save(taken, prefix)
    asked = ((NAMED, "exact"), (PLAIN, "exact"), (PLAIN, "paper"), (LONG, "paper"))
    imported = latents(server, graph, *[drawn(graph, model, clip, taken, *each) for each in asked])
    saved, original = Concept.load(folder(server) / f"{prefix}_00001.safetensors"), Concept.load(taught)
    assert (saved.superclass, saved.trigger, saved.family, saved.bias, saved.temperature) == ("monster", TRIGGER, "sd1", 0.7, 0.15)
    # What training found for the superclass, from the CLIP alone.
    torch.testing.assert_close(saved.superclass_encoding, original.superclass_encoding, rtol=1e-3, atol=1e-3)

    graph = Graph()
    model, clip, _ = graph.checkpoint()
    ours, first = graph.load(f"{prefix}_00001.safetensors"), graph.load(taught.name, bias=0.7)
    others = [drawn(graph, model, clip, first, NAMED), drawn(graph, model, clip, None, PLAIN)]
    *found, same, base = latents(server, graph, *[drawn(graph, model, clip, ours, *each) for each in asked], *others)
    assert all(torch.equal(*pair) for pair in zip(imported, found, strict=True))
    # A prompt that does not name it is the base's to the last bit in exact mode, and not in the paper's.
    assert torch.equal(imported[1], base) and not torch.equal(imported[2], base)
    apart = float((imported[0] - same).abs().max())
    assert apart < 1e-3 if kind == "peer" else apart > 0.1, apart


def test_load_concept_lists_none_of_them(server: Server, peer: Path, positions: Path) -> None:
    info = server.object_info()
    (taken,) = [info["PerfusionImport"]["input"]["required"]["file_name"][1]["options"]]
    (loaded,) = [info["PerfusionLoadConcept"]["input"]["required"]["concept_name"][1]["options"]]
    assert {peer.name, str(positions.relative_to(folder(server)))} <= set(taken)
    assert not any(name.endswith(".safetensors") for name in taken) and all(name.endswith(".safetensors") for name in loaded)


def test_a_changed_file_is_imported_again(server: Server, peer: Path) -> None:
    saved, path = torch.load(peer, weights_only=True), folder(server) / "again.pt"
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    graph.save(importing(graph, model, clip, path.name), "again-imported", overwrite=True)
    for times in (1, 3):
        saved["embed_params"] *= times
        torch.save(saved, path)
        server.run(graph.nodes)
        found = Concept.load(folder(server) / "again-imported.safetensors")
        assert torch.equal(found.word["clip_l"], saved["embed_params"])


# ---- what is refused


def refused(server: Server, name: str, *words: str, **inputs: object) -> None:
    """The import fails with one sentence that holds these words, and no concept file is written."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    graph.save(importing(graph, model, clip, name, **inputs), "refused")
    known = concepts(server)
    with pytest.raises(GraphError) as failure:
        server.run(graph.nodes)
    message = str(failure.value)
    assert all(word in message for word in words), message
    assert "\n" not in message.strip() and "Traceback" not in message
    assert concepts(server) == known


class Probe:
    """Would make a folder if it were unpickled by an unsuspecting reader."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_hostile_files_are_refused_before_the_graph_runs(server: Server, peer: Path, tmp_path: Path) -> None:
    place, mark, good = folder(server), tmp_path / "was-run", torch.load(peer, weights_only=True)
    torch.save(good | {"more": Probe(mark)}, place / "hostile.pt")
    refused(server, "hostile.pt", "hostile.pt", "could run code")
    assert not mark.exists()
    with (place / "huge.pt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    refused(server, "huge.pt", f"more than the limit of {MAX_BYTES}")
    (place / "huge.pt").unlink()
    (place / "short.bin").write_bytes(peer.read_bytes()[:-500])
    refused(server, "short.bin", "not a complete torch.save file")
    torch.save({"state_dict": {}}, place / "lora.pth")
    refused(server, "lora.pth", "not a concept from perfusion-pytorch or")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved.update(embed_params=torch.ones(1, 1024)), "word has the shape (1024,) instead of (768,)"),
        (lambda saved: saved["C_inv"].fill_(float("nan")), "C_inv contains NaN"),
        (lambda saved: saved.update(C_inv=saved["C_inv"].int()), "torch.int32"),
        (lambda saved: saved["key_value_params"].pop(), "edits 13 projections, but this model has 14"),
    ],
)
def test_files_with_wrong_parts_are_refused(server: Server, peer: Path, change: object, words: str) -> None:
    saved = torch.load(peer, weights_only=True)
    change(saved)
    torch.save(saved, folder(server) / "wrong.pt")
    refused(server, "wrong.pt", "wrong.pt", words)


def test_names_lead_nowhere_else(server: Server, taught: Path, peer: Path) -> None:
    outside = server.base / "models" / "outside.pt"
    outside.write_bytes(peer.read_bytes())
    for name in ("../outside.pt", str(outside), taught.name, ".work/x.pt", "nothing.pt", ""):
        refused(server, name, "no file", "to import")


def test_inputs_that_cannot_be_are_refused(server: Server, peer: Path) -> None:
    refused(server, peer.name, "as the superclass", superclass=" ")
    refused(server, peer.name, "angle brackets", trigger="my teddy")
    refused(server, peer.name, "contains 1 concept, but number 2", number=2)


def test_a_file_without_a_metric_takes_one_that_is_connected(server: Server, peer: Path) -> None:
    saved = torch.load(peer, weights_only=True)
    del saved["C_inv"]
    torch.save(saved, folder(server) / "bare.pt")
    refused(server, "bare.pt", "the inverse covariance", "Measure Text Encoder")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    measured = graph.add("PerfusionCovariance", clip=clip, captions="", captions_file="")
    graph.save(importing(graph, model, clip, "bare.pt", covariance=[measured, 0]), "metric")
    server.run(graph.nodes)
    # The concept was taught in that very metric.
    one, other = (Concept.load(folder(server) / f"{name}_00001.safetensors") for name in ("metric", "to-import"))
    torch.testing.assert_close(one.probe @ one.target_input, torch.tensor(1.0), rtol=1e-4, atol=0)
    torch.testing.assert_close(one.probe, other.probe, rtol=1e-3, atol=1e-6)
