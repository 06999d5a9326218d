"""Every node, in a real server: what it makes, and what it leaves alone."""

from __future__ import annotations

import base64
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from perfusion_core.concept import Concept
from perfusion_core.judgement import Judgement
from perfusion_core.safe_files import parse
from scripts.harness.graphs import TRIGGER, Graph, concepts, latents
from scripts.harness.moments import progress, queued_until
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import CHECKPOINT, Setup


@pytest.fixture(scope="session")
def trained(server: Server) -> tuple[Path, dict, list]:
    """A concept trained through the node: its file, the run's history, and the ids of the preview nodes."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures()
    train = graph.train(model, clip, vae, images, masks, steps=6)
    graph.save([train, 0], "trained", author="Ann", license="CC BY 4.0")
    shown = [graph.add("PreviewImage", images=[train, i]) for i in (1, 2)]
    history = server.run(graph.nodes)
    return server.base / "models" / "perfusion" / "trained_00001.safetensors", history, shown


@pytest.fixture(scope="session")
def strong(server: Server, trained: tuple) -> str:
    """A concept file whose edit is large, so that a test can see it: the trained one, its outputs doubled and turned."""
    concept = Concept.load(trained[0])
    values = {layer: 2 * o.roll(1) for layer, o in concept.values.items()}
    path = trained[0].with_name("strong.safetensors")
    replace(concept, values=values).save(path, torch.float32)
    return path.name


@pytest.fixture(scope="session")
def alone(server: Server) -> str:
    """The file of a word alone, and its vectors in models/embeddings as the stock embedding `alone`."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    train = graph.train(model, clip, vae, images, masks, steps=3, word_rate=0.01, edit_mode="none", trigger="<alone>")
    saved = graph.save([train, 0], "alone")
    assert "word only" in server.run(graph.nodes)["outputs"][saved]["text"][0]
    path = server.base / "models" / "perfusion" / "alone_00001.safetensors"
    embedding(server, "alone", **Concept.load(path).word)
    return path.name


def embedding(server: Server, name: str, **vectors: torch.Tensor) -> None:
    """Write a stock embedding file."""
    (server.base / "models" / "embeddings").mkdir(exist_ok=True)
    save_file(vectors, server.base / "models" / "embeddings" / f"{name}.safetensors")


def base_and(server: Server, concept: str, prompts: list[str], **how: object) -> tuple[list, list]:
    """Latents of prompts from the untouched base, and from the base with a concept applied."""
    graph = Graph()
    base = graph.checkpoint()[:2]
    ways = base, graph.apply(*base, graph.load(concept, **how))
    samples = [graph.sample(m, graph.text(c, prompt), graph.text(c, "")) for m, c in ways for prompt in prompts]
    found = latents(server, graph, *samples)
    return found[: len(prompts)], found[len(prompts) :]


def applied(server: Server, concept: str, prompts: list[str], **how: object) -> list:
    """Latents of prompts from the base with a concept applied."""
    graph = Graph()
    m, c = graph.apply(*graph.checkpoint()[:2], graph.load(concept, **how))
    return latents(server, graph, *(graph.sample(m, graph.text(c, prompt), graph.text(c, "")) for prompt in prompts))


# ---- training, saving, loading -----------------------------------------------------------------------------------------------


def test_training_gives_a_concept_a_plot_and_a_preview(server: Server, trained: tuple) -> None:
    path, history, (plot, preview) = trained
    concept = Concept.load(path)
    assert (concept.trigger, concept.superclass, concept.family) == (TRIGGER, "monster", "sd1")
    assert len(concept.values) == 7 and concept.word["clip_l"].shape == (1, 768) and not concept.keys
    assert concept.training["steps"] == 6 and concept.details["author"] == "Ann"
    (plotted,), (pictured,) = (server.outputs(history, node, "temp") for node in (plot, preview))
    with Image.open(plotted) as image:
        assert image.size == (640, 360) and len(image.convert("RGB").getcolors(10**6)) > 2
    with Image.open(pictured) as image:
        assert image.size == (64, 64) and len(image.convert("RGB").getcolors(10**6)) > 50


def test_the_hosts_model_browser_shows_preview_and_trigger(server: Server, trained: tuple) -> None:
    told = server.get("/view_metadata/perfusion?filename=trained_00001.safetensors")
    assert json.loads(told["trained_words"]) == [TRIGGER] and told["modelspec.trigger_phrase"] == TRIGGER
    cover = base64.b64decode(json.loads(told["ssmd_cover_images"])[0])
    assert cover.startswith(b"\xff\xd8\xff") and len(cover) <= 12 * 1024
    listed = server.get("/experiment/models/perfusion")
    entry = next(model for model in listed if model["name"] == "trained_00001.safetensors")
    preview = server.get(f"/experiment/models/preview/perfusion/{entry['pathIndex']}/trained_00001.safetensors")
    assert preview[8:12] == b"WEBP"


def test_loading_gives_trigger_and_superclass_for_prompts(server: Server, trained: tuple) -> None:
    graph = Graph()
    loaded = graph.add("PerfusionLoadConcept", concept_name=trained[0].name)
    shown = [graph.add("PreviewAny", source=[loaded, i]) for i in (1, 2)]
    history = server.run(graph.nodes)
    assert [history["outputs"][node]["text"][0] for node in shown] == [TRIGGER, "monster"]
    assert "base: sd1" in history["outputs"][loaded]["text"][0]


def test_saving_counts_and_overwrites_only_when_told(server: Server, trained: tuple) -> None:
    before = trained[0].read_bytes()
    for expected, widgets in (
        ("again_00001", {}),
        ("again_00002", {}),
        ("again", {"overwrite": True}),
        ("again", {"overwrite": True}),
    ):
        graph = Graph()
        graph.save(graph.load(trained[0].name, strength=0.5 if "2" in expected else 1.0), "again", **widgets, author=expected)
        known = concepts(server)
        server.run(graph.nodes)
        assert {path.stem for path in concepts(server) - known} <= {expected}
        assert trained[0].with_name(f"{expected}.safetensors").exists()
    assert trained[0].read_bytes() == before


