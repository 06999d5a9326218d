"""Teaches a family's layout inside the real host: run by test_families.py in the host's own interpreter.

`python -m tests.inside_family COMFYUI FAMILY FOLDER`, with a function of `tiny`, prints one JSON object of what was measured.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from perfusion_fleet import inside

COMFYUI, FAMILY, FOLDER = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
inside.enter_with_pack(COMFYUI)

import comfy.sample  # noqa: E402
import comfy.sd  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_freelunch import FreeU_V2  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.transformer import train as small_wan  # noqa: E402
from scripts.harness.differences import worst  # noqa: E402
from tests import tiny  # noqa: E402

host, training, exports = (inside.part(name) for name in ("nodes.host", "perfusion_core.training.loop", "nodes.export_concept"))
empty_latents = inside.part("nodes.host.sampling").empty_latents
PerfusionError = inside.part("perfusion_core").PerfusionError
Concept = inside.part("perfusion_core.concept").Concept
stacks = inside.part("perfusion_core.stack")
STEPS = 2 if FAMILY == "koala" else 3
"""Of the training."""
SAMPLED = 1 if FAMILY == "koala" else 2
"""Steps of each picture. KOALA reads all of its 3 GB of weights in each."""
HELD_OUT = 4
"""Noises of the held-out loss: fewer than the pack's, and in one forward pass."""
OPEN = 0.1
"""The least to which a gate opens at the word in a prompt that is none of the training's."""
PADDED = 512
"""Tokens to which the host pads what Anima's adapter makes, and Wan's encodings."""
STEP = 1e-5
"""Of a tensor's length, the step of finite differences in float64."""
SETTINGS = training.Settings(steps=STEPS, batch=2, micro=2, word_rate=2e-3, output_rate=0.2, seed=1)


def main() -> dict:
    """All that is measured."""
    with torch.inference_mode(False):
        model, clip = getattr(tiny, FAMILY)(FOLDER)
    width = host.width_of(model)
    inverse = inside.part("perfusion_core.covariance").Estimate(width)
    inverse.add(torch.randn(3 * width, width, generator=torch.Generator().manual_seed(0)))
    metric = inverse.finish("").inverse()
    student = host.TrainableModel(model, clip, torch.float32, superclass="teddy")
    empty = blank(model, 6)
    latents, masks = torch.randn(empty.shape).unflatten(0, (3, 2)), torch.ones_like(empty[:, :1]).unflatten(0, (3, 2))
    lessons = inside.part("perfusion_core.training.lesson")
    lesson = lessons.Lesson((lessons.Bucket(latents, masks),), metric)
    with host.gradients_enabled():
        state = training.initial_state(student, "teddy", SETTINGS)
        # KOALA's layers are SDXL's, and finite differences over all of its weights would take half a minute.
        found = gradients(model, clip, latents, masks, metric) if FAMILY != "koala" else {}
        found |= {"computed twice": twice(student, state, latents, masks, metric)} if FAMILY != "koala" else {}
        found |= memory(student, state, lesson) if FAMILY != "koala" else {}
        training.HELD_OUT = HELD_OUT
        judged = replace(SETTINGS, micro=HELD_OUT)
        before = training.held_out_loss(student, state, lesson, judged)
        list(training.train(student, state, lesson, SETTINGS))
        after = training.held_out_loss(student, state, lesson, judged)
    with torch.inference_mode():
        found |= {"loss": [before, after]} | as_the_host(student, state)
        concept = state.concept(metric, "<it>", "teddy", host.family_of(model), SETTINGS)
        concept.save(FOLDER / "it.safetensors", torch.float32)
        return found | used(model, clip, Concept.load(FOLDER / "it.safetensors"))


def memory(student: object, state: object, lesson: object) -> dict:
    """What a step is told to need for four pictures: the blocks that are counted, of those that there are, and bytes."""
    need = student.need(state.word, training.TEMPLATES[:2], lambda: training.trial_forward(student, state, lesson, SETTINGS))
    kinds = host.kind_of(student.model).blocks
    blocks = sum(isinstance(module, kinds) for module in student.model.model.diffusion_model.modules())
    return {
        "blocks counted": [len(need.blocks), blocks],
        "bytes once": need.bytes(4, False),
        "bytes twice": need.bytes(4, True),
    }


