"""Looks inside the real host where no graph can: run by test_inside_host.py in the host's own interpreter.

`python -m tests.inside_host COMFYUI CHECKPOINT CONCEPT` prints one JSON object of measured differences.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

from perfusion_fleet import inside

COMFYUI, CHECKPOINT, CONCEPT = map(Path, sys.argv[1:])
inside.enter_with_pack(COMFYUI)

import comfy.hooks  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness.differences import worst  # noqa: E402
from tests.kept_runs import kept_and_not  # noqa: E402

host, annotated, locking, words_of, patched_model, sampling_run, attention, projected = (
    inside.part(f"nodes.host{name}")
    for name in (
        "",
        ".text.annotated_encoding",
        ".text.global_key_locking",
        ".text.clip_with_words",
        ".unet.patched_model",
        ".unet.sampling_run",
        ".unet.attention_control",
        ".unet.edited_projections",
    )
)
Concept, PerfusionError = inside.part("perfusion_core.concept").Concept, inside.part("perfusion_core").PerfusionError

Projected = dict[tuple[str, str], list[tuple[Tensor, Tensor]]]


def sample(model: object, positive: list, negative: list, steps: int = 1, cfg: float = 3.0, count: int = 1) -> Tensor:
    """Latents of 64 pixels."""
    latents = torch.zeros(count, 4, 8, 8)
    noise = comfy.sample.prepare_noise(latents, 1)
    return comfy.sample.sample(model, noise, steps, cfg, "euler", "normal", positive, negative, latents, disable_pbar=True, seed=1)


def projections(model: object, *run: object, **how: object) -> Projected:
    """(layer, to_q | to_k | to_v) -> its inputs and outputs, of a sampling run."""
    unet, seen, handles = model.model.diffusion_model, {}, []
    for layer in host.layers_of(model):
        for which in ("to_q", "to_k", "to_v"):
            module = unet.get_submodule(f"{layer}.{which}")

            def see(module: object, args: tuple, output: Tensor, key: tuple = (layer, which)) -> None:
                seen.setdefault(key, []).append((args[0].clone(), output.clone()))

            handles.append(module.register_forward_hook(see))
    try:
        sample(model, *run, **how)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def main() -> dict:
    """All that is measured."""
    model, clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
    concept = Concept.load(CONCEPT)
    parts = (locked, recorded, regional, apart, kept, coupled, through_torch, lengths)
    found = {name: value for part in parts for name, value in part(model, clip, concept).items()}
    return (
        found
        | shortened(clip)
        | short_of_memory(model, clip)
        | unjudged(model, clip)
        | moved()
        | halved()
        | portions()
        | made_small()
        | windows()
        | kept_nowhere(clip)
        | without_fp8()
        | long_prompt()
    )


@contextlib.contextmanager
def concepts_elsewhere() -> Iterator[None]:
    """Let the pack's files be in a folder of their own within the context."""
    places = folder_paths.folder_names_and_paths
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(places, {host.FOLDER: ([folder], {".safetensors"})}):
        yield


def kept_nowhere(clip: object) -> dict:
    """A covariance that cannot be written."""
    measuring, covariances = inside.part("nodes.measure_text_encoder"), inside.part("perfusion_core.covariance")

    def refuse(*_: object) -> None:
        raise PerfusionError("It was not saved.")

    captions = [f"thing {i} in town {i * 7}, on street {i * 3} by house {i * 11}" for i in range(64)]
    with concepts_elsewhere(), mock.patch.object(covariances.Covariance, "save", refuse):
        found = measuring.measure(clip, captions)
    return {"measured without a file": list(found.matrix.shape)}


def without_fp8() -> dict:
    """Whether the host's own fp8 product is out of use while a model is trained, and back afterwards."""
    before, kernels = comfy.ops.fp8_linear, inside.part("nodes.host.training.differentiable").kernels_with_backward
    with kernels():
        taken = comfy.ops.fp8_linear(None, None)
    return {"fp8 in training": taken, "fp8 afterwards": comfy.ops.fp8_linear is before}


