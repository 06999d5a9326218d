"""Teach a concept."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path

import torch
from comfy.model_management import InterruptProcessingException
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP, VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io
from torch import Tensor

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import SUPERCLASS_LENGTH, Concept, Stack, check_trigger
from ..perfusion_core.covariance import Covariance, probe
from ..perfusion_core.edit import MODES
from ..perfusion_core.files import read, require, write
from ..perfusion_core.following import Judgement
from ..perfusion_core.training import LOCAL, NONE, TRAINED, Lesson, Settings, held_out_loss, start, teach
from . import host, pictures
from .covariance import check_covariance, measure
from .following import Following
from .kinds import CATEGORY, WORKROOM, ConceptType, CovarianceType, home, size_input

log = logging.getLogger("perfusion")

CHECKPOINT_EVERY = 25
MAX_CHECKPOINT = 256 * 2**20
CHECKPOINT = {"format": "perfusion-training", "version": "1"}
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAST, BEST = "last", "best"
DEFAULTS = Settings()


def check(
    family: str, clip: CLIP, superclass: str, trigger: str, size: int, covariance: Covariance | None, settings: Settings
) -> None:
    """Raise PerfusionError for what cannot be trained, before any work."""
    settings.check()
    if family == "sdxl":
        raise PerfusionError("Train Concept cannot teach SDXL models yet; use a checkpoint of SD1 or SD2.")
    if not superclass.strip():
        raise PerfusionError("Training needs a superclass: the plain word for what the pictures show, such as teddy.")
    if len(superclass) > SUPERCLASS_LENGTH:
        raise PerfusionError(f"The superclass should be a word or two; {len(superclass)} characters came.")
    if "{" in superclass + trigger or "}" in superclass + trigger:
        raise PerfusionError("The superclass and the trigger word cannot hold braces; take them out.")
    check_trigger(trigger)
    taken = [concept for concept in getattr(clip, "stack", ()) if concept.trigger.casefold() == trigger.casefold()]
    if taken:
        raise PerfusionError(
            f"The trigger word {trigger} is already taken by a {taken[0].superclass} on this CLIP; choose another one."
        )
    if size % 8:
        raise PerfusionError(f"The size of training pictures must be a multiple of 8 pixels; {size} came.")
    check_covariance(clip, covariance)
    for word in (superclass, settings.initial_word):
        if word:
            host.embed(clip, word)


def settings_of(chosen: Mapping[str, object]) -> Settings:
    """The settings of a training, by the node's widgets; what is not among them is as usual."""
    named = {"bias": "train_bias", "temperature": "train_temperature", "mode": "edit_mode", "micro": "at_once"}
    given = {field.name: named.get(field.name, field.name) for field in fields(Settings)}
    settings = Settings(**{name: chosen[widget] for name, widget in given.items() if widget in chosen})
    return replace(settings, micro=min(settings.micro, settings.batch), initial_word=settings.initial_word.strip())