def blank(model: object, count: int) -> Tensor:
    """The smallest latents that a model draws."""
    side = host.kind_of(model).least
    return empty_latents(model, count, side, side)


def twice(student: object, state: object, latents: Tensor, masks: Tensor, inverse: Tensor) -> float:
    """How far gradients move if blocks are computed twice, as where memory is short."""
    given = (training.BatchSample.of(SETTINGS, 0, latents[:, 0]), latents, masks, inverse, SETTINGS)
    once, student.twice = training.gradients(student, state, *given)[0], True
    again, student.twice = training.gradients(student, state, *given)[0], False
    return max(worst(one, other) for one, other in zip(again, once, strict=True))


@contextlib.contextmanager
def in_float64(*modules: torch.nn.Module) -> Iterator[None]:
    """Make the host and the pack compute in float64 instead of float32, with these modules' weights, within the context."""
    narrow, to_narrow = torch.float32, Tensor.float
    torch.float32, Tensor.float = torch.float64, Tensor.double
    torch.set_default_dtype(torch.float64)
    try:
        for module in modules:
            module.double()
        yield
    finally:
        torch.float32, Tensor.float = narrow, to_narrow
        torch.set_default_dtype(narrow)
        for module in modules:
            module.float()


def gradients(model: object, clip: object, latents: Tensor, masks: Tensor, inverse: Tensor) -> dict:
    """Derivatives by each encoder's word and by all outputs, along the gradient: told over measured by finite differences.

    All of it is in float64, also within the host.
    """
    with in_float64(model.model, clip.cond_stage_model):
        student = host.TrainableModel(model, clip, torch.float32, superclass="teddy")
        state = training.initial_state(student, "teddy", SETTINGS)
        draw = training.BatchSample.of(SETTINGS, 0, latents[:, 0])
        draw = replace(draw, noise=draw.noise.double(), time=draw.time.double())
        given = draw, latents.double(), masks.double(), inverse
        sums, _, _ = training.gradients(student, state, *given, SETTINGS)
        learned, words, shares = list(zip(state.learned(), sums, strict=True)), len(state.word), []
        for some in (*([each] for each in learned[:words]), learned[words:]):
            # Each tensor moves by the same share of its length, so that each layer counts by its own gradient's.
            moves = [STEP * float(tensor.norm()) * gradient / gradient.norm() for tensor, gradient in some]
            kept, losses = [tensor.clone() for tensor, _ in some], []
            for sign in (1, -1, 0):
                for (tensor, _), before, move in zip(some, kept, moves, strict=True):
                    tensor.copy_(before + sign * move)
                losses += [loss_of(student, state, *given)] if sign else []
            along = sum(float((gradient * move).sum()) for (_, gradient), move in zip(some, moves, strict=True))
            shares.append((losses[0] - losses[1]) / 2 / along)
    return {"derivatives by words": shares[:words], "derivatives by outputs": shares[words:]}


@torch.no_grad()
def loss_of(student: object, state: object, draw: object, latents: Tensor, masks: Tensor, inverse: Tensor) -> float:
    """The loss of a step's draw."""
    distinct, which = draw.prompts.unique(return_inverse=True)
    encoded = student.encode([training.TEMPLATES[i] for i in distinct], state.word).of_prompts(which)
    shown, edit = (draw.pictures, draw.forms()), training.edit_in_training(state, inverse, SETTINGS)
    prediction, target = student.objective(latents[shown], draw.noise, draw.time, encoded, edit)
    return float(training.masked_error(prediction, target, masks[shown]))