def long_prompt() -> dict:
    """What Inspect Gates shows of a prompt of two sections, whose gate is open at the second section's word."""
    words = ["a", "b", host.END, host.END, "a", "<it>", host.END]
    gates = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.0, 1.0, 0.4])
    rows = inside.part("nodes.inspect_gates").rows_of(host.PromptRecord(words, {"<it>": gates}))
    return {"rows of a long prompt": [[word, round(gate, 3)] for word, (gate,) in rows]}


def encode(clip: object, text: str) -> list:
    """As the host's own node encodes."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def locked(model: object, clip: object, concept: object) -> dict:
    """Global key-locking: what the keys are made of, for superclasses of as many tokens as the word, of more and of fewer."""
    found: dict[str, object] = {}
    two = replace(concept, trigger="<two-tokens>", superclass="teddy bear")
    three = replace(concept, trigger="<three-vectors>", word={name: v[:1].repeat(3, 1) for name, v in concept.word.items()})
    for name, one, text, rows in (
        ("same", concept, "a photo of a {} on the grass", range(77)),
        ("weighted", concept, "a photo of a ({}:1.3), on the (grass:0.8)", range(77)),
        ("shorter", two, "a photo of a {} on the grass", [0, 1, 2, 3, 4, *range(6, 77), 76]),
        ("longer", three, "a photo of a {} on the grass", [0, 1, 2, 3, 4, 5, 5, *range(5, 75)]),
    ):
        knowing, applied = host.clip_with_words(clip, (one,)), host.model_with_edit(model, (one,), "exact")
        wanted = encode(clip, text.format(one.superclass))[0][0][:, list(rows)]
        seen = projections(applied, locking.encode_locked(knowing, text.format(one.trigger)), encode(clip, ""))
        shares = []
        for layer in host.layers_of(model):
            weight = model.model.diffusion_model.get_submodule(f"{layer}.to_k").weight
            keys = seen[layer, "to_k"][0][1]
            # The positive prompt stands first or second in the batch, as the host likes.
            shares.append(min(worst(each, wanted[0] @ weight.T) for each in keys))
        found[f"locked keys, {name}"] = max(shares)
    found["both in one batch"] = len(seen[layer, "to_k"]) == 1
    long = "a photo of a <two-tokens> " + "on the grass " * 24 + "at night"
    knowing = host.clip_with_words(clip, (two,))
    try:
        locking.encode_locked(knowing, long)
        found["a prompt that breaks at another word"] = "encoded"
    except PerfusionError as error:
        found["a prompt that breaks at another word"] = str(error)
    return found


def shortened(clip: object) -> dict:
    """Encodings of captions that were cut after the longest, against whole sections'; and how many tokens were taken."""
    texts = ["a teddy", "a photo of a red teddy in the snow, beside a small house", ""]
    host.prepare_clip(clip)
    with torch.inference_mode():
        found = {which: host.caption_encodings(clip, texts, torch.float32, which) for which in host.POSITIONS}
    whole = found["all"].reshape(len(texts), 77, -1)
    counts = [len(encode_words(clip, text)) for text in texts]
    wanted = torch.cat([section[: count + 2] for section, count in zip(whole, counts, strict=True)])
    inner = torch.cat([section[1 : count + 1] for section, count in zip(whole, counts, strict=True)])
    return {
        "shortened captions": max(worst(found["unpadded"], wanted), worst(found["content"], inner)),
        "their tokens": [len(found[which]) for which in host.POSITIONS],
        "wanted tokens": [sum(counts) + 2 * len(texts), sum(counts), 77 * len(texts)],
    }


def encode_words(clip: object, text: str) -> list:
    """The tokens of a text without start, end and padding."""
    ((section,),) = clip.tokenizer.tokenize_with_weights(text).values()
    return [token for token, _ in section[1:] if token != 49407]