def taught(server: Server, name: str, pictures: int = 1, **widgets: object) -> Path:
    """The file of a concept that was trained with these widgets and saved under this name."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, _ = graph.pictures(pictures)
    graph.save([graph.train(model, clip, vae, images, **widgets), 0], name)
    server.run(graph.nodes)
    return server.base / "models" / "perfusion" / f"{name}_00001.safetensors"


def test_trained_keys_and_the_papers_form_train_too(server: Server) -> None:
    concept = Concept.load(taught(server, "bear", 2, steps=2, lock="trained", edit_mode="paper", superclass="teddy bear"))
    assert concept.word["clip_l"].shape == (2, 768) and set(concept.keys) == set(concept.values)
    assert not concept.keys_at_word


def test_keys_at_the_word_are_taught_saved_and_applied(server: Server) -> None:
    concept = Concept.load(taught(server, "at-word", steps=1, lock="word", superclass="monster"))
    assert concept.keys_at_word and set(concept.keys) == set(concept.values)


def test_keys_in_the_layers_of_the_highest_resolution_are_taught_saved_and_applied(server: Server) -> None:
    file = taught(server, "fine", steps=1, lock="fine", superclass="monster")
    concept = Concept.load(file)
    assert concept.keys_at_word and concept.key_lock == 0.5 and len(concept.values) == 7
    assert {".".join(layer.split(".")[:2]) for layer in concept.keys} == {"input_blocks.1", "output_blocks.2", "output_blocks.3"}
    # Its keys change what is sampled, in which nothing else differs.
    replace(concept, keys={layer: -each for layer, each in concept.keys.items()}).save(file.with_name("turned.safetensors"))
    graph, samples = Graph(), []
    model, clip, _ = graph.checkpoint()
    for name in (file.name, "turned.safetensors"):
        patched, words = graph.apply(model, clip, graph.load(name, bias=0.3))
        samples.append(graph.sample(patched, graph.text(words, f"a {concept.trigger}"), graph.text(words, "")))
    one, other = latents(server, graph, *samples)
    assert not torch.equal(one, other)


def test_a_folder_of_pictures_of_any_size_with_captions_is_taken(server: Server) -> None:
    folder = server.base / "input" / "shapes"
    folder.mkdir()
    for name, size in (("a", (300, 200)), ("b", (64, 190))):
        with Image.open(server.base / "input" / "monster-0.png") as picture:
            picture.convert("RGB").resize(size).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"a <folded> beside a {name}", encoding="utf-8")
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    loaded = graph.add("LoadImageTextDataSetFromFolder", folder="shapes")
    options = graph.options(captions=[loaded, 1])
    train = graph.train(model, clip, vae, [loaded, 0], steps=1, trigger="<folded>", options=options)
    graph.save([train, 0], "shapes")
    server.run(graph.nodes)
    assert Concept.load(server.base / "models" / "perfusion" / "shapes_00001.safetensors").training["steps"] == 1


def test_the_covariance_is_kept_for_each_text_encoder_and_captions(server: Server) -> None:
    captions = "\n".join(f"a photo of thing number {i} on the {'abcdefghijkl'[i % 12]} street of town {i * 7}" for i in range(80))
    reports = []
    for _ in range(2):
        graph = Graph()
        _, clip, _ = graph.checkpoint()
        measured = graph.add("PerfusionCovariance", clip=clip, captions=captions, captions_file="")
        graph.add("PreviewAny", source=[measured, 1])
        reports.append(server.run(graph.nodes)["outputs"][measured]["text"][0])
        kept = set((server.base / "models" / "perfusion" / ".work").glob("covariance-*-*.safetensors"))
        server.free()
    assert reports[0] == reports[1] and "condition number" in reports[0] and len(kept) == 1


def test_the_positions_that_are_measured_make_another_covariance(server: Server) -> None:
    told = "thing {} in town {}, on street {} by house {}, at hour {} of day {}"
    captions, counts = "\n".join(told.format(*(i * by for by in (1, 7, 3, 11, 1, 5))) for i in range(40)), {}
    for positions in ("content", "unpadded", "all"):
        graph = Graph()
        _, clip, _ = graph.checkpoint()
        measured = graph.add("PerfusionCovariance", clip=clip, captions=captions, captions_file="", positions=positions)
        graph.add("PreviewAny", source=[measured, 1])
        counts[positions] = int(server.run(graph.nodes)["outputs"][measured]["text"][0].split()[0])
    assert counts["all"] == 40 * 77 and counts["unpadded"] - counts["content"] == 2 * 40


def test_concepts_are_saved_on_the_way(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    train = graph.train(model, clip, vae, images, masks, steps=5, batch=2, seed=77, save_every=2, trigger="<on-the-way>")
    graph.save([train, 0], "on-the-way")
    server.run(graph.nodes)
    folder = server.base / "models" / "perfusion"
    (place,) = (folder / "steps").glob("on-the-way-*")
    assert [path.name for path in sorted(place.iterdir())] == ["00002.safetensors", "00004.safetensors"]
    early, late = (Concept.load(path) for path in sorted(place.iterdir()))
    last = Concept.load(folder / "on-the-way_00001.safetensors")
    assert [each.training["steps"] for each in (early, late, last)] == [2, 4, 5] and late.trigger == "<on-the-way>"
    moved = [(each.word["clip_l"] - early.word["clip_l"]).abs().max() for each in (late, last)]
    assert 0 < moved[0] < moved[1]


def test_the_best_concept_is_kept(server: Server) -> None:
    """With rates at which prompts are followed less than at first: an early one is kept, as it was on the way."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    more = {"steps": 75, "batch": 2, "seed": 79, "save_every": 25, "keep": "best", "word_rate": 0.02, "output_rate": 2.0}
    graph.save([graph.train(model, clip, vae, images, masks, trigger="<kept>", **more), 0], "kept")
    server.run(graph.nodes)
    folder = server.base / "models" / "perfusion"
    (place,) = (folder / "steps").glob("kept-*")
    on_the_way = [Concept.load(path) for path in sorted(place.iterdir())]
    judged = [Judgement(each.training["held_out_loss"], each.training["followed"]) for each in on_the_way]
    best = next(i for i, one in enumerate(judged) if not any(other.beats(one) for other in judged))
    kept = Concept.load(folder / "kept_00001.safetensors")
    assert kept.training == on_the_way[best].training and kept.preview
    assert torch.allclose(kept.word["clip_l"], on_the_way[best].word["clip_l"], atol=1e-3)
    assert len({one.loss for one in judged}) == len({one.followed for one in judged}) == 3 and best < 2
    assert not [path for path in (folder / ".work").iterdir() if path.name.startswith(("best-", "training-"))]


