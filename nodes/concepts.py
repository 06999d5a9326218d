"""Load, save, configure and combine concepts."""

import json
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import Concept, check_trigger, search_words
from ..perfusion_core.concept_file import MAX_BYTES, MAX_TEXT, PREVIEW, parse_preview
from ..perfusion_core.quantization import INT8, UINT4
from ..perfusion_core.safe_files import FileTakenError, read_bytes, read_metadata, stays_inside
from ..perfusion_core.schedule import Schedule
from ..perfusion_core.stack import Stack, combine
from ..perfusion_core.training.state import KEY_LOCK
from .folders import check_prefix, concept_files, home, listed_as, new_name, version_of
from .host import FOLDER
from .io_types import CATEGORY, ConceptType, concept_outputs, page_input, validation_result

NO_CONCEPT = "(no concept saved yet)"


def path_of(name: str) -> Path:
    """Return the path of the named concept file; raises PerfusionError if it does not exist."""
    name = listed_as(name)
    path = folder_paths.get_full_path(FOLDER, name) if stays_inside(name) else None
    if path is None:
        raise PerfusionError(f"There is no concept {name[:200]!r} in models/{FOLDER}; train one, or put a concept file there.")
    return Path(path)


def describe(concept: Concept) -> str:
    """Describe a concept in a few lines of text."""
    details = "".join(f"\n{name}: {text}" for name, text in concept.details.items())
    alone = "" if concept.values else "\nword only: edits no layers"
    return f"trigger word: {concept.trigger}\nsuperclass: {concept.superclass}\nbase: {concept.family}{alone}{details}"


def concept_output(concept: Concept, **more: str) -> io.NodeOutput:
    """Return the outputs of a node that provides one concept, with its description as the preview text; for `more` see `shown`."""
    return io.NodeOutput((concept,), concept.trigger, concept.superclass, ui=shown(describe(concept), **more))


def shown(text: str, **more: str) -> dict[str, tuple[str, ...]]:
    """Return a node's output for the page: a text to show on the node, and further entries for the page's scripts."""
    return ui.PreviewText(text).as_dict() | {name: (value,) for name, value in more.items()}


class PerfusionLoadConcept(io.ComfyNode):
    """Loads a concept from a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionLoadConcept",
            display_name="Load Concept (Perfusion)",
            category=CATEGORY,
            description="Loads a concept trained with Perfusion. Use its trigger word to refer to it in prompts.",
            search_aliases=["perfusion", "personalize", "textual inversion", "load concept"],
            inputs=[
                io.Combo.Input(
                    "concept_name",
                    options=concept_files() or [NO_CONCEPT],
                    tooltip="A file in models/perfusion. Press R to refresh the list.",
                )
            ],
            outputs=concept_outputs(),
        )

    @classmethod
    def validate_inputs(cls, concept_name: str | None) -> bool | str:
        """Reject an unusable file before the graph runs."""
        return validation_result(lambda: concept_name is None or Concept.load(path_of(concept_name)))

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None) -> str:
        """Return the file's version, so that a changed file is loaded again; a linked name may be that of any file."""
        return " ".join(map(version_of, concept_files() if concept_name is None else [concept_name]))

    @classmethod
    def execute(cls, concept_name: str) -> io.NodeOutput:
        """Load the concept."""
        return concept_output(Concept.load(path_of(concept_name)), concept_name=listed_as(concept_name))