def short_of_memory(model: object, clip: object) -> dict:
    """A training on a device that has no room for more than two pictures at once, and one that was told so; and gradients of
    blocks that are computed twice.
    """

    class Small(host.TrainableModel):
        """Has memory for `room` pictures."""

        def objective(self, latents: Tensor, *given: object) -> tuple[Tensor, Tensor]:
            counts.append(len(latents))
            if len(latents) > room:
                raise torch.OutOfMemoryError("out of memory")
            return super().objective(latents, *given)

    def taught(micro: int) -> object:
        settings = training.Settings(steps=2, batch=4, micro=micro)
        state, student.twice = training.initial_state(student, "monster", settings), False
        assert len(list(events.steps(student, state, lesson, settings))) == 2
        return state

    def kept(forward: Callable[[], Tensor], weights: dict[str, Tensor]) -> int:
        """Bytes of the tensors that a forward pass keeps, which are all held at one time here."""
        held: dict[int, Tensor] = {}
        own = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}

        def hold(tensor: Tensor) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            graph = forward()
        assert graph.requires_grad
        return sum(tensor.untyped_storage().nbytes() for address, tensor in held.items() if address not in own)

    events, training = inside.part("nodes.training.schedule"), inside.part("perfusion_core.training.loop")
    lessons, counts, room = inside.part("perfusion_core.training.lesson"), [], 2
    with host.gradients_enabled():
        latents = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        given = latents, torch.ones(2, 2, 1, 8, 8), torch.eye(768).double()
        lesson = lessons.Lesson((lessons.Bucket(*given[:2]),), given[2])
        student = Small(model, clip, torch.float32)
        found, wanted = taught(4), taught(2)
        tried, room = counts[:5], 0
        try:
            taught(1)
            refused = ""
        except PerfusionError as error:
            refused = str(error)
        gave_all, room = student.twice, 4
        settings = training.Settings(batch=2, mode="paper")
        state, draw = training.initial_state(student, "monster", settings), training.BatchSample.of(settings, 0, latents[:, 0])
        gradients = []
        for student.twice in (False, True):
            sums, _, loss = training.gradients(student, state, draw, *given, settings)
            gradients.append([*sums, torch.tensor(loss)])
        student.twice = False

        def step() -> Tensor:
            return training.trial_forward(student, state, lesson, settings)

        def encode() -> Tensor:
            return student.encode(["a {}", "the {}"], {name: v.clone().requires_grad_() for name, v in state.word.items()}).tokens

        need = student.need(state.word, ["a {}", "the {}"], step)
        words = student.need(state.word, ["a {}", "the {}"], lambda: None).outside.fixed
        need.outside.fixed -= words
        held, held_of_words = kept(step, student.unet_weights), kept(encode, student.encoder_weights)
    same = all(torch.equal(one, other) for one, other in zip(found.learned(), wanted.learned(), strict=True))
    return {
        "half at once": same and found.losses == wanted.losses,
        "pictures tried": tried,
        "no room": refused if gave_all else "",
        "blocks twice": max(worst(one, other) for one, other in zip(*gradients, strict=True)),
        "no gradient is zero": all(bool(each.any()) for each in gradients[0]),
        "memory counted": need.bytes(1, twice=False) / held,
        "memory of blocks twice": need.bytes(1, twice=True) / held,
        "memory of four": need.bytes(4, twice=False) / held,
        "memory of words": words / held_of_words,
    }


def unjudged(model: object, clip: object) -> dict:
    """A training that is to keep the best, on a device that has no room to judge any."""
    sessions, schedule = inside.part("nodes.training.session"), inside.part("nodes.training.schedule")
    settings = inside.part("perfusion_core.training.settings").Settings(steps=1, batch=1, micro=1)

    lessons = inside.part("perfusion_core.training.lesson")
    pictures = lessons.Bucket(torch.randn(1, 2, 4, 8, 8), torch.ones(1, 2, 1, 8, 8))
    lesson = lessons.Lesson((pictures,), torch.eye(768).double())

    class Unjudged(sessions.TrainingSession):
        @property
        def adherence(self) -> object:
            raise torch.OutOfMemoryError("out of memory")

    with concepts_elsewhere():
        session = Unjudged(
            model, clip, None, "monster", "<it>", 64, settings, "sd1", lesson, "digest", None, None, None,
            schedule.Schedule(1, 0, 0, judged=True), "auto",
        )  # fmt: skip
        with host.gradients_enabled():
            session.run(host.TrainableModel(model, clip, torch.float32))
        told = session.result().training
    return {"kept without a judgement": [told["steps"], "followed" in told]}