def stopped(server: Server, nodes: dict, step: int = 0) -> set[Path]:
    """Stop a training after this step, or as soon as it has written a checkpoint, if it had none; the new ones that it left."""
    work = server.base / "models" / "perfusion" / ".work"
    before, end = set(work.glob("training-*")), time.monotonic() + 600
    if step:
        ((key, train),) = ((key, node) for key, node in nodes.items() if node["class_type"] == "PerfusionTrain")
        prompt = queued_until(server, nodes, progress(key, train["inputs"]["steps"], step))
    else:
        prompt = server.queue(nodes)
        while set(work.glob("training-*")) == before and time.monotonic() < end:
            time.sleep(0.05)
    server.interrupt(prompt)
    with pytest.raises(GraphError, match="interrupted"):
        server.wait(prompt, 600)
    return set(work.glob("training-*")) - before


def test_an_interrupted_training_resumes_to_the_same_concept(server: Server) -> None:
    first, other = torch.randn(2, 2, 768, generator=torch.Generator().manual_seed(3)) * 0.02
    embedding(server, "initial", clip_l=first.contiguous())

    def graph_of(prefix: str) -> dict:
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        images, masks = graph.pictures(2)
        train = graph.train(
            model, clip, vae, images, masks, steps=32, batch=1, seed=5, initial_word="embedding:initial", keep="best"
        )
        graph.save([train, 0], prefix)
        return graph.nodes

    work, known, said = server.base / "models" / "perfusion" / ".work", concepts(server), len(server.log())

    on_the_way = set(work.parent.glob("steps/my-monster-*/*"))
    assert len(stopped(server, graph_of("resumed"))) == 1 and "Training stopped at step" in server.log()[said:]
    (so_far,) = set(work.parent.glob("steps/my-monster-*/*")) - on_the_way
    steps = int(so_far.stem)
    assert Concept.load(so_far).training["steps"] == steps >= 25 and concepts(server) == known
    # Of the same name, but not the same: that is another training.
    embedding(server, "initial", clip_l=other.contiguous())
    (another,) = stopped(server, graph_of("resumed"), 2)
    another.unlink()
    embedding(server, "initial", clip_l=first.contiguous())
    assert "Training continues from step" not in server.log()[said:]
    server.run(graph_of("resumed"))
    assert "Training continues from step" in server.log()[said:] and not list(work.glob("training-*"))
    server.free()
    server.run(graph_of("undisturbed"))
    resumed, undisturbed = (
        load_file(server.base / "models" / "perfusion" / f"{name}_00001.safetensors") for name in ("resumed", "undisturbed")
    )
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_a_training_that_ended_before_a_crash_is_there_still(server: Server, setup: Setup) -> None:
    """And one that is asked for once more of the same server is done once more, to the same bytes."""
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, masks, steps=3, batch=2, seed=9, keep="best"), 0], "ended")
    gone_on, log = "Training continues from step 3", len(server.log())
    server.run(graph.nodes)
    assert gone_on not in server.log()[log:]
    with Server(setup, base=server.base, log_name="ended.log") as another:
        for _ in range(2):
            another.free()
            another.run(graph.nodes)
        assert another.log().count(gone_on) == 1
    one, *others = [load_file(path) for path in (server.base / "models" / "perfusion").glob("ended_*")]
    assert len(others) == 2 and all(torch.equal(other[name], one[name]) for other in others for name in one)


def test_a_stopped_training_goes_on_with_less_memory_and_not_with_another_lora(server: Server) -> None:
    """The checkpoint is found again though the LoRA lies in the loaded weights by then."""
    lora = server.base / "models" / "loras" / "beneath.safetensors"
    lora.parent.mkdir(exist_ok=True)
    layer = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    random = torch.Generator().manual_seed(4)
    parts = {"lora_up.weight": torch.randn(320, 1, generator=random), "lora_down.weight": torch.randn(1, 768, generator=random)}
    save_file({f"{layer}.{name}": 0.1 * tensor for name, tensor in parts.items()}, lora)

    def graph_of(strength: float, **widgets: object) -> dict:
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        model = [graph.add("LoraLoaderModelOnly", model=model, lora_name=lora.name, strength_model=strength), 0]
        images, masks = graph.pictures(2)
        graph.save([graph.train(model, clip, vae, images, masks, steps=12, batch=2, seed=6, **widgets), 0], "beneath")
        return graph.nodes

    (first,) = stopped(server, graph_of(1.0), 2)
    (second,) = stopped(server, graph_of(0.5), 2)
    told = server.log().count("Training continues from step")
    server.run(graph_of(1.0, at_once=1))
    assert server.log().count("Training continues from step") == told + 1 and not first.exists() and second.exists()
    second.unlink()


