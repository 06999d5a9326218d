"""Concepts in graphs of other nodes: what those do stays, what the concept does stays, and plain prompts stay to the bit.

Other packs are played by other_packs.py, through what the host offers them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scripts.generate import make_workflows
from scripts.harness.differences import worst
from scripts.harness.graphs import Graph, Link, latents
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import CHECKPOINT

CONCEPT, TRIGGER = "demo-monster.safetensors", "<demo-monster>"
BIAS = make_workflows.SETTINGS["bias"]
PLAIN, NAMED = "a photo of a monster on the grass", f"a photo of a {TRIGGER} on the grass"
LORA, CONTROL = "neighbour.safetensors", "neighbour-control.safetensors"
UNET = "model.diffusion_model."
ROUNDING = 2e-5
"""What the order of nodes may change, by float32's rounding in two guided steps, as a share of the largest latent."""
SEEN = 0.01
"""What counts as a difference; concepts and neighbours alike make far larger ones."""

Both = tuple[Link, Link]
Patch = Callable[[Graph, Link, Link], Both]
Condition = Callable[[Graph, Link, str], Link]


# ---- what neighbours need


@pytest.fixture(scope="module", autouse=True)
def files(server: Server) -> None:
    """A LoRA of the UNet and the text encoder, and a ControlNet; of seeded numbers."""
    models = server.base / "models"
    for folder in ("loras", "controlnet"):
        (models / folder).mkdir(exist_ok=True)
    save_file(lora_weights(), models / "loras" / LORA)
    save_file(control_weights(models / "checkpoints" / CHECKPOINT), models / "controlnet" / CONTROL)


def lora_weights() -> dict[str, torch.Tensor]:
    """Of three layers of the UNet, one of them a projection that concepts edit, and one of the text encoder."""
    random = torch.Generator().manual_seed(0)
    layers = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v": (320, 768),
        "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k": (320, 768),
        "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_v": (320, 320),
        "lora_te_text_model_encoder_layers_2_mlp_fc1": (3072, 768),
    }
    weights = {}
    for layer, (rows, columns) in layers.items():
        weights[f"{layer}.lora_up.weight"] = 0.3 * torch.randn(rows, 2, generator=random)
        weights[f"{layer}.lora_down.weight"] = 0.3 * torch.randn(2, columns, generator=random)
    return weights


def control_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The demo UNet's own encoder, a picture's convolutions before it, and what leads out of it, not zero."""
    random = torch.Generator().manual_seed(1)
    with safe_open(checkpoint, "pt") as opened:
        names = [name for name in opened.keys() if name.startswith(UNET)]  # noqa: SIM118
        kept = [name for name in names if name.removeprefix(UNET).startswith(("input_blocks.", "middle_block.", "time_embed."))]
        weights = {f"control_model.{name.removeprefix(UNET)}": opened.get_tensor(name) for name in kept}
    widths = (3, 16, 16, 32, 32, 96, 96, 256, 320)
    sizes = {f"input_hint_block.{2 * i}": (out, into, 3) for i, (into, out) in enumerate(itertools.pairwise(widths))}
    sizes |= {f"zero_convs.{i}.0": (320, 320, 1) for i in range(4)} | {"middle_block_out.0": (320, 320, 1)}
    for name, (out, into, side) in sizes.items():
        weight = torch.randn(out, into, side, side, generator=random) / (into * side * side) ** 0.5
        weights |= {f"control_model.{name}.weight": weight.half(), f"control_model.{name}.bias": torch.zeros(out).half()}
    return weights


# ---- nodes between Apply Concept and the sampler, or before it


def patched(class_type: str, **widgets: object) -> Patch:
    """A node that takes a MODEL and gives one."""
    return lambda graph, model, clip: ([graph.add(class_type, model=model, **widgets), 0], clip)


def with_lora(class_type: str) -> Patch:
    """A node that brings the LoRA to MODEL and CLIP."""

    def add(graph: Graph, model: Link, clip: Link) -> Both:
        key = graph.add(class_type, model=model, clip=clip, lora_name=LORA, strength_model=1.0, strength_clip=1.0)
        return [key, 0], [key, 1]

    return add


def merged(graph: Graph, model: Link, clip: Link) -> Both:
    """Half the MODEL, half the same base with the LoRA; what the MODEL carries besides weights is the first's."""
    other = graph.add("LoraLoaderModelOnly", model=graph.checkpoint()[0], lora_name=LORA, strength_model=1.0)
    return [graph.add("ModelMergeSimple", model1=model, model2=[other, 0], ratio=0.5), 0], clip