def moved() -> dict:
    """A checkpoint as a node loads it, whose weights move to another device while it is made a student of: it can be taught, and
    stays what other nodes can use.
    """
    load = comfy.model_management.load_models_gpu

    def moving(patchers: list, **how: object) -> None:
        load(patchers, **how)
        for parameter in (parameter for patcher in patchers for parameter in patcher.model.parameters()):
            parameter.data = parameter.data.clone()  # as `nn.Module.to` does it

    with torch.inference_mode():
        model, clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
    comfy.model_management.load_models_gpu = moving
    try:
        with host.gradients_enabled():
            student = host.TrainableModel(model, clip, torch.float32)
            word = {name: vectors.requires_grad_() for name, vectors in student.embed("monster").items()}
            student.encode(["a {}"], word).tokens.sum().backward()
    finally:
        comfy.model_management.load_models_gpu = load
    whole = [parameter.is_inference() for parameter in (*model.model.parameters(), *clip.cond_stage_model.parameters())]
    return {"taught after a move": all(bool(each.grad.any()) for each in word.values()), "whole after a move": all(whole)}


def halved() -> dict:
    """A UNet of half precision as a graphics card has it, whose layers compute in it, taught in float32."""
    found, given = [], torch.randn(3, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for dtype, twice in ((torch.float32, False), (torch.float16, False), (torch.float16, True)):
        model, clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT), model_options={"dtype": dtype})[:3]
        layers = [each for each in model.model.diffusion_model.modules() if hasattr(each, "comfy_cast_weights")]
        for layer in layers:
            layer.comfy_cast_weights = False
        with host.gradients_enabled():
            student = host.TrainableModel(model, clip, torch.float32)
            student.twice = twice
            encoded = student.encode(["a {}"], student.embed("monster")).leaves()
            student.objective(*given[:2], torch.tensor([0.5]), encoded, None)[0].sum().backward()
        found.append(encoded.tokens.grad)
        computes_as_before = not any(layer.comfy_cast_weights for layer in layers)
    whole, *halves = found
    return {"half weights in float32": [worst(half, whole) for half in halves], "computes as before": computes_as_before}


def portions() -> dict:
    """What is computed at once with so much memory, of 8 pictures and of 1."""
    memory, of = inside.part("nodes.training.memory"), inside.part("nodes.host.training.activation_memory")
    need = of.MemoryNeed(of.SavedBytes(100, 10), [of.SavedBytes(0, 50), of.SavedBytes(0, 20)], 5)
    chosen = [memory.portion(need, free, 8) for free in (2000, 900, 500, 300, 100)]
    alone = memory.portion(need, 300, 1)
    return {"portions": [[each.micro, each.twice, each.bytes] for each in (*chosen, alone)]}


def made_small() -> dict:
    """Where the object is, and how large, in pictures that are shown small: of a grey square on white, off the middle."""
    pictures = inside.part("nodes.training.training_pictures")
    found = {}
    for name, (top, left, side) in {"large": (10, 4, 48), "small": (30, 40, 16)}.items():
        masks = torch.zeros(2, 64, 64)
        masks[:, top : top + side, left : left + side] = 0.8
        images = torch.where(masks > 0, 0.5, 1.0)[..., None].expand(-1, -1, -1, 3)
        shown, marks = pictures.small(images, masks)
        ends = [[each.any(axis).nonzero()[[0, -1], 0].tolist() for axis in (0, 1)] for each in marks > 0.4]
        same = all(
            bool(((picture == 0.5) == (mark == mark.max())[..., None]).all()) for picture, mark in zip(shown, marks, strict=True)
        )
        found[name] = {"ends": ends, "picture and mask together": same, "rest": float(shown[marks == 0].min())}
    whole = pictures.small(torch.rand(1, 64, 64, 3), torch.ones(1, 64, 64))[1]
    found["no mask"] = [float(whole[:, 16:48, :32].min()), float(whole.sum())]
    ends = torch.zeros(1, 8, 64)
    ends[..., :2] = ends[..., -2:] = 1
    try:
        pictures.prepare([torch.rand(1, 8, 64, 3)], [ends], 8)
    except PerfusionError as error:
        found["nothing in the square"] = str(error)
    return {"made small": found}