def test_a_word_starts_as_another_word_or_an_embedding(server: Server, trained: tuple) -> None:
    vectors = torch.randn(3, 768, generator=torch.Generator().manual_seed(4)) * 0.02
    embedding(server, "three", clip_l=vectors.half())
    weights = load_file(server.base / "models" / "checkpoints" / CHECKPOINT)
    (table,) = (tensor for name, tensor in weights.items() if name.endswith("token_embedding.weight"))
    cat = table[[2368]].float()
    for word, wanted, mode in (("embedding:three", vectors.half().float(), "none"), ("cat", cat, "exact")):
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        images, _ = graph.pictures(1)
        still = {"steps": 1, "batch": 1, "word_rate": 1e-7, "output_rate": 1e-7, "edit_mode": mode, "initial_word": word}
        graph.save([graph.train(model, clip, vae, images, **still), 0], "started", overwrite=True)
        server.run(graph.nodes)
        concept = Concept.load(server.base / "models" / "perfusion" / "started.safetensors")
        assert concept.training["initial_word"] == word
        torch.testing.assert_close(concept.word["clip_l"], wanted, rtol=0, atol=2e-7)
        assert torch.equal(concept.superclass_encoding, Concept.load(trained[0]).superclass_encoding)


# ---- applying


def test_training_and_applying_leave_the_base_untouched(server: Server, strong: str) -> None:
    def state(name: str) -> tuple[dict, torch.Tensor]:
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        graph.add("CheckpointSave", model=model, clip=clip, vae=vae, filename_prefix=f"states/{name}")
        (found,) = latents(server, graph, graph.sample(model, graph.text(clip, "a monster"), graph.text(clip, ""), seed=len(name)))
        (path,) = (server.base / "output" / "states").glob(f"{name}_*.safetensors")
        weights = load_file(path)
        path.unlink()
        return weights, found

    def draw(seed: int) -> torch.Tensor:
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        return latents(server, graph, graph.sample(model, graph.text(clip, "a monster"), graph.text(clip, ""), seed=seed))[0]

    before, _ = state("before")
    drawn = draw(7)
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    train = graph.train(model, clip, vae, images, masks, steps=3, seed=9)
    with_model, with_clip = graph.apply(model, clip, [train, 0])
    latents(server, graph, graph.sample(with_model, graph.text(with_clip, f"a {TRIGGER}"), graph.text(with_clip, "")))
    after, _ = state("after-all")
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    server.free()
    assert torch.equal(draw(7), drawn)


def test_prompts_without_the_trigger_are_the_base_bit_for_bit(server: Server, strong: str) -> None:
    base, named = base_and(server, strong, ["a monster on the grass", "a photo of a robot", f"a {TRIGGER} on the grass"])
    assert torch.equal(base[0], named[0]) and torch.equal(base[1], named[1])
    assert not torch.allclose(base[2], named[2], atol=0.1)


def test_strength_0_is_the_base(server: Server, strong: str) -> None:
    base, named = base_and(server, strong, [f"a {TRIGGER} on the grass", "a monster"], strength=0.0)
    assert torch.equal(base[0], named[0]) and torch.equal(base[1], named[1])


def test_a_concept_keeps_its_own_values_where_it_is_asked_to(server: Server) -> None:
    """In a row of Load Concepts that sets none, and in Concept Settings if only the trigger word is set."""
    folder = server.base / "models" / "perfusion"
    stored = replace(Concept.load(folder / "demo-monster.safetensors"), strength=0.5, bias=0.3, temperature=0.2)
    stored.save(folder / "stored.safetensors")
    graph = Graph()
    row = graph.add("PerfusionLoadConcepts", concepts=json.dumps([{"name": "stored.safetensors"}]))
    graph.save([row, 0], "kept-by-rows")
    graph.save(graph.load("stored.safetensors", trigger="<renamed>", own_values=True), "kept-by-settings")
    server.run(graph.nodes)
    for name, trigger in (("rows", stored.trigger), ("settings", "<renamed>")):
        found = Concept.load(folder / f"kept-by-{name}_00001.safetensors")
        assert (found.trigger, found.strength, found.bias, found.temperature) == (trigger, 0.5, 0.3, 0.2)