PATCHES: dict[str, Patch] = {
    "LoraLoader": with_lora("LoraLoader"),
    "LoraLoaderBypass": with_lora("LoraLoaderBypass"),
    "ModelMergeSimple": merged,
    "PerturbedAttentionGuidance": patched("PerturbedAttentionGuidance", scale=20.0),
    "SelfAttentionGuidance": patched("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0),
    "NAGuidance": patched("NAGuidance", nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5),
    "HyperTile": patched("HyperTile", tile_size=32, swap_size=1, max_depth=0, scale_depth=False),
    "TomePatchModel": patched("TomePatchModel", ratio=0.5),
    "UNetCrossAttentionMultiply": patched("UNetCrossAttentionMultiply", q=1.2, k=1.0, v=1.1, out=1.0),
    "PatchModelAddDownscale": patched(
        "PatchModelAddDownscale", block_number=2, downscale_factor=2.0, start_percent=0.0, end_percent=1.0,
        downscale_after_skip=True, downscale_method="bilinear", upscale_method="bilinear",
    ),
    "RescaleCFG": patched("RescaleCFG", multiplier=0.7),
    "TestMoreTokens": patched("TestMoreTokens"),
    "TestMoreOutput": patched("TestMoreOutput"),
    "TestSecondAttention": patched("TestSecondAttention"),
    "TestOwnAttention": patched("TestOwnAttention"),
}  # fmt: skip


@pytest.mark.parametrize("name", PATCHES)
def test_beside_what_patches_the_model(server: Server, name: str) -> None:
    graph, neighbour = Graph(), PATCHES[name]
    model, clip, _ = graph.checkpoint()
    concept, bare = graph.load(CONCEPT, bias=BIAS), neighbour(graph, model, clip)
    alone = graph.apply(model, clip, concept)
    after, before = neighbour(graph, *alone), graph.apply(*bare, concept)

    def drawn(model: Link, clip: Link, text: str) -> Link:
        return graph.sample(model, graph.text(clip, text), graph.text(clip, ""), steps=2)

    plain = [drawn(*both, PLAIN) for both in (bare, after, before)]
    named = [drawn(*both, NAMED) for both in (after, before, (bare[0], before[1]), alone)]
    base, plain_after, plain_before, named_after, named_before, no_edit, no_neighbour = latents(server, graph, *plain, *named)
    assert torch.equal(plain_after, base) and torch.equal(plain_before, base)
    assert worst(named_after, named_before) < ROUNDING
    assert worst(named_after, no_edit) > SEEN and worst(named_after, no_neighbour) > SEEN


@pytest.mark.parametrize("name", ["TestSecondAttention", "TestMoreTokens"])
def test_a_concept_acts_regardless_of_its_region_in_layers_that_regions_do_not_reach(server: Server, name: str) -> None:
    graph, neighbour = Graph(), PATCHES[name]
    model, clip, _ = graph.checkpoint()
    black, white = ([graph.add("SolidMask", value=value, width=w, height=64), 0] for value, w in ((0.0, 64), (1.0, 32)))
    left = [graph.add("MaskComposite", destination=black, source=white, x=0, y=0, operation="add"), 0]
    bare = neighbour(graph, model, clip)
    placed, whole = (graph.apply(*bare, graph.load(CONCEPT, bias=BIAS, **region)) for region in ({"region": left}, {}))

    def drawn(model: Link, clip: Link) -> Link:
        return graph.sample(model, graph.text(clip, NAMED), graph.text(clip, ""), steps=2)

    log = len(server.log())
    found, wanted, no_edit = latents(server, graph, *(drawn(*both) for both in (placed, whole, (bare[0], placed[1]))))
    assert worst(found, wanted) < ROUNDING and worst(found, no_edit) > SEEN
    assert ("changes the number of tokens" in server.log()[log:]) == (name == "TestMoreTokens")


# ---- nodes between the text and the sampler


def two_halves(graph: Graph, clip: Link, text: str) -> Link:
    """The prompt in the first half of the steps, another in the second."""
    parts = []
    for prompt, start, end in ((text, 0.0, 0.5), ("a plant at night", 0.5, 1.0)):
        given = {"conditioning": graph.text(clip, prompt), "start": start, "end": end}
        parts.append([graph.add("ConditioningSetTimestepRange", **given), 0])
    return [graph.add("ConditioningCombine", conditioning_1=parts[0], conditioning_2=parts[1]), 0]


def with_a_plant(class_type: str, first: str, second: str, **widgets: object) -> Condition:
    """A node that takes the prompt and another."""
    return lambda graph, clip, text: [
        graph.add(class_type, **{first: graph.text(clip, text), second: graph.text(clip, "a plant at night")}, **widgets), 0
    ]  # fmt: skip


def in_an_area(graph: Graph, clip: Link, text: str) -> Link:
    """The prompt in the left half, another everywhere."""
    area = {"width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
    left = [graph.add("ConditioningSetAreaPercentage", conditioning=graph.text(clip, text), **area), 0]
    other = graph.text(clip, "a plant at night")
    return [graph.add("ConditioningCombine", conditioning_1=left, conditioning_2=other), 0]


def in_a_mask(graph: Graph, clip: Link, text: str) -> Link:
    """The prompt at half strength in a mask, another everywhere."""
    black, white = ([graph.add("SolidMask", value=value, width=width, height=64), 0] for value, width in ((0.0, 64), (1.0, 32)))
    mask = [graph.add("MaskComposite", destination=black, source=white, x=16, y=0, operation="add"), 0]
    given = {"conditioning": graph.text(clip, text), "mask": mask, "strength": 0.8, "set_cond_area": "default"}
    masked, other = [graph.add("ConditioningSetMask", **given), 0], graph.text(clip, "a plant at night")
    return [graph.add("ConditioningCombine", conditioning_1=masked, conditioning_2=other), 0]


def controlled(graph: Graph, clip: Link, text: str) -> Link:
    """With a ControlNet that looks at a picture."""
    image, net = graph.add("LoadImage", image="monster-0.png"), graph.add("ControlNetLoader", control_net_name=CONTROL)
    positive = graph.text(clip, text)
    given = {"positive": positive, "negative": positive, "control_net": [net, 0], "image": [image, 0]}
    return [graph.add("ControlNetApplyAdvanced", **given, strength=0.5, start_percent=0.0, end_percent=1.0), 0]


def with_scheduled_lora(graph: Graph, clip: Link, text: str) -> Link:
    """With the LoRA as a hook, whose strength changes halfway."""
    hooks = [graph.add("CreateHookLora", lora_name=LORA, strength_model=1.0, strength_clip=1.0), 0]
    early = [graph.add("CreateHookKeyframe", strength_mult=0.3, start_percent=0.0), 0]
    both = [graph.add("CreateHookKeyframe", strength_mult=1.0, start_percent=0.5, prev_hook_kf=early), 0]
    timed = [graph.add("SetHookKeyframes", hooks=hooks, hook_kf=both), 0]
    hooked = graph.add("SetClipHooks", clip=clip, hooks=timed, apply_to_conds=True, schedule_clip=True)
    return graph.text([hooked, 0], text)


CONDITIONS: dict[str, Condition] = {
    "ConditioningCombine": with_a_plant("ConditioningCombine", "conditioning_1", "conditioning_2"),
    "ConditioningConcat": with_a_plant("ConditioningConcat", "conditioning_to", "conditioning_from"),
    "ConditioningAverage": with_a_plant(
        "ConditioningAverage", "conditioning_to", "conditioning_from", conditioning_to_strength=0.9
    ),
    "ConditioningSetTimestepRange": two_halves,
    "ConditioningSetAreaPercentage": in_an_area,
    "ConditioningSetMask": in_a_mask,
    "ControlNetApplyAdvanced": controlled,
    "CreateHookLora": with_scheduled_lora,
    "a prompt of two sections": lambda graph, clip, text: graph.text(clip, "very " * 80 + text),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_beside_what_changes_the_conditioning(server: Server, name: str) -> None:
    graph, neighbour = Graph(), CONDITIONS[name]
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))

    def drawn(model: Link, positive: Link) -> Link:
        return graph.sample(model, positive, graph.text(clip, ""), steps=3)

    drawings = [drawn(model, neighbour(graph, clip, PLAIN)), drawn(with_model, neighbour(graph, with_clip, PLAIN))]
    named = neighbour(graph, with_clip, NAMED)
    drawings += [drawn(with_model, named), drawn(model, named), drawn(with_model, graph.text(with_clip, NAMED))]
    base, plain, both, no_edit, no_neighbour = latents(server, graph, *drawings)
    assert torch.equal(plain, base)
    assert worst(both, no_edit) > SEEN and worst(both, no_neighbour) > SEEN


# ---- guiders


def two_models(graph: Graph, model: Link, positive: Link, negative: Link, blank: Link) -> Link:
    """The MODEL for the prompt, the base for the negative."""
    other = graph.checkpoint()[0]
    return [graph.add("DualModelGuider", model=model, model_negative=other, positive=positive, negative=negative, cfg=3.0), 0]


GUIDERS: dict[str, Callable[[Graph, Link, Link, Link, Link], Link]] = {
    "DualCFGGuider": lambda graph, model, positive, negative, blank: [
        graph.add(
            "DualCFGGuider", model=model, cond1=positive, cond2=negative, negative=blank, cfg_conds=3.0, cfg_cond2_negative=2.0,
            style="regular",
        ), 0
    ],
    "PerpNegGuider": lambda graph, model, positive, negative, blank: [
        graph.add(
            "PerpNegGuider", model=model, positive=positive, negative=negative, empty_conditioning=blank, cfg=3.0, neg_scale=1.0
        ), 0
    ],
    "DualModelGuider": two_models,
}  # fmt: skip


@pytest.mark.parametrize("name", GUIDERS)
def test_beside_guiders_of_more_than_two_prompts_or_one_model(server: Server, object_info: dict, name: str) -> None:
    """The negative prompt is the plain word, at which gates would open if they were asked alone."""
    if name not in object_info:
        pytest.skip(f"this ComfyUI has no {name}")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))

    def drawn(model: Link, clip: Link, text: str) -> Link:
        positive, negative, blank = (graph.text(clip, each) for each in (text, "a monster", ""))
        return graph.guided(GUIDERS[name](graph, model, positive, negative, blank))

    usual = graph.add("CFGGuider", model=model, positive=graph.text(clip, PLAIN), negative=graph.text(clip, ""), cfg=3.0)
    drawings = [drawn(model, clip, PLAIN), drawn(with_model, with_clip, PLAIN), graph.guided([usual, 0])]
    drawings += [drawn(with_model, with_clip, NAMED), drawn(model, with_clip, NAMED)]
    base, plain, unguided, named, no_edit = latents(server, graph, *drawings)
    assert torch.equal(plain, base) and worst(named, no_edit) > SEEN and worst(base, unguided) > SEEN