class PerfusionConceptInWorkflow(io.ComfyNode):
    """Reads a concept from text stored in the workflow."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionConceptInWorkflow",
            display_name="Concept in Workflow (Perfusion)",
            category=CATEGORY,
            description="Stores a concept inside the workflow: if you pass on the workflow, or an image made with it, no concept "
            "file is needed. Choose one of your concepts on the node; the node shows its size. Share only what you are allowed to "
            "share: everyone who gets the image also gets the concept.",
            search_aliases=["perfusion", "embed concept", "inline concept", "share concept"],
            inputs=[
                page_input(
                    "data",
                    "",
                    "The concept file's bytes in base64. The node fills this in when you choose a concept; programs can fill it "
                    "in too.",
                )
            ],
            outputs=concept_outputs(),
        )

    @classmethod
    def validate_inputs(cls, data: str) -> bool | str:
        """Reject data that is not a concept before the graph runs."""
        return validation_result(lambda: concept_of(data))

    @classmethod
    def execute(cls, data: str) -> io.NodeOutput:
        """Decode the concept."""
        return concept_output(concept_of(data))


def concept_of(data: str) -> Concept:
    """Decode the concept stored in a workflow; raises PerfusionError if `data` is empty or not a concept."""
    if not data:
        raise PerfusionError("Concept in Workflow contains no concept yet; choose one in the node.")
    return Concept.from_text(data, "The concept in this workflow")


def content_of(name: str) -> bytes:
    """Return the bytes of the named concept file, to store in a workflow; raises PerfusionError if it is unusable or too large."""
    content = read_bytes(path_of(name), MAX_BYTES)
    Concept.from_bytes(content, name)
    if 4 * -(-len(content) // 3) > MAX_TEXT:
        raise PerfusionError(
            f"{name} is {len(content) // 1024} KB, more than the limit of {MAX_TEXT * 3 // 4 // 1024} KB in a workflow; share the "
            "file instead."
        )
    return content


def signed(concept: Concept, author: str, license: str) -> Concept:
    """Return the concept with today's date and, where given, its author and licence in the details that its file stores."""
    made = {"date": time.strftime("%Y-%m-%d"), "author": author.strip(), "license": license.strip()}
    return replace(concept, details={**concept.details, **{k: v for k, v in made.items() if v}})


def save(concept: Concept, prefix: str, overwrite: bool, dtype: torch.dtype) -> str:
    """Save a concept and return its name as Load Concept lists it."""
    while True:
        listed = str(Path(f"{new_name(prefix, {home(): ['.safetensors']}, overwrite)}.safetensors"))
        try:
            concept.save(home() / listed, dtype, overwrite)
            return listed
        except FileTakenError:  # another server saving to this folder took the name first: try the next one
            continue


@lru_cache(maxsize=2**14)
def words_of(name: str, version: str) -> tuple[str, str]:
    """Read trigger word and superclass from a concept file's metadata; `version`, from `version_of`, is part of the cache's key."""
    path = folder_paths.get_full_path(FOLDER, name)
    return search_words(read_metadata(Path(path)) if path else {})


def words(_: str) -> bytes:
    """Return JSON for the page's search: the name of each concept file -> its trigger word and superclass."""
    return json.dumps({name: words_of(name, version_of(name)) for name in concept_files()}).encode()


def picture_of(name: str) -> bytes:
    """Return the named concept file's preview, a JPEG picture, or nothing; raises PerfusionError if it cannot be shown."""
    path = path_of(name)
    return parse_preview(read_metadata(path).get(PREVIEW), path)


PRECISIONS = {"half": torch.float16, "float32": torch.float32, "8 bit": INT8, "4 bit": UINT4}