def both_sides(model: ModelPatcher, vae: VAE, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Latents [pictures, 2, c, h, w] and masks [pictures, 2, 1, h, w] of prepared pictures and of their mirror images."""
    latents = torch.stack([host.latents_of(vae, model, each) for each in (images, images.flip(2))], dim=1)
    return latents, torch.stack([pictures.latent_masks(each, *latents.shape[-2:]) for each in (masks, masks.flip(2))], dim=1)


def fingerprint(
    model: ModelPatcher,
    clip: CLIP,
    vae: VAE,
    settings: Settings,
    superclass: str,
    keep: str,
    images: Tensor,
    masks: Tensor,
    covariance: Covariance,
) -> str:
    """A digest of all that a training depends on: a checkpoint serves the same training alone.

    How many pictures are computed at once changes nothing but the memory: who ran out of it goes on with fewer.
    """
    told = replace(settings, micro=1), superclass, keep, host.identity_of(clip), host.identity_of_weights(model, vae)
    digest = hashlib.sha256(str(told).encode())
    # An embedding of the same name may hold other vectors by now.
    initial = host.embed(clip, settings.initial_word or superclass)
    for tensor in (images, masks, covariance.matrix, *initial.values()):
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def resume(path: Path, fresh: Lesson) -> Lesson:
    """The lesson of a checkpoint, or the fresh one where there is none that fits."""
    if not path.exists():
        return fresh
    try:
        named, told = read(path, MAX_CHECKPOINT)
        require(all(told.get(name) == value for name, value in CHECKPOINT.items()), path, "it is of another version")
        lesson = Lesson.from_tensors({k: v.to(fresh.target_input.device) for k, v in named.items()})
    except PerfusionError as error:
        log.warning("%s Training starts anew.", error)
        return fresh
    shapes = [{k: v.shape for k, v in each.tensors().items() if k != "losses"} for each in (lesson, fresh)]
    if shapes[0] != shapes[1]:
        return fresh
    log.info("Training goes on from step %d.", lesson.step)
    return lesson


def concept_of(lesson: Lesson, inverse: Tensor, trigger: str, superclass: str, family: str, settings: Settings) -> Concept:
    """What has been learned so far as a concept, on the CPU."""

    def own(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.detach().cpu().clone() for k, v in tensors.items()}

    target_input = lesson.target_input.cpu().clone()
    told = {k: v for k, v in asdict(settings).items() if k not in ("micro", "ema")}
    return Concept(
        trigger=trigger,
        superclass=superclass,
        family=family,
        word=own(lesson.word),
        target_input=target_input,
        probe=probe(inverse, target_input),
        superclass_encoding=lesson.superclass_encoding.cpu().clone(),
        values=own(lesson.values),
        keys=own(lesson.keys),
        # The paper's ratio of inference to training: 0.6 to 0.75, and 0.15 to 0.1.
        bias=round(0.8 * settings.bias, 6),
        temperature=round(1.5 * settings.temperature, 6),
        training=told | {"steps": lesson.step},
    )


def portrait(model: ModelPatcher, clip: CLIP, vae: VAE, concept: Concept, size: int, seed: int, mode: str) -> Tensor:
    """A picture [size, size, 3] of a concept by itself."""
    taught = host.model_with_edit(model, (concept,), mode), host.clip_with_words(clip, (concept,))
    return host.draw(*taught, vae, f"a photo of a {concept.trigger}", size, seed)[0]


def steps_folder(trigger: str, digest: str) -> Path:
    """Where concepts are saved that a training makes on its way: the same training comes to the same folder again."""
    name = re.sub(r"[^\w-]+", "-", trigger).strip("-") or "concept"
    return home() / "steps" / f"{name}-{digest[:8]}"


class Best:
    """The best concept of a training so far, told by `following.Judgement`; kept in a file, as the training itself is."""

    def __init__(self, path: Path, following: Callable[[], Following], mode: str) -> None:
        """`following` is asked for when it is first needed."""
        self.path, self.mode = path, mode
        self.following = cache(following)

    def judge(self, concept: Concept, loss: float) -> Concept:
        """The concept with what is thought of it, which is kept if there was no better one."""
        (score,) = self.following().scores(concept, [concept.bias], self.mode)
        judged = replace(concept, training={**concept.training, "held_out_loss": loss, "followed": score})
        if not self.path.exists() or judgement_of(judged).beats(judgement_of(self.concept())):
            judged.save(self.path, torch.float32)
        return judged

    def concept(self) -> Concept:
        """The best one."""
        return Concept.load(self.path)


def judgement_of(concept: Concept) -> Judgement:
    """What was thought of a concept while it was taught."""
    return Judgement(float(concept.training["held_out_loss"]), float(concept.training["followed"]))


@dataclass(frozen=True)
class Often:
    """What a training does on its way: steps between pictures that are shown and concepts that are saved, 0 for none; and
    what keeps the best of every CHECKPOINT_EVERY steps.
    """

    so_far: Callable[[Lesson], Concept]
    preview_every: int
    show: Callable[[Concept], Tensor]
    save_every: int
    steps_folder: Path
    best: Best | None


class PerfusionTrain(io.ComfyNode):
    """Pictures -> concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The node's form."""
        return io.Schema(
            node_id="PerfusionTrain",
            display_name="Train Concept (Perfusion)",
            category=CATEGORY,
            description="Teaches the model a concept from a few pictures: a word, and what the word means to each layer. The model "
            "itself is not changed. A stopped training goes on when the same graph is queued again.",
            search_aliases=["perfusion", "personalize", "teach", "dreambooth", "textual inversion", "train lora"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to teach the concept to; it is left as it is."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input(
                    "images",
                    tooltip="Four to ten pictures of the concept, of any size: a batch, or a list from a folder. Of each, the "
                    "largest square around the thing is taken.",
                ),
                io.String.Input(
                    "superclass", default="teddy", tooltip="The plain word for what the pictures show: teddy, cat, mug."
                ),
                io.String.Input(
                    "trigger",
                    default="<my-teddy>",
                    tooltip="The word that will stand for the concept in prompts, in angle brackets.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, min=1, max=100000, tooltip="Too many lose the prompt, too few the likeness."
                ),
                io.Int.Input("batch", default=DEFAULTS.batch, min=1, max=256, tooltip="Pictures a step."),
                size_input(),
                io.Int.Input(
                    "seed",
                    default=DEFAULTS.seed,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed gives the same concept.",
                ),
                io.Float.Input(
                    "word_rate",
                    default=DEFAULTS.word_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Learning rate of the word. High: the likeness comes sooner, but the word may run away from its kind.",
                ),
                io.Float.Input(
                    "output_rate",
                    default=DEFAULTS.output_rate,
                    min=1e-7,
                    max=10.0,
                    step=1e-4,
                    round=False,
                    tooltip="Learning rate of what the word means to the layers.",
                ),
                io.Float.Input(
                    "train_bias",
                    default=DEFAULTS.bias,
                    min=-1.0,
                    max=2.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Bias of the gate while training.",
                ),
                io.Float.Input(
                    "train_temperature",
                    default=DEFAULTS.temperature,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Temperature of the gate while training.",
                ),
                io.Combo.Input(
                    "lock",
                    options=[LOCAL, TRAINED],
                    default=DEFAULTS.lock,
                    advanced=True,
                    tooltip="local: where the word looks is locked to the superclass. trained: learned too; closer to the "
                    "pictures, further from the prompt.",
                ),
                io.Combo.Input(
                    "edit_mode",
                    options=[*MODES, NONE],
                    default=DEFAULTS.mode,
                    advanced=True,
                    tooltip="The form of the edit; use the same in Apply Concept. static acts in every prompt, trigger word or "
                    "not, as an exported LoRA does. none: no layer is edited and the word alone is learned (Textual Inversion); "
                    "output_rate, lock, train_bias and train_temperature then have no effect, and word_rate is usually higher "
                    "(0.0005 to 0.005 with SD1.5).",
                ),
                io.Float.Input(
                    "flip",
                    default=DEFAULTS.flip,
                    min=0.0,
                    max=1.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How often pictures are mirrored; 0 for things with writing or a left and a right.",
                ),
                io.Int.Input(
                    "at_once",
                    default=DEFAULTS.micro,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Pictures of a batch that are computed at once: fewer need less memory and give the same result.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *PRECISIONS],
                    default="auto",
                    advanced=True,
                    tooltip="Of the computation; what is learned is kept in float32. auto: bf16 where the device has it.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=100,
                    min=0,
                    max=100000,
                    advanced=True,
                    tooltip="Steps between pictures of the concept so far; 0 for none.",
                ),
                io.Float.Input(
                    "min_snr",
                    default=DEFAULTS.min_snr,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Above 0 (5 is usual) what shapes a picture counts more than its finest grain; 0: the model's own "
                    "loss.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One for each image, white where the object is; keeps backgrounds out of the concept.",
                ),
                CovarianceType.Input(
                    "covariance", optional=True, tooltip="From Measure Text Encoder; without one it is made and kept."
                ),
                io.String.Input(
                    "initial_word",
                    default=DEFAULTS.initial_word,
                    optional=True,
                    advanced=True,
                    tooltip="What the word starts as: a plain word, or embedding:NAME of models/embeddings, which also says how "
                    "many vectors it has; empty: the superclass. What it means to the layers starts at the superclass in any case.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=100000,
                    optional=True,
                    advanced=True,
                    tooltip="Steps between concepts that are saved on the way, to models/perfusion/steps, so that the best can be "
                    "chosen afterwards; 0 for none.",
                ),
                io.Boolean.Input(
                    "target_gradient",
                    default=DEFAULTS.target_gradient,
                    optional=True,
                    advanced=True,
                    tooltip="The word learns with the place where the edit acts, which moves with it; else that place counts as "
                    "fixed within a step.",
                ),
                io.Combo.Input(
                    "keep",
                    options=[LAST, BEST],
                    default=LAST,
                    optional=True,
                    advanced=True,
                    tooltip=f"last: the concept that training ends with. best: the best one, looked at every {CHECKPOINT_EVERY} "
                    "steps and told by the model itself: the one most like the pictures of those with which it still follows "
                    "prompts. Takes about a quarter more time.",
                ),
            ],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The concept: save it, or apply it at once."),
                io.Image.Output(display_name="loss_plot", tooltip="The loss over the steps."),
                io.Image.Output(display_name="preview", tooltip="The concept by itself."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list,
        clip: list,
        vae: list,
        images: list,
        masks: list | None = None,
        covariance: list | None = None,
        **widgets: list,
    ) -> io.NodeOutput:
        """Train it."""
        model, clip, vae = model[0], clip[0], vae[0]
        covariance = covariance[0] if covariance else None
        chosen = {name: value[0] for name, value in widgets.items()}
        superclass, trigger, size = chosen["superclass"].strip(), chosen["trigger"].strip(), chosen["size"]
        settings = settings_of(chosen)
        family = host.family_of(model)
        check(family, clip, superclass, trigger, size, covariance, settings)
        ready, marks = pictures.prepare(images, masks, size)
        covariance = covariance or measure(clip, None)
        inverse = covariance.inverse()

        latents, weights = both_sides(model, vae, ready, marks)
        precision = PRECISIONS.get(chosen["precision"]) or host.best_precision(model.load_device)
        keep = chosen.get("keep", LAST)
        digest = fingerprint(model, clip, vae, settings, superclass, keep, ready, marks, covariance)
        path = home() / WORKROOM / f"training-{digest}.safetensors"

        def so_far(lesson: Lesson) -> Concept:
            return concept_of(lesson, inverse, trigger, superclass, family, settings)

        def show(concept: Concept) -> Tensor:
            return portrait(model, clip, vae, concept, size, settings.seed, settings.mode)

        def following() -> Following:
            return Following(model, clip, superclass, size, settings.seed)

        best = Best(path.with_name(f"best-{digest}.safetensors"), following, settings.mode) if keep == BEST else None
        folder = steps_folder(trigger, digest)
        often = Often(so_far, chosen["preview_every"], show, chosen.get("save_every", 0), folder, best)

        with host.learning():
            student = host.Student(model, clip, precision, settings.min_snr)
            lesson = run(student, superclass, settings, latents, weights, inverse, path, often)
            del student  # it would keep the weights on their device while the picture is drawn
        taught = best.concept() if best else so_far(lesson)
        picture = show(taught)
        concept: Stack = (replace(taught, preview=pictures.preview_bytes(picture)),)
        path.unlink(missing_ok=True)
        if best:
            best.path.unlink()
        return io.NodeOutput(concept, pictures.loss_plot(lesson.losses), picture[None])


