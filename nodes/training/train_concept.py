"""Train a concept."""

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import check_trigger
from ...perfusion_core.concept_file import SUPERCLASS_LENGTH
from ...perfusion_core.covariance import Covariance
from ...perfusion_core.gated_edit import MODES
from ...perfusion_core.prompts import word_key
from ...perfusion_core.stack import Stack
from ...perfusion_core.training.lesson import Lesson
from ...perfusion_core.training.settings import FINE, LOCKS, NO_EDIT, Settings
from .. import host
from ..charts import loss_plot, preview_bytes
from ..io_types import CATEGORY, ConceptType, CovarianceType, size_input, validation_result
from ..measure_text_encoder import check_covariance, measure
from .checkpoints import fingerprint
from .memory import AUTO, CARDS
from .options import TrainingOptions, TrainingOptionsType
from .picture_judge import PictureJudge
from .preparation import Preparation
from .previews import Previews
from .progress import show_lesson
from .schedule import CHECKPOINT_EVERY, Schedule
from .session import TrainingSession

log = logging.getLogger("perfusion")

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAST, BEST = "last", "best"
DEFAULTS = Settings()


def check_words(superclass: str, trigger: str) -> None:
    """Raise PerfusionError if the superclass or the trigger word is invalid."""
    if not superclass.strip():
        raise PerfusionError("Training needs a superclass; enter the plain word for what the pictures show, such as teddy.")
    if len(superclass) > SUPERCLASS_LENGTH:
        raise PerfusionError(
            f"The superclass should be only a word or two, but this one has {len(superclass)} characters; shorten it."
        )
    if "{" in superclass + trigger or "}" in superclass + trigger:
        raise PerfusionError("The superclass and the trigger word cannot contain braces; remove them.")
    check_trigger(trigger)


def check(
    model: ModelPatcher,
    clip: CLIP,
    superclass: str,
    trigger: str,
    size: int,
    covariance: Covariance | None,
    settings: Settings,
) -> None:
    """Raise PerfusionError if the inputs cannot be trained with, before any work is done."""
    settings.check()
    check_words(superclass, trigger)
    if settings.mode != NO_EDIT:
        host.check_mode(model, settings.mode)
    known = (*getattr(clip, "stack", ()), *host.stack_of(model))
    taken = [concept for concept in known if word_key(concept.trigger) == word_key(trigger)]
    if taken:
        raise PerfusionError(
            f"The connected model or CLIP already has a concept with the trigger word {trigger} (superclass: "
            f"{taken[0].superclass}); choose a different trigger word."
        )
    step = host.pixels_per_latent(model)
    if size % step:
        raise PerfusionError(f"The size of training pictures must be a multiple of {step} pixels, not {size}.")
    check_covariance(clip, covariance, model)
    for word in (superclass, settings.initial_word):
        if word:
            host.embed(clip, word)


def settings_of(chosen: Mapping[str, object]) -> Settings:
    """Return the settings of a training from the values of the node's widgets; settings without a widget keep their defaults."""
    named = {"bias": "train_bias", "temperature": "train_temperature", "mode": "edit_mode", "micro": "at_once"}
    given = {field.name: named.get(field.name, field.name) for field in fields(Settings)}
    settings = Settings(**{name: chosen[widget] for name, widget in given.items() if widget in chosen})
    return replace(settings, micro=min(settings.micro, settings.batch), initial_word=settings.initial_word.strip())