def windows() -> dict:
    """Parts of a picture, told from a map that was scaled to its latents, cut, and scaled to a tile's, as upscalers do it."""
    places, scaled = inside.part("nodes.host.text.picture_window"), torch.nn.functional.interpolate
    apart = []
    for (height, width), (top, left, high, wide), tile in (
        ((64, 128), (0, 0, 64, 64), (64, 64)),
        ((64, 128), (0, 64, 64, 64), (64, 64)),
        ((96, 96), (20, 40, 50, 30), (100, 60)),
        ((256, 192), (200, 130, 56, 62), (64, 71)),
        ((16, 16), (0, 8, 8, 8), (8, 8)),
    ):
        whole = scaled(places.place_map(), (height, width), mode="bilinear")
        part = scaled(whole[..., top : top + high, left : left + wide], tile, mode="bilinear")
        wanted = (left / width, top / height, (left + wide) / width, (top + high) / height)
        found = places.window_of([{}, {"reference_latents": [torch.zeros(1, 4, 8, 8), part]}])
        apart.append(max(abs(one - other) for one, other in zip(found, wanted, strict=True)))
    mask = torch.zeros(64, 128)
    mask[:, 64:] = 1
    cuts = [places.cut(mask, window, (8, 8)).mean().item() for window in ((0, 0, 0.5, 1), (0.5, 0, 1, 1), (0.25, 0, 0.75, 1))]
    return {
        "windows": max(apart),
        "no window": places.window_of([{}, {"reference_latents": [torch.zeros(1, 4, 8, 8)]}]) == places.WHOLE,
        "regions in windows": cuts,
    }


def recorded(model: object, clip: object, concept: object) -> dict:
    """Recorded maps against softmax in float64 of the queries and keys that the layers made."""
    knowing = host.clip_with_words(clip, (concept,))
    recorder = host.Recorder()
    watched = host.model_watched(host.model_with_edit(model, (concept,), "exact"), recorder)
    text, negative = f"a photo of a {concept.trigger} on the grass", "blurry " * 90
    seen: list[tuple[Tensor, Tensor, int]] = []
    usual = attention.AttentionControl.project

    def spied(self: object, layer: str, keys: bool, edited: list[Tensor]) -> None:
        if keys:
            seen.append((self.query.clone(), edited[0].clone(), self.heads))
        usual(self, layer, keys, edited)

    attention.AttentionControl.project = spied
    try:
        sample(watched, encode(knowing, text), encode(knowing, negative), steps=2, count=2)
    finally:
        attention.AttentionControl.project = usual
    run, sums = recorder.runs[-1], torch.zeros(2, 8, 8, dtype=torch.float64)
    for q, k, heads in seen:
        # Of a batch of four rows, two are the positive prompt's, repeated beside the longer negative one.
        rows = slice(0, 2) if torch.equal(k[0, 77:], k[0, :77]) else slice(2, 4)
        parts = [t[rows].double().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, k)]
        maps = (parts[0] @ parts[1].transpose(2, 3) / math.sqrt(parts[0].shape[3])).softmax(3).mean(1)
        side = math.isqrt(maps.shape[1])
        looked = (maps[..., 5] + maps[..., 82]).unflatten(1, (side, side))[:, None]
        sums += torch.nn.functional.interpolate(looked, (8, 8), mode="bilinear", antialias=True)[:, 0]
    mine = run.map_of(concept.trigger)
    gates = patched_model.get_perfusion_state(watched).edits(torch.device("cpu"))[0].gates(encode(clip, "a")[0][0])
    return {
        "recorded maps": worst(mine, sums / len(seen)),
        "recorded shape": list(mine.shape),
        "calls counted": next(iter(run.prompts.values())).counts == {None: len(seen)},
        "words": next(iter(run.prompts.values())).words[:10],
        "gate": run.gate_of(concept.trigger),
        "gates are of the encoding": list(gates.shape),
    }


