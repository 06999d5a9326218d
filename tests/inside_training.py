"""Looks at the training side inside the real host: run by test_inside_training.py in the host's own interpreter.

`python -m tests.inside_training COMFYUI CHECKPOINT CONCEPT FOLDER` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import logging
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

from perfusion_fleet import inside
from scripts.generate.make_workflows import TRAINING

COMFYUI, CHECKPOINT, CONCEPT, FOLDER = map(Path, sys.argv[1:])
inside.enter_with_pack(COMFYUI)

import comfy.ldm.modules.attention as host_attention  # noqa: E402
import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness.differences import worst  # noqa: E402

host, training, checkpoints, session, folders = (
    inside.part(name)
    for name in (
        "nodes.host",
        "perfusion_core.training.loop",
        "nodes.training.checkpoints",
        "nodes.training.session",
        "nodes.folders",
    )
)
Concept, PerfusionError = inside.part("perfusion_core.concept").Concept, inside.part("perfusion_core").PerfusionError
WIDGETS: dict[str, object] = {
    "superclass": "monster", "trigger": "<it>", "size": 64, "seed": 0, "lock": "local", "edit_mode": "exact", "at_once": 4,
    "precision": "auto", "preview_every": 0,
}  # fmt: skip
SETTINGS = training.Settings(steps=4, batch=2, micro=2, word_rate=1e-3, output_rate=0.1, seed=1)
JUDGED_EVERY = 5
"""Steps between judgements, in place of the pack's 25."""


def main() -> dict:
    """All that is measured."""
    with torch.inference_mode():
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
        concept = Concept.load(CONCEPT)
        found = {"identities": identities(model, clip, vae)} | unwritable(concept)
        found |= {"refused": refused(model, clip, vae), "grey": grey(), "shapes": shapes(), "inverted": inverted()}
        found |= {"by pictures": by_pictures(model, clip, vae)}
    return found | attention_without_backward(model, clip) | {"channels": further_channels(model, clip, concept)}


def identities(model: Any, clip: Any, vae: Any) -> dict:
    """Whether each thing that changes what is computed changes the digest, and whether loading changes none."""
    projection = "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
    merged_clip, merged, sampling = clip.clone(), model.clone(), ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    for one, name in ((merged_clip.patcher, projection), (merged, layer)):
        weight = dict(one.model.named_parameters())[name]
        assert one.add_patches({name: ("diff", (torch.ones(weight.shape),))}, 0.01)
    deeper = clip.clone()
    deeper.clip_layer(-2)
    of = {
        "clip": lambda: host.identity_of(clip),
        "merged clip": lambda: host.identity_of(merged_clip),
        "deeper clip": lambda: host.identity_of(deeper),
        "model": lambda: host.identity_of_weights(model, vae),
        "merged model": lambda: host.identity_of_weights(merged, vae),
        "other objective": lambda: host.identity_of_weights(sampling, vae),
    }
    before, same = {name: each() for name, each in of.items()}, []
    for loaded in ([merged_clip.patcher, merged], [clip.patcher, model]):
        comfy.model_management.load_models_gpu(loaded)
        same.append({name: each() for name, each in of.items()} == before)
    comfy.model_management.unload_all_models()
    weight = dict(model.model.named_parameters())[layer]
    kept = weight.clone()
    weight.mul_(1.01)
    saved = of["model"]()
    weight.copy_(kept)
    return {"different": len({*before.values(), saved}), "same when loaded": same, "restored": of["model"]() == before["model"]}