class PerfusionSaveConcept(io.ComfyNode):
    """Saves a concept to a file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionSaveConcept",
            display_name="Save Concept (Perfusion)",
            category=CATEGORY,
            description="Saves a concept to models/perfusion, as a file that others can load and share.",
            search_aliases=["perfusion", "save concept"],
            is_output_node=True,
            inputs=[
                ConceptType.Input("concept", tooltip="A single concept, from Train Concept or changed with Concept Settings."),
                io.String.Input(
                    "filename_prefix", default="concept", tooltip="Name of the file; can include a subfolder: animals/cat."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Off: a counter is added and no file is ever overwritten. On: a file with exactly this name is "
                    "replaced.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="half",
                    tooltip="half: half the size of float32, with no visible difference. 8 bit: a quarter of the size. 4 bit: "
                    "about a sixth.",
                ),
                io.String.Input(
                    "author",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Author of the concept; stored in the file, so everyone who loads it can see it.",
                ),
                io.String.Input(
                    "license", default="", optional=True, advanced=True, tooltip="Licence of the concept, such as CC BY 4.0."
                ),
            ],
            outputs=[io.String.Output(display_name="concept_name", tooltip="The file's name, as Load Concept lists it.")],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """Reject an empty file name, or one outside the folder of concepts."""
        return validation_result(lambda: filename_prefix is None or check_prefix(filename_prefix))

    @classmethod
    def execute(
        cls, concept: Stack, filename_prefix: str, overwrite: bool, precision: str, author: str = "", license: str = ""
    ) -> io.NodeOutput:
        """Save the concept."""
        if len(concept) != 1:
            raise PerfusionError(
                f"Save Concept takes a single concept, but its input contains {len(concept)}; save each one separately."
            )
        saved = signed(concept[0], author, license)
        listed = save(saved, filename_prefix, overwrite, PRECISIONS[precision])
        return io.NodeOutput(listed, ui=shown(f"saved as {listed}\n{describe(saved)}", perfusion_saved=listed))


class PerfusionConceptSettings(io.ComfyNode):
    """Changes the settings of a concept."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionConceptSettings",
            display_name="Concept Settings (Perfusion)",
            category=CATEGORY,
            description="Sets how strongly a concept shows in relation to the rest of the prompt, and what its trigger word is. A "
            "word-only concept edits no layers, so only two of these settings affect it: the trigger word, and a strength of 0, "
            "which switches it off.",
            search_aliases=["perfusion", "bias", "temperature", "strength"],
            inputs=[
                ConceptType.Input("concept", tooltip="A concept; if several are combined, all get these settings."),
                io.Float.Input(
                    "bias",
                    default=0.6,
                    min=-1.0,
                    max=2.0,
                    step=0.05,
                    tooltip="How similar a token must be to the concept for the edit to act. Lower: more of the concept. Higher: "
                    "more of the prompt.",
                ),
                io.Float.Input(
                    "temperature",
                    default=0.15,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    tooltip="How gradually the edit sets in around the bias.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of the edit that is applied; at 0 the concept is not applied at all.",
                ),
                io.String.Input("trigger", default="", tooltip="A different trigger word, such as <ann-teddy>. Empty: unchanged."),
                io.Mask.Input(
                    "region",
                    optional=True,
                    tooltip="A mask of where the concept may appear in the image: its word attends only to that area, and its edit "
                    "is applied only there. Give each concept in an image its own region.",
                ),
                io.Float.Input(
                    "key_lock",
                    default=KEY_LOCK,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="Only for concepts trained with lock set to word or fine: how strongly their keys stay locked to the "
                    "plain word. Lower: more of the concept; higher: more room for other things in the prompt.",
                ),
                io.Boolean.Input(
                    "own_values",
                    display_name="keep the concept's values",
                    default=False,
                    optional=True,
                    tooltip="On: the concept keeps its own bias, temperature, strength and key_lock, and only the trigger word and "
                    "the region are set. Off: this node's values replace them.",
                ),
            ],
            outputs=[ConceptType.Output(display_name="concept", tooltip="The concept with these settings.")],
        )

    @classmethod
    def validate_inputs(cls, trigger: str | None) -> bool | str:
        """Reject an invalid trigger word."""
        return validation_result(lambda: not (trigger and trigger.strip()) or check_trigger(trigger.strip()))

    @classmethod
    def execute(
        cls,
        concept: Stack,
        bias: float,
        temperature: float,
        strength: float,
        trigger: str,
        region: Tensor | None = None,
        key_lock: float | None = None,
        own_values: bool = False,
    ) -> io.NodeOutput:
        """Return the concept with these settings."""
        numbers = {"bias": bias, "temperature": temperature, "strength": strength, "key_lock": key_lock}
        settings: dict[str, object] = {name: n for name, n in numbers.items() if n is not None and not own_values}
        if region is not None:
            region = region.reshape(-1, *region.shape[-2:])[0]
            if not region.isfinite().all() or region.max() <= 0:
                raise PerfusionError("The region is empty; paint it white where the concept may appear, or invert it.")
            settings["region"] = region.float().cpu().clamp(0, 1)
        if trigger.strip():
            if len(concept) != 1:
                raise PerfusionError(
                    f"A trigger word can be set only for a single concept, but the input contains {len(concept)}; set it before "
                    "Combine Concepts."
                )
            settings["trigger"] = trigger.strip()
        return io.NodeOutput(tuple(one.with_settings(**settings) for one in concept))