def regional(model: object, clip: object, concept: object) -> dict:
    """Regions: outside of them the base's own attention, without the word; inside, the concept's."""
    knowing = host.clip_with_words(clip, (concept,))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    applied = host.model_with_edit(model, (replace(concept, region=left),), "exact")
    whole = host.model_with_edit(model, (concept,), "exact")
    text = f"a photo of a {concept.trigger} on the grass"
    seen: dict[str, list] = {}
    usual = attention.AttentionControl.override

    def spied(self: object, previous: object) -> object:
        inner = usual(self, previous)

        def attend(func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: object, **kwargs: object) -> Tensor:
            out = inner(func, q, k, v, heads, *args, **kwargs)
            if self.keys and k is self.keys[0] and self.regions is not None:
                seen.setdefault(self.layer, []).append((q, self.keys, self.values, self.regions.barred, out, heads))
            return out

        return attend

    attention.AttentionControl.override = spied
    try:
        sample(applied, encode(knowing, text), encode(knowing, ""))
    finally:
        attention.AttentionControl.override = usual
    shares, roundings = [], []
    for calls in seen.values():
        for q, keys, values, barred, out, heads in calls:
            side = math.isqrt(q.shape[1])
            inside = (torch.arange(side * side) % side) < side // 2
            for s, place in ((0, ~inside), (1, inside)):
                parts = [t.double().unflatten(2, (heads, -1)).transpose(1, 2) for t in (q, keys[s], values[s])]
                logits = parts[0] @ parts[1].transpose(2, 3) / math.sqrt(parts[0].shape[3])
                logits = logits.masked_fill(barred[:, s, None, None], -math.inf)
                wanted = (logits.softmax(3) @ parts[2]).transpose(1, 2).flatten(2)
                shares.append(worst(out[:, place], wanted[:, place]))
                plain = torch.nn.functional.scaled_dot_product_attention(
                    *(t.float() for t in parts), attn_mask=~barred[:, s, None, None]
                )
                roundings.append(worst(plain.transpose(1, 2).flatten(2)[:, place], wanted[:, place]))
    everywhere = host.model_with_edit(model, (replace(concept, region=torch.ones(3, 5)),), "exact")
    runs = [sample(m, encode(knowing, text), encode(knowing, "")) for m in (everywhere, whole)]
    plain = "a photo of a monster"
    base = [sample(m, encode(knowing, plain), encode(knowing, "")) for m in (applied, model)]
    return {
        "regions": max(shares),
        "attention in float32": max(roundings),
        "layers with regions": len(seen),
        "a region of everywhere": worst(*runs),
        "a prompt without the word": worst(*base),
        "barred words": seen[next(iter(seen))][0][3].any(1).sum(1).tolist(),
    }


def apart(model: object, clip: object, concept: object) -> dict:
    """What two regions read, and what lies outside of both: as if each concept were alone, the other one's superclass beside it."""
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    torch.manual_seed(0)
    words = {name: torch.cat([v[:1]] * 3) + 0.1 * torch.randn(3, v.shape[1]) for name, v in concept.word.items()}
    other = replace(concept, trigger="<other>", superclass="small robot", word=words)
    taught = replace(concept, superclass="teddy bear")
    stack = (replace(taught, region=left), replace(other, region=left.flip(1)))
    text = "a photo of a ({}:1.2) and a {} on the grass"
    # A word of one vector has the superclass's last token beside it, one of three its first token twice.
    alone = (
        ((taught,), text.format("bear", "small small robot")),
        ((taught,), text.format(concept.trigger, "small small robot")),
        ((other,), text.format("bear", "<other>")),
    )
    read = read_by(model, clip, stack, text.format(concept.trigger, "<other>"))
    wanted = [read_by(model, clip, *each) for each in alone]
    plain = read_by(model, clip, stack, text.format("teddy bear", "robot"))
    hooked = host.clip_with_words(clip, stack)
    hooked.patcher.forced_hooks, hooked.use_clip_schedule = comfy.hooks.create_hook_lora({}, 1.0, 1.0), True
    both = [
        notes_in(encode(each, text.format(concept.trigger, "<other>"))[0][0])
        for each in (hooked, host.clip_with_words(clip, stack))
    ]
    return {
        "regions that read": {len(each) for each in read.values()} == {3} and {len(each) for each in plain.values()} == {1},
        "what regions read": max(worst(found[s], wanted[s][key][0]) for key, found in read.items() for s in range(3)),
        "were it one prompt": min(worst(found[2], wanted[2][key][0]) for key, found in mixed(model, clip, stack, text).items()),
        "with hooks": sorted(map(str, both[0])) == sorted(map(str, both[1]))
        and all(torch.equal(both[0][n], both[1][n]) for n in both[0]),
    }