def attention_without_backward(model: Any, clip: Any) -> dict:
    """Gradients where the host's attention has no backward pass, as --use-sage-attention's has none, against the usual ones."""
    student = host.TrainableModel(model, clip, torch.float32)
    latents, masks, seen = torch.randn(2, 2, 4, 8, 8), torch.ones(2, 2, 1, 8, 8), []

    @host_attention.wrap_attn
    def attention_sage(*args: Any, **kwargs: Any) -> Tensor:
        seen.append(comfy.model_management.in_training)
        return plain(*(each.detach() if isinstance(each, Tensor) else each for each in args), **kwargs)

    plain, found = host_attention.optimized_attention, {}
    with host.gradients_enabled():
        state = training.initial_state(student, "monster", SETTINGS)
        given = training.BatchSample.of(SETTINGS, 0, latents[:, 0]), latents, masks, torch.eye(768, dtype=torch.float64), SETTINGS
        for name, function in (("usual", plain), ("without", attention_sage)):
            host_attention.optimized_attention = function
            found[name] = training.gradients(student, state, *given)[0]
        host_attention.optimized_attention = plain
    apart = max(float((one - other).norm() / one.norm()) for one, other in zip(found["usual"], found["without"], strict=True))
    with torch.inference_mode():
        host_attention.optimized_attention = attention_sage
        host.predict_from_noise(model, host.conditionings(clip, ("a monster",)), 64, 1, 0)
        host_attention.optimized_attention = plain
    return {"attention": {"apart": apart, "in sampling": seen, "left": comfy.model_management.in_training}}


class GGMLTensor(torch.Tensor):
    """As the loader of GGUF files has them."""


def refused(model: Any, clip: Any, vae: Any) -> dict[str, str]:
    """What Train Concept says to what it cannot train on, before it measures the text encoder."""
    train = inside.part("nodes.training.train_concept")
    train.measure = lambda *_: 1 / 0
    widgets = {name: [value] for name, value in (TRAINING | WIDGETS).items()}
    usual = {"model": model, "clip": clip, "vae": vae, "images": torch.rand(2, 64, 64, 3)}
    layer = model.model.diffusion_model.time_embed[0]
    numbers, found = layer.weight, {}
    broken = types.SimpleNamespace(first_stage_model=1, encode=lambda _: torch.tensor(torch.nan))
    for name, changes, weight in (
        ("no model", {"model": None}, numbers),
        ("no text encoder", {"clip": None}, numbers),
        ("no VAE", {"vae": None}, numbers),
        ("an empty VAE", {"vae": types.SimpleNamespace(first_stage_model=None)}, numbers),
        ("a GGUF model", {}, torch.nn.Parameter(torch.zeros(2).as_subclass(GGMLTensor), False)),
        ("a model of integers", {}, torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), False)),
        (
            "a VAE that gives NaN",
            {"vae": broken},
            numbers,
        ),
        ("a picture of NaN", {"images": torch.full((1, 64, 64, 3), torch.nan)}, numbers),
    ):
        layer.weight = weight
        try:
            train.PerfusionTrain.execute(**{key: [value] for key, value in (usual | changes).items()}, **widgets)
        except PerfusionError as error:
            found[name] = str(error)
        layer.weight = numbers
    return found


def grey() -> bool:
    """Whether a picture of one channel, or of one and transparency, is taken as grey."""
    prepare, one = inside.part("nodes.training.training_pictures").prepare, torch.rand(1, 8, 8, 1)
    wanted = prepare([one.expand(-1, -1, -1, 3)], None, 8)[0].images
    return all(torch.equal(prepare([each], None, 8)[0].images, wanted) for each in (one, torch.cat([one, torch.ones_like(one)], 3)))


def shapes() -> dict[str, list]:
    """Height and width at which pictures of several shapes are trained, where small ones and where large ones are."""
    of, found = inside.part("nodes.training.training_pictures"), {}
    for size in (96, 512, 1024):
        given = [(300, 300), (300, 200), (200, 300), (1080, 1920), (100, 1000)]
        found[str(size)] = [of.shape_of(torch.zeros(*each, 3), size, of.WHOLE) for each in given]
    picture = torch.arange(40.0).expand(20, 40)[..., None].expand(-1, -1, 3) / 40
    (made,) = of.prepare([picture[None]], [torch.ones(1, 20, 40)], 64, of.WHOLE)
    found["as it is"] = [list(made.images.shape), list(made.masks.shape), float(made.masks.min())]
    return found


def inverted() -> list[bool]:
    """What looks inverted: a cut-out's mask; not a painted one, one that fills the picture, a small thing at the rim, none."""
    looks = inside.part("nodes.training.training_pictures").looks_inverted
    thing, whole = torch.zeros(64, 48), torch.ones(64, 48)
    thing[10:60, 8:40] = 1
    rim = whole.clone()
    rim[:6, :6] = 0
    return [looks(each) for each in (1 - thing, thing, whole, rim, 0 * whole)]