def test_the_papers_form_changes_other_prompts_as_published(server: Server, strong: str) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    samples = []
    for mode in ("exact", "paper", "approximate"):
        m, c = graph.apply(model, clip, graph.load(strong), mode)
        samples += [graph.sample(m, graph.text(c, text), graph.text(c, "")) for text in ("a monster", f"a {TRIGGER}")]
    exact, exact_named, paper, paper_named, approximate, approximate_named = latents(server, graph, *samples)
    assert not torch.equal(exact, paper) and not torch.equal(exact_named, paper_named)
    # With one concept both published forms are Eq. 3.
    torch.testing.assert_close(paper, approximate, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(paper_named, approximate_named, rtol=1e-4, atol=1e-4)


def test_in_one_batch_each_prompt_gets_its_own(server: Server, strong: str) -> None:
    """One Euler step to σ = 0 gives the prediction itself, which guidance and Combine mix linearly."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(strong))
    named, plain = graph.text(c, f"a photo of a {TRIGGER} at night"), graph.text(c, "a photo of a monster")
    base_plain = graph.text(clip, "a photo of a monster")
    both = [graph.add("ConditioningCombine", conditioning_1=named, conditioning_2=plain), 0]
    one = {"steps": 1, "cfg": 1.0}
    alone, base, combined, guided = latents(
        server,
        graph,
        graph.sample(m, named, plain, **one),
        graph.sample(model, base_plain, base_plain, **one),
        graph.sample(m, both, plain, **one),
        graph.sample(m, named, plain, steps=1, cfg=3.0),
    )
    scale = (alone - base).abs().max()
    assert scale > 0.1
    torch.testing.assert_close(combined, (alone + base) / 2, rtol=0, atol=1e-4 * float(scale))
    torch.testing.assert_close(guided, base + 3 * (alone - base), rtol=0, atol=3e-4 * float(scale))


def test_averaged_and_joined_prompts_keep_what_they_name(server: Server, strong: str) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    m, c = graph.apply(model, clip, graph.load(strong))

    def mixed(with_clip: list, one: str, other: str) -> list[list]:
        to, by = graph.text(with_clip, one), graph.text(with_clip, other)
        average = graph.add("ConditioningAverage", conditioning_to=to, conditioning_from=by, conditioning_to_strength=0.5)
        return [[average, 0], [graph.add("ConditioningConcat", conditioning_to=to, conditioning_from=by), 0]]

    blank = graph.text(c, "")
    plain = [graph.sample(x, mix, blank) for x, y in ((model, clip), (m, c)) for mix in mixed(y, "a monster", "a monster at night")]
    # The trigger stands in `from` alone, whose own dictionary these nodes drop.
    named = [graph.sample(m, mix, blank) for mix in mixed(c, "a plant", f"a {TRIGGER}")]
    closed = [graph.sample(model, mix, blank) for mix in mixed(c, "a plant", f"a {TRIGGER}")]
    base_average, base_join, average, join, named_average, named_join, closed_average, closed_join = latents(
        server, graph, *plain, *named, *closed
    )
    assert torch.equal(base_average, average) and torch.equal(base_join, join)
    assert not torch.equal(named_join, closed_join)
    # Half a concept has half its similarity: it may stay under the bias, but never changes more than the whole does.
    assert (named_average - closed_average).abs().max() <= (named_join - closed_join).abs().max() * 4


def test_trigger_words_survive_how_people_write(server: Server, strong: str) -> None:
    filler = "very " * 90
    texts = [
        f"a photo of a {TRIGGER}, at night",
        f"a photo of a ({TRIGGER}:1.0), at night",
        f"a photo of a\n{TRIGGER.upper()}\n, at night",
        f"a photo of a{TRIGGER},at night",
        f"a photo of a ({TRIGGER}:1.3), at night",
        f"a photo of a ({TRIGGER}), at night",
        f"a photo of a ({TRIGGER}:1.1), at night",
        f"{filler} a photo of a {TRIGGER}, at night",
        f"{filler} a photo of a monster, at night",
    ]
    plain, weight_1, upper, glued, heavier, bracketed, weight_1_1, far, far_plain = applied(server, strong, texts)
    assert torch.equal(plain, weight_1) and torch.equal(plain, upper) and torch.equal(plain, glued)
    assert not torch.equal(plain, heavier) and torch.equal(bracketed, weight_1_1)
    assert not torch.allclose(far, far_plain, atol=0.05)


def test_a_missing_trigger_is_warned_of(server: Server, strong: str) -> None:
    log = len(server.log())
    applied(server, strong, ["a robot"], trigger="<unsaid-one>")
    assert "The concept <unsaid-one> is applied, but no prompt contains its trigger word" in server.log()[log:]
    log = len(server.log())
    applied(server, strong, ["a <said-one>"], trigger="<said-one>")
    assert "no prompt contains its trigger word" not in server.log()[log:]


def test_applying_twice_is_applying_the_combined(server: Server, strong: str, trained: tuple) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    one, two = graph.load(strong, trigger="<one>"), graph.load(trained[0].name, trigger="<two>", bias=0.3)
    samples = []
    for first, second in ((one, two), (two, one)):
        chained = graph.apply(*graph.apply(model, clip, first), second)
        for m, c in (chained, graph.apply(model, clip, graph.combine(first, second))):
            samples.append(graph.sample(m, graph.text(c, "a <one> and a <two>"), graph.text(c, "")))
    found = latents(server, graph, *samples)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


# ---- the static edit and its export


@pytest.fixture(scope="session")
def second(strong: str, trained: tuple) -> str:
    """Another concept file: the numbers of the strong one in another order, under a trigger word of its own."""
    concept = Concept.load(trained[0].with_name(strong))
    order = torch.randperm(768, generator=torch.Generator().manual_seed(1))
    path = trained[0].with_name("second.safetensors")
    replace(
        concept,
        trigger="<second-one>",
        superclass="robot",
        word={name: vectors.flip(1) for name, vectors in concept.word.items()},
        target_input=concept.target_input + 0.5 * concept.target_input[order],
        values={layer: o.flip(0) for layer, o in concept.values.items()},
        details={"author": "Bea"},
    ).save(path, torch.float32)
    return path.name


def exported(server: Server, concepts: list[tuple[str, dict]], prefix: str, what: str = "both", lora: str = "") -> str:
    """Export concepts, given as names and settings, from the base or from it with a LoRA; what the node reports."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    if lora:
        model, clip = with_lora(graph, model, clip, lora)
    loaded = [graph.load(name, **settings) for name, settings in concepts]
    concept = graph.combine(*loaded) if len(loaded) > 1 else loaded[0]
    export = graph.add("PerfusionExport", model=model, clip=clip, concept=concept, filename_prefix=prefix, what=what)
    shown = graph.add("PreviewAny", source=[export, 0])
    outputs = server.run(graph.nodes)["outputs"]
    assert outputs[export]["text"][0] == outputs[shown]["text"][0]
    assert all(line in server.log() for line in outputs[shown]["text"][0].splitlines())
    return outputs[shown]["text"][0]


def with_lora(graph: Graph, model: list, clip: list, name: str) -> tuple[list, list]:
    """The host's own Load LoRA, of the model alone."""
    key = graph.add("LoraLoader", model=model, clip=clip, lora_name=name, strength_model=1.0, strength_clip=0.0)
    return [key, 0], [key, 1]


def files(server: Server, kind: str) -> set[str]:
    """The files that there are in models/loras or models/embeddings."""
    folder = server.base / "models" / kind
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_static_edit_acts_in_every_prompt_and_trains(server: Server, strong: str) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, masks, steps=2, batch=2, edit_mode="static"), 0], "static")
    m, c = graph.apply(model, clip, graph.load(strong), "static")
    base, static = latents(
        server, graph, *(graph.sample(x, graph.text(y, "a monster"), graph.text(y, "")) for x, y in ((model, clip), (m, c)))
    )
    assert not torch.allclose(base, static, atol=0.1)
    taught = Concept.load(server.base / "models" / "perfusion" / "static_00001.safetensors")
    assert taught.training["mode"] == "static" and taught.training["steps"] == 2


@pytest.fixture(scope="session")
def single_and_pair(server: Server, strong: str, second: str) -> None:
    """The strong concept exported as animals/single_00001, and it and the second one together as pair_00001."""
    report = exported(server, [(strong, {})], "animals/single")
    assert "write embedding:animals/single_00001 instead of <my-monster>" in report
    report = exported(server, [(strong, {}), (second, {"bias": 0.5, "strength": 0.8})], "pair")
    assert "write embedding:pair_00001_second-one instead of <second-one>" in report