def notes_in(encoding: Tensor) -> dict:
    """All notes of an encoding."""
    return {note: annotated.note_of(encoding, note) for note in annotated.known_notes(encoding)}


def mixed(model: object, clip: object, stack: tuple, text: str) -> dict[tuple[str, bool], list[Tensor]]:
    """The same as `read_by`, where regions read the whole prompt."""
    usual, words_of.regional_prompts = words_of.regional_prompts, lambda *_: {}
    try:
        return read_by(model, clip, stack, text.format(*(concept.trigger for concept in stack)))
    finally:
        words_of.regional_prompts = usual


def read_by(model: object, clip: object, stack: tuple, text: str) -> dict[tuple[str, bool], list[Tensor]]:
    """(layer, whether its keys) -> the positive prompt's keys or values by each set of edits."""
    seen: dict[tuple[str, bool], list[Tensor]] = {}

    class Seen:
        def compare(self, layer: str, keys: bool, plain: list[Tensor], edited: list[Tensor]) -> None:
            seen[layer, keys] = [each.clone() for each in edited]

    edited = host.model_with_edit(model, stack, "exact")
    watched = patched_model.model_with(edited, replace(patched_model.get_perfusion_state(edited), comparer=Seen()))
    words = host.clip_with_words(clip, stack)
    sample(watched, encode(words, text), encode(words, ""), cfg=1.0)
    return seen