def by_pictures(model: Any, clip: Any, vae: Any) -> dict:
    """A training whose best step a CLIP vision model of a few seeded layers chooses: what it says of each, and what is kept."""
    from comfy.clip_vision import ClipVisionModel

    train, options = (inside.part(f"nodes.training.{name}") for name in ("train_concept", "options"))
    config = {
        "hidden_size": 32, "image_size": 28, "intermediate_size": 64, "layer_norm_eps": 1e-05, "num_attention_heads": 2,
        "num_channels": 3, "num_hidden_layers": 2, "patch_size": 14, "projection_dim": 16, "hidden_act": "quick_gelu",
        "model_type": "clip_vision_model",
    }  # fmt: skip
    path = FOLDER / "vision.json"
    path.write_text(json.dumps(config))
    vision, generator = ClipVisionModel(str(path)), torch.Generator().manual_seed(3)
    for weight in vision.model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    judged: list[dict] = []
    usual = train.PictureJudge.judgement

    def judgement(self: Any, concept: Any) -> Any:
        judged.append(usual(self, concept))
        return judged[-1]

    train.PictureJudge.judgement = judgement
    paths = folder_paths.folder_names_and_paths[host.FOLDER][0]
    before, paths[:] = list(paths), [str(FOLDER)]
    inside.part("nodes.training.schedule").CHECKPOINT_EVERY = JUDGED_EVERY
    widgets = (
        TRAINING
        | WIDGETS
        | {"steps": 2 * JUDGED_EVERY, "batch": 1, "at_once": 1, "keep": "best", "word_rate": 0.01, "trigger": "<seen>"}
    )
    how = options.Previews(steps=1)
    images = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    covariance = inside.part("perfusion_core.covariance").Covariance(torch.eye(768), 1, host.identity_of(clip))
    made = train.PerfusionTrain.execute(
        model=[model], clip=[clip], vae=[vae], images=[images], covariance=[covariance],
        options=[options.TrainingOptions(previews=how, vision=vision)], **{name: [value] for name, value in widgets.items()},
    )  # fmt: skip
    paths[:] = before
    (concept,) = made.args[0]
    return {"judged": [[each.likeness, each.prompted] for each in judged], "kept": dict(concept.training)}


def further_channels(model: Any, clip: Any, concept: Any) -> dict:
    """Bases whose first layer reads more channels, as inpainting's and InstructPix2Pix's do, made of the demo's base.

    With weights of 0 for the further channels they are that base; with others they are not, and are predicted as the host does.
    """
    first, found = "model.diffusion_model.input_blocks.0.0.weight", {}
    usual = taught(model, clip)[2], drawn(model, clip, concept), looked_at(model, clip)
    for name, count in (("inpainting", 5), ("InstructPix2Pix", 4)):
        mine = {}
        for kind, strength in (("as it is", 0.0), ("other", 0.2)):
            with torch.inference_mode():
                weights = comfy.utils.load_torch_file(str(CHECKPOINT))
                more = torch.randn(len(weights[first]), count, 3, 3, generator=torch.Generator().manual_seed(0))
                weights[first] = torch.cat([weights[first], (strength * more).to(weights[first])], 1)
                wide = comfy.sd.load_state_dict_guess_config(weights, output_vae=False, output_clip=False)[0]
            mine[kind] = {"model": type(wide.model).__name__, "reads": wide.model.diffusion_model.in_channels}
            mine[kind] |= compared(wide, usual, clip, concept)
        found[name] = mine
    return found


def taught(model: Any, clip: Any) -> tuple[Any, Any, list[Tensor]]:
    """A base as it is trained, the state before the first step, and the gradients of that step."""
    with host.gradients_enabled():
        student = host.TrainableModel(model, clip, torch.float32)
        state = training.initial_state(student, "monster", SETTINGS)
        latents, masks = seeded_latents(), torch.ones(2, 2, 1, 8, 8)
        given = training.BatchSample.of(SETTINGS, 0, latents[:, 0]), latents, masks, torch.eye(768).double(), SETTINGS
        return student, state, training.gradients(student, state, *given)[0]