class PerfusionCombineConcepts(io.ComfyNode):
    """Combines concepts into a stack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        template = io.Autogrow.TemplatePrefix(
            input=ConceptType.Input("concept", tooltip="A concept, or several combined."), prefix="concept", min=2, max=32
        )
        return io.Schema(
            node_id="PerfusionCombineConcepts",
            display_name="Combine Concepts (Perfusion)",
            category=CATEGORY,
            description="Combines concepts so that one Apply Concept applies them all; each keeps its own settings and trigger "
            "word.",
            search_aliases=["perfusion", "stack concepts", "merge concepts"],
            inputs=[io.Autogrow.Input("concepts", template=template, tooltip="A new input appears when you connect the last one.")],
            outputs=[ConceptType.Output(display_name="concept", tooltip="All the concepts, combined.")],
        )

    @classmethod
    def execute(cls, concepts: io.Autogrow.Type) -> io.NodeOutput:
        """Combine the connected stacks."""
        return io.NodeOutput(combine(*(stack for stack in concepts.values() if stack)))


class PerfusionConceptSchedule(io.ComfyNode):
    """Sets in which part of a sampling run concepts act, and how their bias changes over it.

    Like a region, a schedule is a setting of one graph: *Save Concept* does not store it in the concept's file.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionConceptSchedule",
            display_name="Concept Schedule (Perfusion)",
            category=CATEGORY,
            description="Limits a concept to part of the sampling run, and sets how its bias changes over that part. Before and "
            "after, its trigger word stays in the prompt, but no layer is edited. This setting belongs to the workflow; concept "
            "files do not store it.",
            search_aliases=["perfusion", "schedule", "timestep range", "start percent", "end percent", "prompt editing"],
            inputs=[
                ConceptType.Input("concept", tooltip="A concept; if several are combined, all get this schedule."),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="The concept acts from here on; 0 is noise, 1 is the finished image. As in Apply ControlNet.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="The concept acts up to here. Must be above start_percent.",
                ),
                io.Float.Input(
                    "bias_change",
                    default=0.0,
                    min=-1.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the bias rises, at an even rate, from start to end; 0 keeps it constant. Below 0 it falls: "
                    "more of the concept towards the end.",
                ),
            ],
            outputs=[ConceptType.Output(display_name="concept", tooltip="The concept with this schedule.")],
        )

    @classmethod
    def validate_inputs(cls, start_percent: float | None, end_percent: float | None) -> bool | str:
        """Reject a start that is not before the end."""
        return validation_result(lambda: None in (start_percent, end_percent) or Schedule(start_percent, end_percent))

    @classmethod
    def execute(cls, concept: Stack, start_percent: float, end_percent: float, bias_change: float) -> io.NodeOutput:
        """Return the concepts with this schedule, which replaces any previous one."""
        schedule = Schedule(start_percent, end_percent, bias_change)
        return io.NodeOutput(tuple(one.with_settings(schedule=schedule) for one in concept))


NODES = [
    PerfusionLoadConcept,
    PerfusionConceptInWorkflow,
    PerfusionSaveConcept,
    PerfusionConceptSettings,
    PerfusionCombineConcepts,
    PerfusionConceptSchedule,
]