def test_of_two_models_the_first_ones_concepts_act_in_a_negative_that_names_them(server: Server, object_info: dict) -> None:
    """As the host gives the second what the first carries; where only the second carries a concept, it does not act."""
    if "DualModelGuider" not in object_info:
        pytest.skip("this ComfyUI has no DualModelGuider")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    positive, negative = graph.text(clip, "a plant"), graph.text(with_clip, NAMED)

    def drawn(one: Link, other: Link, negative: Link) -> Link:
        parts = {"positive": positive, "negative": negative, "cfg": 3.0}
        return graph.guided([graph.add("DualModelGuider", model=one, model_negative=other, **parts), 0])

    models = ((model, model), (model, with_model), (with_model, model), (with_model, with_model))
    usual = graph.add("CFGGuider", model=with_model, positive=positive, negative=negative, cfg=3.0)
    base, second, first, both, one_model = latents(
        server, graph, *(drawn(*each, negative) for each in models), graph.guided([usual, 0])
    )
    assert torch.equal(second, base) and torch.equal(first, both) and worst(first, base) > SEEN
    assert worst(first, one_model) < ROUNDING


# ---- what is neither before nor behind


def test_a_merge_takes_the_second_models_weights_alone(server: Server) -> None:
    """Concepts are carried by the first; of the second only weights go into the merge."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    text, blank = graph.text(with_clip, NAMED), graph.text(clip, "")
    merges = [[graph.add("ModelMergeSimple", model1=model, model2=other, ratio=0.5), 0] for other in (model, with_model)]
    of_bases, with_second = latents(server, graph, *(graph.sample(each, text, blank, steps=2) for each in merges))
    assert torch.equal(of_bases, with_second)


def test_a_saved_checkpoint_is_the_base_without_the_concept(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    graph.add("CheckpointSave", model=with_model, clip=with_clip, vae=vae, filename_prefix="applied")
    server.run(graph.nodes)
    (path,) = (server.base / "output").glob("applied_*.safetensors")
    base, saved = load_file(server.base / "models" / "checkpoints" / CHECKPOINT), load_file(path)
    path.unlink()
    parts = [name for name in base if name.startswith((UNET, "cond_stage_model."))]
    assert len(parts) > 400 and all(torch.equal(saved[name].half(), base[name]) for name in parts)
    assert not [name for name in saved if "perfusion" in name]


def test_a_clone_for_another_card_carries_the_concept(server: Server, object_info: dict) -> None:
    if "MultiGPU_WorkUnits" not in object_info:
        pytest.skip("this ComfyUI has no node that moves a model to another GPU")
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    clone = [graph.add("TestOnAnotherDevice", model=with_model), 0]
    samples = [
        graph.sample(each, graph.text(with_clip, text), graph.text(clip, ""), steps=2)
        for text in (NAMED, PLAIN)
        for each in (with_model, clone)
    ]
    named, cloned, plain, plain_cloned = latents(server, graph, *samples)
    assert torch.equal(named, cloned) and torch.equal(plain, plain_cloned) and worst(named, plain) > SEEN


def test_context_windows_see_the_concept(server: Server) -> None:
    """Four latents in windows of two: each is what it is in a batch of four."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    empty = graph.add("EmptyLatentImage", width=64, height=64, batch_size=4)

    def windowed(model: Link) -> Link:
        key = graph.add(
            "ContextWindowsManual", model=model, context_length=2, context_overlap=0, context_schedule="standard_static",
            context_stride=1, closed_loop=False, fuse_method="pyramid", dim=0, freenoise=False, cond_retain_index_list="",
            split_conds_to_windows=False, latent_retain_index_list="", causal_window_fix=False,
        )  # fmt: skip
        return [key, 0]

    def drawn(model: Link, clip: Link, text: str) -> Link:
        key = graph.add(
            "KSampler", model=model, positive=graph.text(clip, text), negative=graph.text(clip, ""), latent_image=[empty, 0],
            seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0,
        )  # fmt: skip
        return [key, 0]

    windows, bare = windowed(with_model), windowed(model)
    samples = [drawn(bare, clip, PLAIN), drawn(windows, with_clip, PLAIN)]
    samples += [drawn(each, with_clip, NAMED) for each in (windows, bare, with_model)]
    base, plain, named, no_edit, whole = latents(server, graph, *samples)
    assert torch.equal(plain, base) and worst(named, no_edit) > SEEN
    assert worst(named, whole) < ROUNDING


