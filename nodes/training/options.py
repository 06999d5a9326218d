"""Further options of Train Concept, in a node of their own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from comfy.clip_vision import ClipVisionModel
from comfy_api.latest import io

from ...perfusion_core.captions import lines_of
from ...perfusion_core.prompts import TEMPLATES
from ...perfusion_core.training.lesson import as_templates
from .. import host
from ..io_types import CATEGORY
from .previews import ON_THE_GRASS, Previews
from .training_pictures import SQUARE, WHOLE

TrainingOptionsType = io.Custom("PERFUSION_TRAINING_OPTIONS")
"""A `TrainingOptions`."""

AS_SET, BY_CHECKPOINT = "as set", "by checkpoint"
PRESETS = ("SD1.5", "SD2", "SDXL", "demo")
"""The page fills the widgets of Train Concept with their values; see web/presets.js."""


@dataclass(frozen=True)
class TrainingOptions:
    """What Training Options passes to Train Concept; the defaults are what Train Concept does without it.

    Attributes:
        captions: one for each picture, in which the trigger word or `{}` stands for the concept; or empty.
        captioned: how often a picture comes with its own caption rather than with a template.
        templates: training prompts that replace the built-in ones, if there are any.
        shape: SQUARE or WHOLE.
        invert_masks: whether masks are white where the object is not.
        preview_prompts: replace the usual one, if there are any.
        previews: how previews are generated, apart from their prompts.
        vision: chooses the best step by the likeness of pictures; None to choose it by the loss.
    """

    captions: tuple[str, ...] = ()
    captioned: float = 1.0
    templates: tuple[str, ...] = ()
    shape: str = SQUARE
    invert_masks: bool = False
    preview_prompts: tuple[str, ...] = ()
    previews: Previews = field(default_factory=Previews)
    vision: ClipVisionModel | None = None

    def training_prompts(self, trigger: str) -> tuple[str, ...]:
        """Return the training prompts with `{}` for the concept; raise PerfusionError for one that does not name it once."""
        return as_templates(self.templates, trigger, "Template") if self.templates else TEMPLATES

    def picture_prompts(self, trigger: str) -> tuple[str, ...]:
        """Return the prompts of the previews likewise."""
        return as_templates(self.preview_prompts or (ON_THE_GRASS,), trigger, "Preview prompt")

    def fingerprint(self) -> str:
        """Return the options that the result of a training depends on as text; empty if they are the defaults.

        Pictures and masks count separately, and previews change nothing unless the best step is chosen by pictures.
        """
        judged = self.previews if self.vision is not None else None
        chosen = self.captions, self.captioned if self.captions else 1.0, self.templates, judged
        return "" if chosen == ((), 1.0, (), None) else str(chosen)


def prompts_in(texts: Sequence[str]) -> tuple[str, ...]:
    """Return the lines of a text, or the items of a list of several texts, each on one line; see `captions.lines_of`."""
    return tuple(lines_of(texts if len(texts) == 1 else [" ".join(text.split()) for text in texts]))


class PerfusionTrainingOptions(io.ComfyNode):
    """Gives Train Concept captions, shapes, previews and a choice by pictures."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        samplers, schedulers = host.samplers()
        usual = Previews()
        return io.Schema(
            node_id="PerfusionTrainingOptions",
            display_name="Training Options (Perfusion)",
            category=CATEGORY,
            description="More options for Train Concept: captions, non-square pictures, cut-outs, your own preview prompts, and "
            "choosing the best step by its images. With the defaults, training is the same as without this node, except for the "
            "previews of few-step models (LCM).",
            search_aliases=["perfusion", "captions", "training settings", "aspect ratio buckets"],
            is_input_list=True,
            inputs=[
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="One line for each picture, in the same order as the pictures and containing the trigger word: a photo "
                    "of <my-teddy> on a wooden table. What a caption names stays out of the concept. You can also connect a list "
                    "of texts. Empty: no captions.",
                ),
                io.Float.Input(
                    "captioned",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.1,
                    tooltip="How often a picture is shown with its own caption; otherwise it is shown with a template.",
                ),
                io.String.Input(
                    "templates",
                    default="",
                    multiline=True,
                    tooltip="Your own training prompts, one per line, each with the trigger word or {}. Empty: the built-in ones, "
                    "such as a photo of a {}.",
                ),
                io.Combo.Input(
                    "shape",
                    options=[SQUARE, WHOLE],
                    default=SQUARE,
                    tooltip="square: crops the largest square around the object from each picture. whole: pictures keep their "
                    "shape, at about the same number of pixels; for wide or tall objects.",
                ),
                io.Boolean.Input(
                    "invert_masks",
                    default=False,
                    tooltip="Turn on for cut-outs, because their mask from Load Image is white where the picture is transparent. "
                    "Leave off for masks painted in the mask editor.",
                ),
                io.String.Input(
                    "preview_prompts",
                    default="",
                    multiline=True,
                    tooltip="What previews show: one line for each image, with the trigger word or {}. Empty: the concept on the "
                    "grass.",
                ),
                io.String.Input("preview_negative", default=usual.negative, tooltip="Negative prompt for previews."),
                io.Int.Input(
                    "preview_steps",
                    default=usual.steps,
                    min=1,
                    max=200,
                    tooltip="Sampling steps for each preview: 4 to 8 for LCM, Lightning and Turbo checkpoints.",
                ),
                io.Float.Input(
                    "preview_cfg",
                    default=usual.cfg,
                    min=0.0,
                    max=30.0,
                    step=0.5,
                    tooltip="Guidance for previews: 1 to 2 for LCM, Lightning and Turbo checkpoints.",
                ),
                io.Combo.Input("preview_sampler", options=samplers, default=usual.sampler, tooltip="Sampler for previews."),
                io.Combo.Input("preview_scheduler", options=schedulers, default=usual.scheduler, tooltip="Scheduler for previews."),
                io.Combo.Input(
                    "preset",
                    options=[AS_SET, *PRESETS, BY_CHECKPOINT],
                    default=AS_SET,
                    tooltip="Sets the numbers in the connected Train Concept (steps, batch, size, rates, gate, flip, min_snr) to "
                    "values that suit a base model. by checkpoint: uses the preset that suits the connected checkpoint. as set: "
                    "leaves the numbers as they are.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Used when keep is set to best: this model compares images generated during training with your "
                    "pictures, to keep the step whose images best balance looking like the pictures and following the prompts. "
                    "From Load CLIP Vision.",
                ),
            ],
            outputs=[TrainingOptionsType.Output(display_name="options", tooltip="For the options input of Train Concept.")],
        )

    @classmethod
    def execute(
        cls,
        captions: list[str],
        templates: list[str],
        preview_prompts: list[str],
        clip_vision: list[ClipVisionModel] | None = None,
        **widgets: list,
    ) -> io.NodeOutput:
        """Collect the options."""
        chosen: Mapping[str, object] = {name: value[0] for name, value in widgets.items()}
        how = {name: chosen[f"preview_{name}"] for name in ("negative", "steps", "cfg", "sampler", "scheduler")}
        return io.NodeOutput(
            TrainingOptions(
                captions=prompts_in(captions),
                captioned=chosen["captioned"],
                templates=prompts_in(templates),
                shape=chosen["shape"],
                invert_masks=chosen["invert_masks"],
                preview_prompts=prompts_in(preview_prompts),
                previews=Previews(**how),
                vision=clip_vision[0] if clip_vision else None,
            )
        )


NODES = [PerfusionTrainingOptions]