def as_the_host(student: object, state: object) -> dict:
    """Encodings and predictions of the one who is taught, against the host's own."""
    knowing = host.clip_with_words(student.clip, (named(state, host.family_of(student.model)),))
    (((cond, more),),) = host.conditionings(knowing, (training.TEMPLATES[0].format("<it>"),))
    encoded = student.encode(training.TEMPLATES[:1], state.word)
    together = student.encode(training.TEMPLATES[:3], state.word).tokens
    apart = [
        host.layer_encodings(student.model, one.as_subclass(Tensor), beside)[0]
        for ((one, beside),) in host.conditionings(knowing, [each.format("<it>") for each in training.TEMPLATES[:3]])
    ]
    sampling = student.model.model.model_sampling
    shape, time = blank(student.model, 1).shape, torch.tensor([0.5])
    latents, noise = torch.randn(shape), torch.randn(shape)
    prediction, _ = student.objective(latents, noise, time, encoded, None)
    sigma = sampling.sigmas[(time * len(sampling.sigmas)).long()]
    x = sampling.noise_scaling(sigma, noise, latents)
    given = more | {"cross_attn": cond, "width": 8 * shape[-1], "height": 8 * shape[-2], "noise": noise, "device": "cpu"}
    conds = {name: each.cond for name, each in student.model.model.extra_conds(**given).items()}
    plain = {k: v.as_subclass(Tensor) if isinstance(v, Tensor) else v for k, v in conds.items()}
    wanted = student.model.model.apply_model(x, sigma, **plain)
    return {
        "encoding": worst(encoded.tokens, host.layer_encodings(student.model, cond.as_subclass(Tensor), more)),
        "encodings together": max(worst(row[: len(one)], one) for row, one in zip(together, apart, strict=True)),
        "pooled": [] if encoded.pooled is None else [worst(encoded.pooled, more["pooled_output"])],
        "v-prediction": any(kind.__name__ == "V_PREDICTION" for kind in type(sampling).__mro__),
        "denoised": worst(sampling.calculate_denoised(sigma, prediction, x), wanted),
    }


def named(state: object, family: str) -> object:
    """A concept of a state's word, which edits nothing."""
    empty = torch.ones(len(state.target_input))
    return Concept("<it>", "teddy", family, {k: v.detach() for k, v in state.word.items()}, empty, empty, empty, {})


@functools.cache
def conditioning_of(clip: object, text: str) -> list:
    """The conditioning of a prompt; each is encoded once."""
    (found,) = host.conditionings(clip, (text,))
    return found


def sampled(model: object, clip: object, text: str) -> Tensor:
    """Latents of a prompt."""
    latents = blank(model, 1)
    given = (SAMPLED, 3.0, "euler", "normal", conditioning_of(clip, text), conditioning_of(clip, ""), latents)
    return comfy.sample.sample(model, comfy.sample.prepare_noise(latents, 1), *given, disable_pbar=True, seed=1)


def used(model: object, clip: object, concept: object) -> dict:
    """What the concept does to prompts."""
    knowing, applied = host.clip_with_words(clip, (concept,)), host.model_with_edit(model, (concept,), "exact")

    @functools.cache
    def drawn(one: object, text: str) -> Tensor:
        return sampled(one, knowing, text)

    return {
        "words": {name: list(each.shape) for name, each in concept.word.items()},
        "a prompt without the word": torch.equal(drawn(applied, "a teddy"), drawn(model, "a teddy")),
        "a prompt with it": worst(drawn(applied, "an <it>"), drawn(model, "an <it>")),
        "layers against float64": edited(applied, knowing, concept),
        "said to another family": said_by(lambda: host.check_fit(replace(concept, family="sd3000"), model)),
    } | {
        **two_prompts(model, applied, knowing),
        **beside_ids(model, applied, knowing),
        **variants(clip, concept),
        **seen_by_layers(model, applied, knowing, concept),
        **beside_freeu(model, applied, drawn),
        **combined(model, clip, concept),
        **exported(model, clip, concept, drawn),
        **read_short(model, clip),
    }


def read_short(model: object, clip: object) -> dict:
    """Of Wan: how far predictions from encodings without padding, as a small one is trained on, are from the host's with it.

    It is last, because it changes the host's classes.
    """
    if FAMILY != "wan":
        return {}
    unet, encodings = model.model.diffusion_model, small_wan.Encodings(clip, ["a teddy in a room", "a red cup", ""])
    x, time, padded = torch.randn(3, 16, 1, 8, 8), torch.tensor([100.0, 500.0, 900.0]), torch.zeros(3, PADDED, 4096)
    for row, each in zip(padded, encodings.found, strict=True):
        row[: len(each)] = each
    wanted = unet(x, time, padded)
    small_wan.read_as_trained()
    context, bias = encodings.batch([0, 1, 2])
    return {"read without padding": worst(unet(x, time, context, transformer_options={"bias": bias}), wanted)}


def said_by(asked: Callable[[], object]) -> str:
    """What is said when something is refused."""
    try:
        asked()
    except PerfusionError as error:
        return str(error)
    return ""