@pytest.mark.usefixtures("single_and_pair")
def test_the_stock_loader_draws_the_static_edit(server: Server, strong: str, second: str) -> None:
    """Weights that hold the edit, against the edit added to what they give.

    Both compute in float32 and differ by its rounding, 6e-8 of each layer's output, which two guided steps let grow: to about
    3e-6 of the latents' largest number, as measured. Without the LoRA, without the embedding and with the gated edit it is another
    picture, two orders beyond what is let pass; the embedding alone changes about 1 % here.
    """
    near = 5e-5
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    one, two = graph.load(strong), graph.load(second, bias=0.5, strength=0.8)
    stack = graph.combine(one, two)
    pair = "embedding:pair_00001_my-monster", "embedding:pair_00001_second-one"
    samples = []
    for concept, lora, triggers, words in (
        (one, "animals/single_00001", (TRIGGER, "robot"), ("embedding:animals/single_00001", "robot")),
        (stack, "pair_00001", (TRIGGER, "<second-one>"), pair),
    ):
        named, said, plain = (
            "a photo of a {} at night, and a {}".format(*each) for each in (triggers, words, ("monster", "robot"))
        )
        loaded = with_lora(graph, model, clip, f"{lora}.safetensors")
        drawn = (
            (graph.apply(model, clip, concept, "static"), named),
            (loaded, said),
            ((model, clip), said),
            (loaded, plain),
            (graph.apply(model, clip, concept, "exact"), named),
        )
        samples += [graph.sample(m, graph.text(c, text), graph.text(c, ""), steps=2, cfg=9.0) for (m, c), text in drawn]
    found = latents(server, graph, *samples)
    for static, loaded, *others in (found[:5], found[5:]):
        scale = float(static.abs().max())
        torch.testing.assert_close(loaded, static, rtol=0, atol=near * scale)
        apart = [float((other - static).abs().max()) / scale for other in others]
        assert min(apart) > 100 * near, apart


def test_an_export_keeps_what_is_there_and_holds_the_bias(server: Server, strong: str) -> None:
    known = files(server, "loras"), files(server, "embeddings")
    for bias, what in ((0.4, "both"), (0.4, "embedding"), (1.0, "LoRA")):
        exported(server, [(strong, {"bias": bias})], "counted", what)
    new = [files(server, kind) - before for kind, before in zip(("loras", "embeddings"), known, strict=True)]
    assert new == [{f"counted_0000{i}.safetensors" for i in numbers} for numbers in ((1, 3), (1, 2))]
    low, high = (load_file(server.base / "models" / "loras" / f"counted_0000{i}.safetensors") for i in (1, 3))
    assert len(low) == 3 * 2 * 7
    opened = 1 / (1 + torch.exp(torch.tensor(-(1 - 0.4) / 0.15)))
    for name, tensor in low.items():
        if name.endswith("lora_up.weight"):
            assert tensor.abs().max() > 0
            torch.testing.assert_close(2 * opened * high[name], tensor)
        else:
            assert torch.equal(high[name], tensor)


@pytest.mark.usefixtures("single_and_pair")
def test_no_two_embeddings_have_one_name_in_different_folders(server: Server, strong: str) -> None:
    """In a prompt both would be called by it, and the host takes whichever it meets first."""
    assert "embedding:single_00002" in exported(server, [(strong, {})], "single", "embedding")


@pytest.mark.usefixtures("single_and_pair")
def test_the_host_reads_an_exports_metadata(server: Server) -> None:
    told = server.get("/view_metadata/loras?filename=pair_00001.safetensors")
    words = ["embedding:pair_00001_my-monster", "embedding:pair_00001_second-one"]
    assert json.loads(told["trained_words"]) == words and told["modelspec.trigger_phrase"] == ", ".join(words)
    assert told["modelspec.title"] == "my-monster and second-one" and told["superclass"] == "monster, robot"
    assert (told["modelspec.author"], told["modelspec.license"]) == ("Ann, Bea", "CC BY 4.0")
    told = server.get("/view_metadata/embeddings?filename=pair_00001_second-one.safetensors")
    assert json.loads(told["trained_words"]) == words[1:] and told["modelspec.author"] == "Bea"


@pytest.mark.usefixtures("single_and_pair")
def test_an_export_is_made_of_the_model_with_its_loras(server: Server, strong: str) -> None:
    """W i* is that of the weights and a LoRA together, as it is for the static edit on such a model."""
    exported(server, [(strong, {"bias": 0.9})], "under", "LoRA")
    exported(server, [(strong, {})], "over", lora="under_00001.safetensors")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    under = with_lora(graph, model, clip, "under_00001.safetensors")
    samples = [
        graph.sample(m, graph.text(c, f"a {TRIGGER}"), graph.text(c, ""))
        for m, c in [graph.apply(*under, graph.load(strong), "static")]
    ]
    for name in ("over_00001.safetensors", "animals/single_00001.safetensors"):
        m, c = with_lora(graph, *under, name)
        samples.append(graph.sample(m, graph.text(c, "a embedding:over_00001"), graph.text(c, "")))
    static, over, of_base = latents(server, graph, *samples)
    scale = float(static.abs().max())
    torch.testing.assert_close(over, static, rtol=0, atol=5e-5 * scale)
    assert (of_base - static).abs().max() > 0.02 * scale


# ---- words alone