class PerfusionTrain(io.ComfyNode):
    """Trains a concept from pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionTrain",
            display_name="Train Concept (Perfusion)",
            category=CATEGORY,
            description="Trains a concept from a few pictures: a word, and what the word means to each layer. The model itself is "
            "not changed. If you stop training early, the concept so far is saved; queue the same graph again to continue.",
            search_aliases=["perfusion", "personalize", "teach", "dreambooth", "textual inversion", "train lora"],
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to train the concept with; it is not changed."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input(
                    "images",
                    tooltip="Four to ten pictures of the concept, of any size: a batch, or a list from a folder. The largest "
                    "square around the object in each picture is used.",
                ),
                io.String.Input(
                    "superclass", default="teddy", tooltip="The plain word for what the pictures show: teddy, cat, mug."
                ),
                io.String.Input(
                    "trigger",
                    default="<my-teddy>",
                    tooltip="The word, in angle brackets, that will stand for the concept in prompts.",
                ),
                io.Int.Input(
                    "steps",
                    default=DEFAULTS.steps,
                    min=1,
                    max=100000,
                    tooltip="Too many: prompts are no longer followed. Too few: the concept does not look like your pictures.",
                ),
                io.Int.Input("batch", default=DEFAULTS.batch, min=1, max=256, tooltip="Pictures per step."),
                size_input(),
                io.Int.Input(
                    "seed",
                    default=DEFAULTS.seed,
                    min=0,
                    max=2**63 - 1,
                    control_after_generate=False,
                    tooltip="The same seed gives the same concept, up to rounding: with several processor threads or on a graphics "
                    "card, numbers may be summed in a different order.",
                ),
                io.Float.Input(
                    "word_rate",
                    display_name="learning rate: word",
                    default=DEFAULTS.word_rate,
                    min=1e-7,
                    max=1.0,
                    step=1e-5,
                    round=False,
                    tooltip="Learning rate of the word. If it is high, the concept comes to resemble your pictures sooner, but "
                    "the word may drift away from its superclass.",
                ),
                io.Float.Input(
                    "output_rate",
                    display_name="learning rate: outputs",
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
                    tooltip="Bias of the gate during training.",
                ),
                io.Float.Input(
                    "train_temperature",
                    default=DEFAULTS.temperature,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Temperature of the gate during training.",
                ),
                io.Combo.Input(
                    "lock",
                    options=[*LOCKS],
                    default=DEFAULTS.lock,
                    advanced=True,
                    tooltip="local: where the word acts in the image is locked to the superclass. trained: where it acts is "
                    "learned too; images are closer to the pictures but further from the prompt. word: where it acts is learned, "
                    "but changed only at the trigger word itself; images are closest to the pictures, and closer to the prompt "
                    "than with trained. fine: like word, but only in the layers with the highest resolution; the others, which "
                    "decide where things are, stay locked.",
                ),
                io.Combo.Input(
                    "edit_mode",
                    options=[*MODES, NO_EDIT],
                    default=DEFAULTS.mode,
                    advanced=True,
                    tooltip="The form of the edit; use the same one in Apply Concept. static acts in every prompt, with or "
                    "without the trigger word, as an exported LoRA does. none: no layer is edited and only the word is learned "
                    "(Textual Inversion); output_rate, lock, train_bias and train_temperature then have no effect, and word_rate "
                    "is usually higher (0.0005 to 0.005 with SD1.5).",
                ),
                io.Float.Input(
                    "flip",
                    default=DEFAULTS.flip,
                    min=0.0,
                    max=1.0,
                    step=0.1,
                    advanced=True,
                    tooltip="How often pictures are mirrored; use 0 for objects with writing or a distinct left and right.",
                ),
                io.Int.Input(
                    "at_once",
                    default=DEFAULTS.micro,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="How many pictures of a batch are processed at once; fewer need less memory and give the same result.",
                ),
                io.Combo.Input(
                    "precision",
                    options=["auto", *PRECISIONS],
                    default="auto",
                    advanced=True,
                    tooltip="Precision of the computation; what is learned is kept in float32. auto: bf16 if the device supports "
                    "it.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=50,
                    min=0,
                    max=100000,
                    advanced=True,
                    tooltip="Steps between preview images of the concept so far; the first one shows the superclass. 0: no "
                    "previews.",
                ),
                io.Float.Input(
                    "min_snr",
                    default=DEFAULTS.min_snr,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    advanced=True,
                    tooltip="Above 0 (5 is usual), the noise levels that shape an image count more in the loss than those that "
                    "affect only its finest details. 0: the model's own loss.",
                ),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="One for each picture, white where the object is; keeps backgrounds out of the concept.",
                ),
                CovarianceType.Input(
                    "covariance",
                    optional=True,
                    tooltip="From Measure Text Encoder; if nothing is connected, the covariance is measured automatically and "
                    "kept.",
                ),
                io.String.Input(
                    "initial_word",
                    default=DEFAULTS.initial_word,
                    optional=True,
                    advanced=True,
                    tooltip="What the word starts as: a plain word, or embedding:NAME from models/embeddings. This also sets how "
                    "many vectors the word has. Empty: the superclass. What the word means to the layers always starts as the "
                    "superclass.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=100000,
                    optional=True,
                    advanced=True,
                    tooltip="Number of steps between the concepts that are saved to models/perfusion/steps during training, so "
                    "that you can choose the best one later. 0: none.",
                ),
                io.Boolean.Input(
                    "target_gradient",
                    default=DEFAULTS.target_gradient,
                    optional=True,
                    advanced=True,
                    tooltip="On: the encoding that the gate compares words with (the target input) moves with the word, and "
                    "gradients also reach the word through it. Off: that encoding is treated as fixed within each step.",
                ),
                io.Combo.Input(
                    "keep",
                    options=[LAST, BEST],
                    default=LAST,
                    optional=True,
                    advanced=True,
                    tooltip="last: the concept at the end of training. best: of the concepts that still follow the prompt, the one "
                    f"most like your pictures. This is checked every {CHECKPOINT_EVERY} steps: by the model itself, which makes "
                    "training about a quarter longer, or by images if a CLIP vision model is connected in Training Options, which "
                    "can almost double it.",
                ),
                io.Combo.Input(
                    "memory",
                    options=[AUTO, *CARDS],
                    default=AUTO,
                    optional=True,
                    advanced=True,
                    tooltip="auto: as many pictures are processed at once as free memory allows, up to at_once; if memory is very "
                    "tight, parts of the model are computed twice, which takes a third longer. 6 GB to 12 GB: aims to stay within "
                    "the memory of a graphics card of that size. The resulting concept is the same in all cases.",
                ),
                io.Float.Input(
                    "small",
                    default=DEFAULTS.small,
                    min=0.0,
                    max=1.0,
                    step=0.1,
                    optional=True,
                    advanced=True,
                    tooltip="How often the object is shown in one half of the frame, at no more than half the frame's size; for "
                    "a concept that will appear beside another one or far away.",
                ),
                TrainingOptionsType.Input(
                    "options",
                    optional=True,
                    tooltip="From Training Options: captions, shapes, cut-outs, previews, and choosing the best step by its "
                    "images.",
                ),
            ],
            outputs=[
                ConceptType.Output(display_name="concept", tooltip="The concept: save it, or apply it right away."),
                io.Image.Output(display_name="loss_plot", tooltip="The loss over the steps."),
                io.Image.Output(
                    display_name="preview",
                    tooltip="Images of the concept: one for each preview prompt; by default, a single one on the grass.",
                ),
                io.Image.Output(
                    display_name="sheet",
                    tooltip="The preview images from training, side by side, with one row for each preview prompt.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, superclass: list, trigger: list) -> bool | str:
        """Reject an invalid superclass or trigger word before the graph runs."""
        return validation_result(lambda: None in (*superclass, *trigger) or check_words(superclass[0].strip(), trigger[0].strip()))

    @classmethod
    def execute(
        cls,
        model: list,
        clip: list,
        vae: list,
        images: list,
        masks: list | None = None,
        covariance: list | None = None,
        options: list | None = None,
        **widgets: list,
    ) -> io.NodeOutput:
        """Train the concept."""
        model, clip, vae = model[0], clip[0], vae[0]
        covariance = covariance[0] if covariance else None
        chosen = {name: value[0] for name, value in widgets.items()}
        superclass, trigger, size = chosen["superclass"].strip(), chosen["trigger"].strip(), chosen["size"]
        settings = settings_of(chosen)
        family = host.family_of(model)
        host.check_vae(vae)
        check(model, clip, superclass, trigger, size, covariance, settings)
        host.check_trainable(model, clip)
        if settings.lock == FINE and settings.mode != NO_EDIT:
            host.fine_layers_of(model)
        given: TrainingOptions = options[0] if options else TrainingOptions(previews=Previews.suited_to(model))
        ready = Preparation.of(images, masks, size, trigger, given)
        host.check_lengths(clip, ready.prompts(), trigger, superclass, settings.initial_word)
        keep, plain, judge = chosen.get("keep", LAST), None, None
        if given.vision is not None and keep != BEST:
            log.warning(
                "A CLIP vision model is connected, but keep is set to %s; set it to %s to choose the best step by its images.",
                keep,
                BEST,
            )
            given = replace(given, vision=None)
        if given.vision is not None:
            judge = PictureJudge(
                given.vision, ready.pictures, model, clip, vae, superclass, size, settings.seed, ready.previews, settings.mode
            )
        show_lesson(ready.pictures)
        if chosen["preview_every"]:
            # Generated before the text encoder is measured, which takes long the first time.
            plain = ready.previews.draw(model, clip, vae, superclass, size, settings.seed)
            show_lesson(ready.pictures, plain)
        buckets = ready.encoded(model, vae, settings.small > 0)
        covariance = covariance or measure(clip, None, model=model)
        digest = fingerprint(
            model, clip, vae, settings, superclass, keep, (*ready.tensors(), covariance.matrix), given.fingerprint()
        )
        session = TrainingSession(
            model=model,
            clip=clip,
            vae=vae,
            superclass=superclass,
            trigger=trigger,
            size=size,
            settings=settings,
            family=family,
            lesson=Lesson(buckets, covariance.inverse(), ready.templates, given.captioned),
            digest=digest,
            previews=ready.previews,
            plain=plain,
            judge=judge,
            schedule=Schedule(settings.steps, chosen["preview_every"], chosen.get("save_every", 0), keep == BEST),
            memory=chosen.get("memory", AUTO),
        )
        precision = PRECISIONS.get(chosen["precision"]) or host.best_precision(model.load_device)
        with (
            host.gradients_enabled(),
            contextlib.closing(host.TrainableModel(model, clip, precision, settings.min_snr, superclass)) as student,
        ):
            session.run(student)
        taught = session.result()
        pictures = session.pictures(taught)
        concept: Stack = (replace(taught, preview=preview_bytes(pictures[0])),)
        session.checkpoints.finish(session.state)
        return io.NodeOutput(concept, loss_plot(session.state.losses), pictures, session.progress.sheet(pictures))


NODES = [PerfusionTrain]