def edited(applied: object, clip: object, concept: object) -> float:
    """The edited keys and values of all layers against the formula in float64, in a prompt with the word and one without."""
    unet, family, read = applied.model.diffusion_model, host.kind_of(applied), {}
    projections = [
        (name, which, linear)
        for name in concept.values
        for which, linear in zip("kv", family.projections(unet.get_submodule(name)), strict=True)
    ]
    (((cond, more),),) = host.conditionings(clip, ("an <it>",))
    unreached = ~reached(family, clip, "an <it>")
    cond = host.layer_encodings(applied, cond.as_subclass(Tensor), more)

    def see(linear: object, given: tuple, made: Tensor) -> None:
        if given[0].numel() % cond.numel() == 0:
            read[linear] = given[0], made

    hooks = [linear.register_forward_hook(see) for _, _, linear in projections]
    sampled(applied, clip, "an <it>")
    for hook in hooks:
        hook.remove()
    target, probe = concept.target_input.double(), concept.probe.double()
    apart = []
    for layer, which, linear in projections:
        x, made = (each.double() for each in read[linear])
        # Where one Linear gives both, it reads all prompts as one.
        x, half = x.reshape(-1, *cond.shape[1:]), slice(None)
        if family.fused:
            half = slice(0, linear.out_features // 2) if which == "k" else slice(linear.out_features // 2, None)
        made = made.reshape(*x.shape[:2], -1)[..., half]
        weight, bias = linear.weight.double()[half], 0 if linear.bias is None else linear.bias.double()[half]
        output = concept.values[layer].double() if which == "v" else weight @ concept.superclass_encoding.double()
        similarity = (x @ probe / (target @ probe))[..., None]
        gate = torch.sigmoid((similarity - concept.bias) / concept.temperature)
        names = torch.tensor([worst(row.float(), cond[0]) < 1e-6 for row in x])
        gate[~names], gate[:, unreached], gate[gate < 1e-3] = 0, 0, 0
        assert sum(names) == 1 and gate.max() > OPEN
        apart.append(worst(made, x @ weight.T + bias + gate * (output - similarity * (weight @ target))))
    return max(apart)


def variants(clip: object, concept: object) -> dict:
    """Of Wan's variants: whether a prompt without the word stays as it is, what the concept changes, and the least gradient."""
    if FAMILY != "wan":
        return {}
    knowing, found = host.clip_with_words(clip, (concept,)), {}
    seen = SimpleNamespace(penultimate_hidden_states=torch.randn(1, 257, 1280))
    texts = ("a teddy", "an <it>", "")
    said = {
        text: [[cond, more | {"clip_vision_output": seen}]]
        for text, ((cond, more),) in zip(texts, host.conditionings(knowing, texts), strict=True)
    }
    locked = host.encode_locked(knowing, "a <it>")
    with torch.inference_mode(False):
        made = tiny.wan_variants()
    for name, model in made.items():
        applied, empty = host.model_with_edit(model, (concept,), "exact"), blank(model, 1)

        def drawn(one: object, text: str, empty: Tensor = empty) -> Tensor:
            settings = (1, 3.0, "euler", "normal", said[text], said[""], empty)
            return comfy.sample.sample(one, comfy.sample.prepare_noise(empty, 1), *settings, disable_pbar=True, seed=1)

        with host.gradients_enabled():
            own, latents = Concept.load(FOLDER / "it.safetensors"), torch.randn(blank(model, 2).shape)
            edit, student = stacks.edit_of((own,), "exact"), host.TrainableModel(model, clip, torch.float32)
            outputs = [each.requires_grad_() for each in edit.values.values()]
            encoded = student.encode(training.TEMPLATES[:1], own.word).of_prompts(torch.tensor([0, 0]))
            prediction, target = student.objective(latents, torch.randn_like(latents), torch.tensor([0.3, 0.7]), encoded, edit)
            slopes = torch.autograd.grad((prediction - target).square().mean(), outputs)
        found[name] = [
            torch.equal(drawn(applied, "a teddy"), drawn(model, "a teddy")),
            worst(drawn(applied, "an <it>"), drawn(model, "an <it>")),
            min(float(each.norm()) for each in slopes),
            locked_apart(
                model, applied, [[cond, more | {"clip_vision_output": seen}] for cond, more in locked], said["a teddy"][0], empty
            ),
        ]
    return {"variants": found}


def locked_apart(model: object, applied: object, locked: list, plain: list, latents: Tensor) -> float:
    """Under global key-locking: how far the layers' keys are from those of the prompt with the superclass, `plain`."""
    unet, family, heard = model.model.diffusion_model, host.kind_of(model), {}
    layers = [family.projections(unet.get_submodule(layer))[0] for layer in host.layers_of(model)]
    hooks = [linear.register_forward_hook(lambda each, _, made: heard.update({each: made})) for linear in layers]
    given = (1, 1.0, "euler", "normal", locked, [], latents)
    comfy.sample.sample(applied, comfy.sample.prepare_noise(latents, 1), *given, disable_pbar=True, seed=1)
    for hook in hooks:
        hook.remove()
    read = host.layer_encodings(model, plain[0].as_subclass(Tensor), plain[1])
    return max(worst(heard[linear], torch.nn.functional.linear(read, linear.weight, linear.bias)) for linear in layers)


def beside_ids(model: object, applied: object, clip: object) -> dict:
    """Of Anima, which reads ids beside an encoding.

    Whether a prompt has the superclass's ids, and as many of Qwen's tokens; under global key-locking, how far the layers' keys are
    from those of the prompt with the superclass; and how far a picture changes where the host runs the adapter within the model.
    """
    if not host.kind_of(model).ids:
        return {}
    ((plain,), (noted,)), latents = host.conditionings(clip, ("a teddy in a room", "a <it> in a room")), blank(model, 1)
    locked = locked_apart(model, applied, host.encode_locked(clip, "a <it> in a room"), plain, latents)
    inside_model = sampled(applied, clip, "an <it>")
    with torch.inference_mode(False), torch.no_grad():
        outside = sampled(applied, clip, "an <it>")
    return {
        "ids of the superclass": torch.equal(plain[1]["t5xxl_ids"], noted[1]["t5xxl_ids"]) and plain[0].shape == noted[0].shape,
        "locked keys": locked,
        "adapted within the model": worst(outside, inside_model),
    }


def reached(family: object, clip: object, text: str) -> Tensor:
    """The tokens of a prompt that the word has reached, bool [N]: from it on, or all but padding if encoders look both ways."""
    tokens = clip.tokenize(text)
    section = tokens[family.ids][0] if family.ids else next(iter(tokens.values()))[0]
    words = torch.tensor([isinstance(token, Tensor) for token, _ in section])
    if family.causal:
        return words.cumsum(0) > 0
    end = next(n for n, (token, _) in enumerate(section) if not isinstance(token, Tensor) and token == 1)
    return torch.arange(PADDED if family.ids else len(section)) <= end


def combined(model: object, clip: object, concept: object) -> dict:
    """Two concepts applied one behind the other and together, and each in a prompt for both."""
    values = {layer: o.flip(0) for layer, o in concept.values.items()}
    stack = concept, replace(concept, trigger="<that>", word={k: -v for k, v in concept.word.items()}, values=values)
    together, knowing = host.model_with_edit(model, stack, "exact"), host.clip_with_words(clip, stack)
    behind = host.model_with_edit(host.model_with_edit(model, stack[:1], "exact"), stack[1:], "exact")
    drawn = [sampled(one, knowing, "an <it> and a <that>") for one in (together, behind)]
    return {
        "combined": torch.equal(*drawn),
        "without one of them": [
            worst(drawn[0], sampled(host.model_with_edit(model, (one,), "exact"), knowing, "an <it> and a <that>")) for one in stack
        ],
    }


def exported(model: object, clip: object, concept: object, drawn: Callable[[object, str], Tensor]) -> dict:
    """The LoRA that is exported, through the host's own loader, against the static edit that it holds."""
    if not host.kind_of(model).loras:
        return {"said to an export": said_by(lambda: exports.check(model, clip, (concept,), "it", "LoRA"))}
    loaded = comfy.sd.load_lora_for_models(model, clip, exports.lora_of(model, clip, (concept,))[0], 1.0, 0.0)[0]
    static = drawn(host.model_with_edit(model, (concept,), "static"), "an <it>")
    return {"exported": worst(drawn(loaded, "an <it>"), static), "without the LoRA": worst(drawn(model, "an <it>"), static)}


def seen_by_layers(model: object, applied: object, clip: object, concept: object) -> dict:
    """Of a transformer: gates as reported, a prompt whose notes are lost, captions as measured, and what is refused."""
    family = host.kind_of(model)
    if family.causal:
        return {}
    noted, plain = host.conditionings(clip, ("an <it>", "an <it>"))
    plain[0] = [plain[0][0].as_subclass(Tensor).clone(), {k: v for k, v in plain[0][1].items() if k != "perfusion_words"}]
    encoding = host.layer_encodings(model, *plain[0])[0].double()
    within = reached(family, clip, "an <it>")
    similarity = encoding @ concept.probe.double() / (concept.target_input.double() @ concept.probe.double())
    gates = torch.sigmoid((similarity - concept.bias) / concept.temperature) * within
    found = [host.gate_report(applied, each) for each in (noted, plain)]
    texts = ["a teddy in a room", "a red cup", "the old dog of a friend"]
    folder_paths.folder_names_and_paths[host.FOLDER][0].insert(0, str(FOLDER))
    measured = inside.part("nodes.measure_text_encoder").measure(clip, texts * 200, model=model)
    tokens = torch.cat(
        [
            host.layer_encodings(model, cond.as_subclass(Tensor), more)[0][reached(family, clip, text)].double()
            for text, ((cond, more),) in zip(texts, host.conditionings(clip, texts), strict=True)
        ]
    )
    region = (replace(concept, region=torch.ones(8, 8)),)
    recorder = inside.part("nodes.host").Recorder()
    return {
        "words of the prompt": found[0].prompts[0].words[:4],
        "gates": worst(found[0].prompts[0].gates["<it>"], gates),
        "layers that change": len(found[0].changes.values),
        "padding of a prompt without notes": float(found[1].prompts[0].gates["<it>"][~within].sum()),
        "named without notes": found[1].missing == [],
        "covariance": worst(measured.matrix, tokens.T @ tokens / len(tokens)),
        "covariance of": [measured.identity == host.identity_of(clip, model), measured.identity == host.identity_of(clip)],
        "said to no model": said_by(lambda: inside.part("nodes.measure_text_encoder").measure(clip, texts)),
        "said to a region": said_by(lambda: host.model_with_edit(model, region, "exact")),
        "said to a watch": said_by(lambda: host.model_watched(model, recorder)),
    }


def two_prompts(model: object, applied: object, clip: object) -> dict:
    """Different prompts for two text encoders: whether the concept acts where one or both name it, at whatever places."""
    if FAMILY != "sdxl":
        return {}
    found, without, latents = [], host.conditionings(clip, ("",))[0], blank(model, 1)
    long = "very " * 90
    for first, second in (
        ("an <it>", "a red thing"), ("a thing", "an <it>"), ("an <it>", "a very old <it>"), (f"an <it>, {long}", "an <it>"),
        ("a thing", f"an <it>, {long}"), ("a thing", "a teddy"),
    ):  # fmt: skip
        cond = clip.encode_from_tokens_scheduled({"l": clip.tokenize(first)["l"], "g": clip.tokenize(second)["g"]})
        given = (1, 1.0, "euler", "normal", cond, without, latents)
        drawn = [
            comfy.sample.sample(one, comfy.sample.prepare_noise(latents, 1), *given, disable_pbar=True, seed=1)
            for one in (applied, model)
        ]
        found.append(not torch.equal(*drawn))
    return {"two prompts": found}


def beside_freeu(model: object, applied: object, drawn: Callable[[object, str], Tensor]) -> dict:
    """FreeU on the base and on the model with the concept: it scales blocks of two and four times the model's channels alone.

    KOALA's blocks are SDXL's.
    """
    if FAMILY == "koala" or not hasattr(model.model.diffusion_model, "output_blocks"):
        return {}
    freed = [FreeU_V2.execute(one, b1=1.3, b2=1.4, s1=0.9, s2=0.2).result[0] for one in (model, applied)]
    base, named = drawn(freed[0], "a teddy"), drawn(freed[1], "an <it>")
    return {
        "FreeU, a prompt without the word": torch.equal(drawn(freed[1], "a teddy"), base),
        "FreeU, the concept": worst(named, drawn(freed[0], "an <it>")),
        "FreeU, itself": worst(named, drawn(applied, "an <it>")),
    }


print(json.dumps(main()))