def test_a_compiled_model_is_the_same_as_before(server: Server) -> None:
    """Captured with and without an edit, in this order and the other, since what was captured is used again."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    compiled = [graph.add("TestCompiled", model=with_model), 0]
    blank = graph.text(clip, "")
    samples = [
        graph.sample(each, graph.text(with_clip, text), blank, steps=1, seed=seed)
        for each in (with_model, compiled)
        for text, seed in ((NAMED, 1), (PLAIN, 1), (NAMED, 2))
    ]
    *plainly, first, second, third = latents(server, graph, *samples)
    for wanted, found in zip(plainly, (first, second, third), strict=True):
        assert worst(found, wanted) < ROUNDING
    assert worst(first, second) > SEEN and worst(first, third) > SEEN


# ---- one graph after another


def test_graphs_with_different_stacks_are_queued_side_by_side(server: Server) -> None:
    """Each is drawn as it is alone, with the server emptied before."""

    def stack(*names: str) -> tuple[Graph, str]:
        graph = Graph()
        model, clip, _ = graph.checkpoint()
        for name in names:
            model, clip = graph.apply(model, clip, graph.load(f"demo-{name}.safetensors"))
        text, blank = graph.text(clip, "a <demo-monster> and a <demo-robot>"), graph.text(clip, "")
        return graph, graph.sample(model, text, blank, steps=2, width=128)

    stacks = (("monster",), ("robot", "monster"), ("robot",), ())
    alone = []
    for names in stacks:
        server.free()
        graph, sample = stack(*names)
        alone += latents(server, graph, sample)
    server.free()
    queued = []
    for i, names in enumerate(stacks):
        graph, sample = stack(*names)
        graph.add("SaveLatent", samples=sample, filename_prefix=f"latents/queued-{i}")
        queued.append(server.queue(graph.nodes))
    for i, prompt in enumerate(queued):
        server.wait(prompt)
        (path,) = (server.base / "output" / "latents").glob(f"queued-{i}_*.latent")
        assert torch.equal(load_file(path)["latent_tensor"], alone[i])
    assert min(worst(one, other) for i, one in enumerate(alone) for other in alone[:i]) > SEEN


def test_a_graph_runs_again_after_memory_ran_out(server: Server) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    text, blank = graph.text(with_clip, NAMED), graph.text(clip, "")
    (wanted,) = latents(server, graph, graph.sample(with_model, text, blank, steps=2))
    failing = [graph.add("TestOutOfMemoryOnce", model=with_model), 0]
    sample = graph.sample(failing, text, blank, steps=2)
    with pytest.raises(GraphError, match="out of memory, says a test"):
        latents(server, graph, sample)
    plain = graph.sample(model, graph.text(clip, PLAIN), blank, steps=2)
    again, base = latents(server, graph, sample, plain)
    assert torch.equal(again, wanted) and worst(again, base) > SEEN


def test_a_lora_that_training_cannot_see_is_refused(server: Server) -> None:
    graph = Graph()
    model, clip, vae = graph.checkpoint()
    of_model, of_clip = with_lora("LoraLoaderBypass")(graph, model, clip)
    images, _ = graph.pictures(1)
    for taught, sentence in (((of_model, clip), "This model has a LoRA"), ((model, of_clip), "This text encoder has a LoRA")):
        alone = Graph()
        alone.nodes = dict(graph.nodes)
        alone.save([alone.train(*taught, vae, images), 0], "refused")
        with pytest.raises(GraphError, match=sentence):
            server.run(alone.nodes)
    graph.add("PreviewAny", source=[graph.add("PerfusionCovariance", clip=of_clip, captions="", positions="unpadded"), 1])
    with pytest.raises(GraphError, match="This text encoder has a LoRA"):
        server.run(graph.nodes)