def test_a_word_alone_is_what_a_stock_embedding_is(server: Server, alone: str) -> None:
    concept = Concept.load(server.base / "models" / "perfusion" / alone)
    assert not concept.values and not concept.keys and concept.training["mode"] == "none"
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    samples = []
    # The paper's form would change every prompt, if there were an edit.
    for mode, text in itertools.product(("exact", "paper"), ("a photo of a {} on the grass, (a {}:1.2)", "a monster at night")):
        m, c = graph.apply(model, clip, graph.load(alone), mode)
        samples += [
            graph.sample(model, graph.text(clip, text.replace("{}", "embedding:alone")), graph.text(clip, "")),
            graph.sample(m, graph.text(c, text.replace("{}", "<alone>")), graph.text(c, "")),
        ]
    samples.append(
        graph.sample(model, graph.text(clip, "a photo of a monster on the grass, (a monster:1.2)"), graph.text(clip, ""))
    )
    *found, monster = latents(server, graph, *samples)
    assert all(torch.equal(stock, ours) for stock, ours in zip(found[::2], found[1::2], strict=True))
    assert not torch.allclose(found[0], monster, atol=0.05)


def test_words_alone_stand_beside_concepts(server: Server, alone: str, strong: str) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    word, concept = graph.load(alone), graph.load(strong)
    both = [
        graph.apply(model, clip, graph.combine(concept, word)),
        graph.apply(*graph.apply(model, clip, word), concept),
        graph.apply(*graph.apply(model, clip, concept), word),
    ]
    prompts = ("a <alone> on the grass", f"a {TRIGGER} on the grass", f"a {TRIGGER} and a <alone>", "a monster")
    ways = [(model, clip), graph.apply(model, clip, concept), *both]
    samples = [graph.sample(m, graph.text(c, prompt), graph.text(c, ""), steps=1) for prompt in prompts for m, c in ways]
    samples.append(graph.sample(model, graph.text(clip, "a embedding:alone on the grass"), graph.text(clip, ""), steps=1))
    *found, stock = latents(server, graph, *samples)
    drawn = {prompt: found[i * len(ways) : (i + 1) * len(ways)] for i, prompt in enumerate(prompts)}
    for _, _, combined, one_way, other_way in drawn.values():
        assert torch.equal(combined, one_way) and torch.equal(combined, other_way)
    word_named, concept_named, both_named, neither = (drawn[prompt] for prompt in prompts)
    assert torch.equal(word_named[2], stock) and torch.equal(concept_named[2], concept_named[1])
    assert torch.equal(neither[2], neither[0])
    assert not any(torch.allclose(both_named[2], other, atol=0.05) for other in both_named[:2])


# ---- what is refused


def refused(server: Server, graph: Graph, *words: str) -> None:
    """The graph fails with one sentence that holds these words, and no concept file is written."""
    known = concepts(server)
    with pytest.raises(GraphError) as failure:
        server.run(graph.nodes)
    message = str(failure.value)
    for word in words:
        assert word in message
    assert "\n" not in message.strip() and "Traceback" not in message
    assert concepts(server) == known


@pytest.mark.parametrize(
    ("widgets", "words"),
    [
        ({"superclass": "  "}, ["superclass"]),
        ({"trigger": "my teddy"}, ["angle brackets", "my teddy"]),
        ({"trigger": "<a:b>"}, ["angle brackets"]),
        ({"steps": 0}, ["steps", "min"]),
        ({"size": 68}, ["size"]),
    ],
)
def test_training_refuses_settings_that_cannot_work(server: Server, widgets: dict, words: list[str]) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, masks = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, masks, **widgets), 0], "refused")
    refused(server, graph, *words)


def test_training_refuses_masks_that_do_not_fit(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, _ = graph.pictures(3)
    _, masks = graph.pictures(2)
    graph.save([graph.train(model, clip, vae, images, masks), 0], "refused")
    refused(server, graph, "3 images and 2 masks")
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, _ = graph.pictures(1)
    blank = graph.add("SolidMask", value=0.0, width=64, height=64)
    graph.save([graph.train(model, clip, vae, images, [blank, 0]), 0], "refused")
    refused(server, graph, "empty")


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("embedding:nowhere", ["no embedding 'nowhere'", "models/embeddings"]),
        ("a cat embedding:nowhere", ["no embedding 'nowhere'"]),
        ("embedding:", ["no embedding ''"]),
        ("embedding:empty", ["no embedding 'empty'"]),
        ("embedding:narrow", ["width 64", "768", "another base"]),
        ("embedding:long", ["1 to 32 vectors", "33"]),
        ("embedding:longer", ["1 to 32 vectors", "200"]),
        ("cat " * 40, ["1 to 32 vectors", "40"]),
    ],
)
def test_training_refuses_an_initial_word_that_cannot_be(server: Server, word: str, words: list[str]) -> None:
    for name, shape in (("narrow", (1, 64)), ("long", (33, 768)), ("longer", (200, 768))):
        embedding(server, name, clip_l=torch.zeros(shape))
    embedding(server, "empty")
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    images, _ = graph.pictures(1)
    graph.save([graph.train(model, clip, vae, images, initial_word=word), 0], "refused")
    refused(server, graph, *words)