def seeded_latents() -> Tensor:
    """Latents of two pictures and of their mirror images."""
    return torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def drawn(model: Any, clip: Any, concept: Any) -> Tensor:
    """What a base with a concept predicts of the plain word and of the concept's."""
    edited, words = host.model_with_edit(model, (concept,), "exact"), host.clip_with_words(clip, (concept,))
    return host.predict_from_noise(edited, host.conditionings(words, ("a monster", f"a {concept.trigger}")), 64, 1, 0)


def looked_at(model: Any, clip: Any) -> Tensor:
    """Where Find Object sees a word."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    return host.object_attention(model, clip, latents, "monster", 0)[0]


def compared(wide: Any, usual: tuple[list[Tensor], Tensor, Tensor], clip: Any, concept: Any) -> dict:
    """A base against the demo's, of which `usual` has gradients, predictions and an object that was found: those, and what training
    predicts against what the host does.
    """
    student, state, gradients = taught(wide, clip)
    with torch.no_grad():
        noise, time, sampling, latents = torch.randn(1, 4, 8, 8), torch.tensor([0.5]), wide.model.model_sampling, seeded_latents()
        encoded = student.encode(["a {}"], state.word)
        prediction, _ = student.objective(latents[:1, 0], noise, time, encoded, None)
        sigma = sampling.sigmas[(time * len(sampling.sigmas)).long()]
        noised = sampling.noise_scaling(sigma, noise, latents[:1, 0])
        told = {"cross_attn": encoded.tokens, "noise": noise, "latent_image": torch.zeros_like(noise), "device": "cpu"}
        conds = {name: each.cond for name, each in wide.model.extra_conds(**told, width=64, height=64).items()}
        wanted = wide.model.apply_model(noised, sigma, **conds)
        denoised = sampling.calculate_denoised(sigma, prediction, noised)
    found = drawn(wide, clip, concept)
    return {
        "gradients": max(worst(a, b) for a, b in zip(usual[0], gradients, strict=True)),
        "denoised": worst(denoised, wanted),
        "drawn": worst(usual[1], found),
        "found": worst(usual[2], looked_at(wide, clip)),
        "the concept": worst(found[0], found[1]),
    }


def unwritable(concept: Any) -> dict:
    """Folders that cannot be written: a file lies where the first of the user's should be; then nothing can be written at all."""
    blocked, room = FOLDER / "a file" / "perfusion", FOLDER / "room"
    blocked.parent.write_text("")
    before = folder_paths.get_folder_paths(host.FOLDER)[:]
    paths = folder_paths.folder_names_and_paths[host.FOLDER][0]
    paths[:] = [str(blocked), str(room)]
    found = {"next folder": folders.home() == room}
    paths[:] = [str(blocked)]
    warnings: list[str] = []
    handler = types.SimpleNamespace(level=logging.WARNING, handle=lambda record: warnings.append(record.getMessage()))
    logging.getLogger("perfusion").addHandler(handler)
    judged = [
        replace(concept, trigger=f"<{i}>", training={"held_out_loss": loss, "followed": 0.9})
        for i, loss in enumerate((0.3, 0.1, 0.2))
    ]
    files, state = checkpoints.Checkpoints("0" * 32), types.SimpleNamespace(tensors=lambda: {"losses": torch.zeros(1)}, step=1)
    found["anew"] = files.resume(state) is state
    for one in judged:
        files.keep_best(one)
    ended = types.SimpleNamespace(
        schedule=types.SimpleNamespace(judged=True), checkpoints=files, trigger="<new>", so_far=lambda: concept, state=state,
        settings=SETTINGS, digest="0" * 32, progress=types.SimpleNamespace(portraits=[]),
    )  # fmt: skip
    ended._save = types.MethodType(session.TrainingSession._save, ended)
    session.TrainingSession._stopped(ended)
    result = session.TrainingSession.result(ended)
    logging.getLogger("perfusion").removeHandler(handler)
    files.finish(state)
    paths[:] = before
    return found | {"unwritable": {"kept": result.training["held_out_loss"], "trigger": result.trigger, "warnings": warnings}}


print(json.dumps(main()))