def coupled(model: object, clip: object, concept: object) -> dict:
    """Two encodings that a patch has layers read in place of the UNet's own, with notes and without.

    Keys and values of the one that names the concept, against those by itself; whether the other's are the base's.
    """
    knowing, applied = host.clip_with_words(clip, (concept,)), host.model_with_edit(model, (concept,), "exact")
    named, plain = (encode(knowing, f"a photo of a {word}")[0][0] for word in (concept.trigger, concept.superclass))
    found = {}
    for kind, change in (("with notes", lambda t: t), ("without notes", lambda t: t.as_subclass(Tensor).clone())):
        patched = applied.clone()
        read = torch.cat([change(named), change(plain)])
        patched.set_model_attn2_patch(lambda q, k, v, options, read=read: (q.repeat(2, 1, 1)[: len(q) * 2], read, read))
        patched.set_model_attn2_output_patch(lambda out, options: out[: len(out) // 2])
        seen = projections(patched, encode(clip, "a house"), [], cfg=1.0)
        alone = projections(applied, encode(knowing, f"a photo of a {concept.trigger}"), [], cfg=1.0)
        layers = [key for key in alone if key[1] != "to_q"]
        bare = {key: model.model.diffusion_model.get_submodule(".".join(key)).weight for key in layers}
        found[kind] = [
            max(worst(seen[key][0][1][0], alone[key][0][1][0]) for key in layers),
            all(torch.equal(seen[key][0][1][1], (read.as_subclass(Tensor) @ bare[key].T)[1]) for key in layers),
        ]
    return {"coupled": found}


def through_torch(model: object, clip: object, concept: object) -> dict:
    """What each function of torch makes of an encoding, of those that keep its shape.

    Whether that still says what it names, and whether the concept acts where the numbers stayed what they were.
    """
    knowing, applied = host.clip_with_words(clip, (concept,)), host.model_with_edit(model, (concept,), "exact")
    state = patched_model.get_perfusion_state(applied)
    cond = encode(knowing, f"a photo of a {concept.trigger} on the grass")[0][0][:, :16]
    silent, idle, count = [], [], 0
    for name in sorted({f.__name__ for f in torch.overrides.get_testing_overrides() if not f.__name__.startswith("__")}):
        func = getattr(Tensor, name, None) or getattr(torch, name, None)
        try:
            result = func(cond.clone())
        except Exception:
            continue
        if not isinstance(result, Tensor) or result.shape != cond.shape or not result.is_floating_point():
            continue
        count += 1
        said = sampling_run.named_by(result, state)
        if not said and name not in CONSTANT:
            silent.append(name)
        edit = state.everywhere(result.device)
        by = edit.coefficients(result.as_subclass(Tensor), sampling_run.influenced_tokens(result, edit, state.triggers))
        if torch.equal(result.as_subclass(Tensor), cond.as_subclass(Tensor)) and not by.add.any():
            idle.append(name)
    return {"functions of torch": count, "that say nothing": silent, "that do not act": idle}


def lengths(model: object, clip: object, concept: object) -> dict:
    """Words of many vectors near the end of a section: how many of them are in the prompt, are marked, and whether it is named."""
    found = []
    state = patched_model.get_perfusion_state(host.model_with_edit(model, (concept,), "exact"))
    for count in (8, 32):
        words = {name: v[:1].repeat(count, 1) + 0.01 * torch.randn(count, v.shape[1]) for name, v in concept.word.items()}
        knowing = host.clip_with_words(clip, (replace(concept, word=words),))
        for before in (66, 70, 73, 75):
            tokens = knowing.tokenize("very " * before + f"{concept.trigger}, at night")
            vectors = sum(isinstance(token, Tensor) for section in tokens["l"] for token, _ in section)
            cond = knowing.encode_from_tokens_scheduled(tokens)[0][0]
            marked = int(annotated.note_of(cond, annotated.Note("place", concept.trigger)).any(2).sum())
            found.append([count, vectors, marked, bool(sampling_run.named_by(cond, state))])
    return {"words of many vectors": found}


CONSTANT = frozenset("empty_like logical_not_ ones_like rand_like randn_like zeros_like zero_ new_empty new_zeros new_ones".split())
"""Functions whose result does not depend on the numbers that they are given."""


def kept(model: object, clip: object, concept: object) -> dict:
    """Keys and values that a run keeps from step to step: against runs that keep nothing; and how often layers are asked."""
    knowing = host.clip_with_words(clip, (concept,))
    text = f"a photo of a {concept.trigger} on the grass"
    named, long, empty = (encode(knowing, each) for each in (text, text + ", in the snow" * 30, ""))
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    applied = host.model_with_edit(model, (concept,), "exact")
    placed = host.model_with_edit(model, (replace(concept, region=left),), "exact")
    runs = {
        "a concept": (applied, named, empty),
        "a region": (placed, named, empty),
        "locked keys": (applied, locking.encode_locked(knowing, text), empty),
        "a long prompt and a plain one": (applied, named + encode(knowing, "a photo of a monster"), long),
        "weights that change": (applied, scheduled(host.layers_of(model), named), empty),
    }
    found, counts = {}, {}
    for name, run in runs.items():
        given = sampling_run, projected, len(host.layers_of(model))
        found[name], counts[name] = kept_and_not(*given, lambda run=run: sample(*run, steps=5))
    unhooked = sample(applied, named, empty, steps=5)
    return {
        "kept": found,
        "times made": counts,
        "what hooks change": worst(sample(*runs["weights that change"], steps=5), unhooked),
    }


def scheduled(layers: dict, conditioning: list) -> list:
    """A conditioning under a LoRA of the values whose strength changes in the middle."""
    lora = {}
    for i, (layer, rows) in enumerate(layers.items()):
        generator = torch.Generator().manual_seed(i)
        lora[f"diffusion_model.{layer}.to_v.lora_up.weight"] = torch.randn(rows, 1, generator=generator)
        lora[f"diffusion_model.{layer}.to_v.lora_down.weight"] = torch.randn(1, 768, generator=generator) / 50
    hooks = comfy.hooks.create_hook_lora(lora, 1, 0)
    course = comfy.hooks.HookKeyframeGroup()
    for strength, start in ((1.0, 0.0), (0.3, 0.5)):
        course.add(comfy.hooks.HookKeyframe(strength, start))
    hooks.set_keyframes_on_hooks(course)
    return comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)


with torch.inference_mode():
    measured = main()
print(json.dumps(measured))