def test_training_refuses_no_images(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    key = graph.train(model, clip, vae, ["0", 0])
    del graph.nodes[key]["inputs"]["images"]
    graph.save([key, 0], "refused")
    refused(server, graph, "images")
    (server.base / "input" / "nothing").mkdir()
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    folder = graph.add("LoadImageDataSetFromFolder", folder="nothing")
    graph.save([graph.train(model, clip, vae, [folder, 0]), 0], "refused")
    refused(server, graph, "images")


def test_training_refuses_a_trigger_that_is_taken(server: Server, strong: str) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    _, with_clip = graph.apply(model, clip, graph.load(strong))
    images, _ = graph.pictures(1)
    graph.save([graph.train(model, with_clip, vae, images), 0], "refused")
    refused(server, graph, TRIGGER, "already has a concept")
    for mode, sentence in (("exact", "already has a concept"), ("paper", "already has concepts in the edit mode 'exact'")):
        graph = Graph()
        model, clip, vae = graph.checkpoint()
        with_edit, _ = graph.apply(model, clip, graph.load(strong))
        images, _ = graph.pictures(1)
        graph.save([graph.train(with_edit, clip, vae, images, edit_mode=mode), 0], "refused")
        refused(server, graph, sentence)


def test_two_concepts_with_one_trigger_are_refused(server: Server, strong: str, trained: tuple) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    one, two = graph.load(strong), graph.load(trained[0].name)
    m, c = graph.apply(model, clip, graph.combine(one, two))
    graph.add("SaveLatent", samples=graph.sample(m, graph.text(c, "a"), graph.text(c, "")), filename_prefix="refused")
    refused(server, graph, TRIGGER, "trigger word")


def test_concepts_of_another_base_are_refused(server: Server, strong: str) -> None:
    folder = server.base / "models" / "perfusion"
    concept = Concept.load(folder / strong)
    fewer = dict(list(concept.values.items())[:3])
    for name, other, words in (
        ("family", replace(concept, family="sd2"), ["sd2", "sd1"]),
        ("layers", replace(concept, values=fewer), ["a different shape", "3", "7"]),
        ("encoders", replace(concept, word={"clip_h": torch.zeros(1, 1024)}), ["clip_h", "clip_l"]),
    ):
        other.save(folder / f"other-{name}.safetensors", torch.float32)
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        m, c = graph.apply(model, clip, graph.load(f"other-{name}.safetensors"))
        graph.add("SaveLatent", samples=graph.sample(m, graph.text(c, "a"), graph.text(c, "")), filename_prefix="refused")
        refused(server, graph, *words)


def test_a_broken_concept_file_is_refused_before_the_graph_runs(server: Server, strong: str) -> None:
    folder = server.base / "models" / "perfusion"
    content = (folder / strong).read_bytes()
    (folder / "broken-short.safetensors").write_bytes(content[:-100])
    (folder / "broken-pickle.safetensors").write_bytes(b"\x80\x04.")
    (folder / "broken-version.safetensors").write_bytes(content.replace(b'"version":"1"', b'"version":"9"'))
    tensors, metadata = parse(content, folder / strong)
    save_file(tensors | {"target_input": tensors["target_input"] * float("nan")}, folder / "broken-nan.safetensors", metadata)
    for name, word in (("short", "complete"), ("pickle", "complete"), ("version", "version"), ("nan", "NaN")):
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        m, c = graph.apply(model, clip, graph.load(f"broken-{name}.safetensors"))
        graph.add("SaveLatent", samples=graph.sample(m, graph.text(c, "a"), graph.text(c, "")), filename_prefix="refused")
        refused(server, graph, f"broken-{name}.safetensors", word)


def test_too_few_captions_are_refused(server: Server) -> None:
    graph = Graph()
    _, clip, _ = graph.checkpoint()
    measured = graph.add("PerfusionCovariance", clip=clip, captions="a cat\na dog", captions_file="")
    graph.add("PreviewAny", source=[measured, 1])
    refused(server, graph, "more captions")


@pytest.mark.parametrize(
    ("settings", "widgets", "words"),
    [
        ({}, {"filename_prefix": "  "}, ["name", "filename_prefix"]),
        ({}, {"filename_prefix": "my teddy"}, ["embedding", "my teddy"]),
        ({}, {"filename_prefix": "../out"}, ["outside", "../out"]),
        ({"strength": 0.0}, {}, ["strength 0"]),
        ({"bias": 2.0, "temperature": 0.1}, {}, ["never opens", "bias"]),
    ],
)
def test_an_export_refuses_what_cannot_be_used(
    server: Server, strong: str, settings: dict, widgets: dict, words: list[str]
) -> None:
    known = files(server, "loras"), files(server, "embeddings")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    concept = graph.load(strong, **settings)
    graph.add(
        "PerfusionExport", model=model, clip=clip, concept=concept, **{"filename_prefix": "refused", "what": "both"} | widgets
    )
    refused(server, graph, *words)
    assert (files(server, "loras"), files(server, "embeddings")) == known


def test_a_word_alone_has_no_lora(server: Server, alone: str) -> None:
    for what in ("both", "LoRA", "embedding"):
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        graph.add("PerfusionExport", model=model, clip=clip, concept=graph.load(alone), filename_prefix="bare", what=what)
        if what == "embedding":
            server.run(graph.nodes)
        else:
            refused(server, graph, "<alone>", "a LoRA cannot contain")
    assert "bare_00001.safetensors" in files(server, "embeddings") and "bare_00001.safetensors" not in files(server, "loras")


def test_an_export_refuses_models_that_the_concept_is_not_for(server: Server, strong: str) -> None:
    folder, known = server.base / "models" / "perfusion", (files(server, "loras"), files(server, "embeddings"))
    replace(Concept.load(folder / strong), family="sd2").save(folder / "export-family.safetensors", torch.float32)
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    given = {"model": model, "filename_prefix": "refused", "what": "both"}
    graph.add("PerfusionExport", clip=clip, concept=graph.load("export-family.safetensors"), **given)
    refused(server, graph, "sd2", "sd1")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    concept = graph.load(strong)
    graph.add("PerfusionExport", clip=graph.apply(model, clip, concept)[1], concept=concept, **given)
    refused(server, graph, TRIGGER, "already")
    assert (files(server, "loras"), files(server, "embeddings")) == known


def test_a_concept_is_not_saved_outside_of_its_folder(server: Server, strong: str) -> None:
    graph = Graph()
    graph.save(graph.load(strong), "../../elsewhere")
    refused(server, graph, "outside")
    assert not list(server.base.rglob("elsewhere*"))


def test_a_concept_says_on_which_layer_of_the_text_encoder_it_was_taught(server: Server, trained: tuple) -> None:
    assert Concept.load(trained[0]).training["clip_layer"] == -1
    said = []
    for layer in (-1, -2):
        graph, start = Graph(), len(server.log())
        model, clip, _ = graph.checkpoint()
        other = [graph.add("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=layer), 0]
        model, clip = graph.apply(model, other, graph.load(trained[0].name))
        latents(server, graph, graph.sample(model, graph.text(clip, f"a {TRIGGER}"), graph.text(clip, "")))
        said.append("was trained with layer -1 of the text encoder, but this CLIP is set to layer -2" in server.log()[start:])
    assert said == [False, True]
