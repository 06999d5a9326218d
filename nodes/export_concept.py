"""Export concepts as files that need no Perfusion: a LoRA and textual-inversion embeddings."""

import logging
import re
import time
from pathlib import Path

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core import PerfusionError, lora_export
from ..perfusion_core.gated_edit import STATIC
from ..perfusion_core.prompts import word_key
from ..perfusion_core.safe_files import write_all
from ..perfusion_core.stack import Stack, edit_of
from . import host
from .folders import check_prefix, new_name
from .host import listed
from .io_types import CATEGORY, ConceptType, validation_result

log = logging.getLogger("perfusion")

BOTH, LORA, EMBEDDING = "both", "LoRA", "embedding"
SUFFIX = ".safetensors"
IN_PROMPTS = re.compile(r"[\w./%-]+")
"""Embedding names that the host can parse in a prompt."""


class PerfusionExport(io.ComfyNode):
    """Exports concepts as a LoRA and embeddings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionExport",
            display_name="Export Concept (Perfusion)",
            category=CATEGORY,
            description="Writes concepts as a LoRA and an embedding, for use without Perfusion. A LoRA has no gate, so it only "
            "approximates the concept; the report shows how closely. Several concepts share one LoRA, and each has its own "
            "embedding.",
            search_aliases=["perfusion", "export", "convert", "lora", "textual inversion", "embedding", "rome"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model to make the LoRA for: the one that you connect to Apply Concept."),
                io.Clip.Input("clip", tooltip="Its text encoder: the one that you connect to Apply Concept."),
                ConceptType.Input(
                    "concept", tooltip="A concept, or several combined. Bias, temperature and strength scale the LoRA."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="concept",
                    tooltip="Name of the files; can include a subfolder: animals/cat. A counter is added, so existing files are "
                    "kept.",
                ),
                io.Combo.Input(
                    "what",
                    options=[BOTH, LORA, EMBEDDING],
                    default=BOTH,
                    tooltip="LoRA: what the word means to the layers. embedding: the word itself. The concept needs both.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="report",
                    tooltip="Which files were saved, what to type in prompts, and how closely the LoRA approximates the concept.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None) -> bool | str:
        """Reject an empty file name, or one outside the target folders."""
        return validation_result(lambda: filename_prefix is None or check_prefix(filename_prefix))

    @classmethod
    def execute(cls, model: ModelPatcher, clip: CLIP, concept: Stack, filename_prefix: str, what: str) -> io.NodeOutput:
        """Write the files and report on them."""
        stack = tuple(one for one in concept if one.strength > 0)
        check(model, clip, stack, filename_prefix, what)
        lora, told = ({}, "") if what == EMBEDDING else lora_of(model, clip, stack)
        path, embeddings = places(filename_prefix, stack)

        date = {"modelspec.date": time.strftime("%Y-%m-%d")}
        files, lines = {}, []
        words = [one.trigger for one in stack]
        if what != LORA:
            words = list(embeddings)
            for one, (word, place) in zip(stack, embeddings.items(), strict=True):
                files[place] = lora_export.embedding(one.word), lora_export.metadata((one,), [word], "textual-inversion") | date
                lines.append(f"in prompts, write {word} instead of {one.trigger}")
        if what != EMBEDDING:
            files[path] = lora, lora_export.metadata(stack, words, "lora") | date
            lines += [f"the LoRA is {path.name}", told]
        write_all(files)
        for line in lines:
            log.info("%s", line)
        report = "\n".join(lines)
        return io.NodeOutput(report, ui=ui.PreviewText(report))


def places(filename_prefix: str, stack: Stack) -> tuple[Path, dict[str, Path]]:
    """Return a new path for the LoRA, and a dict of each embedding's word in prompts -> its new path, in the order of the stack."""
    loras, embeddings = (Path(folder_paths.get_folder_paths(kind)[0]) for kind in ("loras", "embeddings"))
    ends = [""] if len(stack) == 1 else [f"_{one.trigger.strip('<>')}" for one in stack]
    # The host looks up an embedding named in a prompt in all subfolders, so the stem must be unique across them.
    taken = {Path(name).stem for name in listed("embeddings")}
    name = new_name(filename_prefix, {loras: [SUFFIX], embeddings: [f"{end}{SUFFIX}" for end in ends]}, taken=taken)
    return loras / f"{name}{SUFFIX}", {f"embedding:{name}{end}": embeddings / f"{name}{end}{SUFFIX}" for end in ends}


def check(model: ModelPatcher, clip: CLIP, stack: Stack, filename_prefix: str, what: str) -> None:
    """Raise PerfusionError if the stack cannot be exported, before any work is done."""
    prefix = check_prefix(filename_prefix)
    if what != LORA and not IN_PROMPTS.fullmatch(prefix):
        raise PerfusionError(
            f"Prompts refer to an embedding by its file name, which may contain only letters, digits and - _ . /; {prefix!r} "
            "contains other characters."
        )
    if not stack:
        raise PerfusionError("At strength 0 there is nothing to export; raise it with Concept Settings.")
    known = {word_key(concept.trigger) for concept in getattr(clip, "stack", ())}
    bare = [one.trigger for one in stack if not one.values]
    if bare and what != EMBEDDING:
        raise PerfusionError(f"{bare[0]} is only a word, which a LoRA cannot contain; choose embedding, or leave the concept out.")
    family = host.kind_of(model)
    if what != EMBEDDING and not family.loras:
        raise PerfusionError(
            f"ComfyUI has no LoRA format with separate keys and values for {family.name} models; choose embedding."
        )
    for one in stack:
        host.check_fit(one, model)
        if word_key(one.trigger) in known:
            raise PerfusionError(f"This CLIP already knows {one.trigger}; connect the model and CLIP that go into Apply Concept.")


def lora_of(model: ModelPatcher, clip: CLIP, stack: Stack) -> tuple[dict[str, Tensor], str]:
    """Return the LoRA's tensors, and a sentence for the report on how closely it approximates the concepts."""
    edit = edit_of(stack, STATIC)
    projected = host.projections(model, edit.vectors)
    taught, triggers = host.clip_with_words(clip, stack), [one.trigger for one in stack]
    encodings, named, own = (found.cpu() for found in host.encodings(model, taught, lora_export.prompts(stack), triggers))
    words = lora_export.at_words(stack, own)
    held = lora_export.at_positions(edit, words)
    at_word, in_all = (lora_export.error(edit, encodings, named, projected, held, places) for places in (words, None))
    told = (
        f"approximation error of the LoRA: keys {at_word[0]:.2f} and values {at_word[1]:.2f} at the word itself, "
        f"{in_all[0]:.2f} and {in_all[1]:.2f} over whole prompts; 0 means the same as Apply Concept, and 1 means as far from it "
        "as with no concept at all."
    )
    return lora_export.lora(held, projected, host.lora_names(model)), told


NODES = [PerfusionExport]