def run(
    student: host.Student,
    superclass: str,
    settings: Settings,
    latents: Tensor,
    weights: Tensor,
    inverse: Tensor,
    path: Path,
    often: Often,
) -> Lesson:
    """Teach, with progress and checkpoints, within `host.learning`; from the checkpoint at `path` where there is one."""
    bar = ProgressBar(settings.steps)

    def keep(lesson: Lesson) -> None:
        write(path, lesson.tensors(), CHECKPOINT)

    def judged(lesson: Lesson) -> Concept:
        concept = often.so_far(lesson)
        if often.best and (lesson.step % CHECKPOINT_EVERY == 0 or lesson.step == settings.steps):
            return often.best.judge(concept, held_out_loss(student, lesson, latents, weights, inverse, settings))
        return concept

    def after_step(lesson: Lesson) -> None:
        last, preview = lesson.step == settings.steps, None
        saving, showing, checking = (
            every > 0 and lesson.step % every == 0 for every in (often.save_every, often.preview_every, CHECKPOINT_EVERY)
        )
        if checking:
            keep(lesson)
        # Most steps need no concept, and to make one copies all of it from the device.
        if saving or showing or checking or last:
            concept = judged(lesson)
            if saving:
                concept.save(often.steps_folder / f"{lesson.step:05}.safetensors", torch.float32)
            if showing and not last:
                preview = ("JPEG", pictures.to_pil(often.show(concept)), 512)
        bar.update_absolute(lesson.step, settings.steps, preview)

    # Copies: tensors of the node's inference mode can take no part in a backward pass.
    latents, weights = (tensor.to(student.device, torch.float32, copy=True) for tensor in (latents, weights))
    inverse = inverse.clone()
    lesson = resume(path, start(student, superclass, settings))
    bar.update_absolute(lesson.step, settings.steps)
    try:
        if lesson.step:
            judged(lesson)  # it may have been stopped before that
        return teach(student, lesson, latents, weights, inverse, settings, after_step)
    except InterruptProcessingException:
        # The host raises it from within any of its layers; the lesson then stands as after its last whole step.
        keep(lesson)
        log.info("Training stopped at step %d of %d; queue the same graph again to go on.", lesson.step, settings.steps)
        raise


NODES = [PerfusionTrain]
