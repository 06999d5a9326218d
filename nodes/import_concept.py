"""Import concepts that were trained with other implementations."""

import asyncio
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy_api.latest import io, ui
from torch import Tensor

from ..perfusion_core import PerfusionError, foreign_formats
from ..perfusion_core.concept import check_trigger
from ..perfusion_core.concept_file import SUPERCLASS_LENGTH
from ..perfusion_core.covariance import Covariance
from . import host
from .concepts import describe
from .folders import FOREIGN, foreign_files, version_of
from .host import FOLDER
from .io_types import CATEGORY, CovarianceType, concept_outputs, validation_result
from .measure_text_encoder import check_covariance

NO_FILE = "(no file from another implementation)"


def path_of(name: str) -> Path:
    """Return the path of a listed foreign file; raises PerfusionError for any other name."""
    path = folder_paths.get_full_path(FOLDER, name) if name in foreign_files() else None
    if path is None:
        *most, last = sorted(FOREIGN)
        endings = f"{', '.join(most)} or {last}"
        raise PerfusionError(
            f"There is no file {name[:200]!r} to import in models/{FOLDER}; put a {endings} file there and choose it from the list."
        )
    return Path(path)


def encoder_of(model: ModelPatcher, clip: CLIP) -> tuple[str, int]:
    """Return the name of a CLIP's only text encoder, and the width of its embedding vectors.

    Raises:
        PerfusionError: if the CLIP has more than one text encoder, or the model reads encodings of another width.
    """
    encoders = host.encoders_of(clip)
    if host.encodings_adapted(clip):
        raise PerfusionError(
            "Files from other implementations are for Stable Diffusion 1 and 2, but this CLIP is for another model; choose an SD1 "
            "or SD2 checkpoint."
        )
    if len(encoders) != 1:
        raise PerfusionError(
            f"Files from other implementations contain a word for only one text encoder, but this CLIP has {', '.join(encoders)}; "
            "choose an SD1 or SD2 checkpoint."
        )
    if host.encoding_width(clip) != host.width_of(model):
        raise PerfusionError(
            f"This CLIP returns encodings of width {host.encoding_width(clip)}, but the model reads width {host.width_of(model)}; "
            "take both from the same checkpoint."
        )
    ((name, tokenizer),) = encoders.items()
    return name, tokenizer.embedding_size


def metric(found: foreign_formats.Foreign, clip: CLIP, covariance: Covariance | None) -> Tensor:
    """Return C⁻¹, float64 [d, d]: the file's own, or the inverse of the covariance if the file has none.

    Raises:
        PerfusionError: if there is neither, or the covariance belongs to another text encoder.
    """
    if found.inverse is not None:
        return found.inverse.double()
    if covariance is None:
        raise PerfusionError(
            "This file does not contain the inverse covariance (C_inv) that a concept needs; connect Measure Text Encoder."
        )
    check_covariance(clip, covariance)
    return covariance.inverse()


class PerfusionImport(io.ComfyNode):
    """Imports a concept from a foreign file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionImport",
            display_name="Import Concept (Perfusion)",
            category=CATEGORY,
            description="Imports a concept that was trained with perfusion-pytorch or ChenDarYen's Key-Locked-Rank-One-Editing. "
            "Both implementations sample in the same way as edit mode 'paper'. Use Save Concept to keep the concept. Nothing in a "
            "file is ever run as code.",
            search_aliases=["perfusion", "import", "convert", "perfusion-pytorch", "lucidrains", "ckpt"],
            inputs=[
                io.Combo.Input(
                    "file_name",
                    options=foreign_files() or [NO_FILE],
                    tooltip="A .pt, .pth, .ckpt or .bin file in models/perfusion. Press R to refresh the list.",
                ),
                io.Model.Input(
                    "model",
                    tooltip="A model with the same base as the one the concept was trained on; it provides the names and widths of "
                    "the layers.",
                ),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.String.Input(
                    "trigger",
                    default="<my-teddy>",
                    tooltip="The word, in angle brackets, that will stand for the concept in prompts.",
                ),
                io.String.Input(
                    "superclass",
                    default="",
                    tooltip="The plain word for what the concept is, such as teddy. Empty: the one in the file, if there is one.",
                ),
                io.Int.Input(
                    "number",
                    default=1,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Which concept to import, if a perfusion-pytorch file contains several.",
                ),
                CovarianceType.Input(
                    "covariance",
                    optional=True,
                    tooltip="From Measure Text Encoder; used only if the file has no C_inv of its own.",
                ),
            ],
            outputs=concept_outputs("For Save Concept, Concept Settings or Apply Concept."),
        )

    @classmethod
    async def validate_inputs(cls, file_name: str | None, trigger: str | None) -> bool | str:
        """Reject an unusable file or an invalid trigger word before the graph runs.

        The host validates on its server's event loop, and reading a file takes up to a second, so a thread does it.
        """

        def check() -> None:
            if file_name is not None:
                foreign_formats.load(path_of(file_name))
            if trigger is not None:
                check_trigger(trigger.strip())

        return await asyncio.to_thread(validation_result, check)

    @classmethod
    def fingerprint_inputs(cls, file_name: str | None, **_: Any) -> str:
        """Return the file's version, so that a changed file is imported again; a linked name may be that of any file."""
        return " ".join(map(version_of, foreign_files() if file_name is None else [file_name]))

    @classmethod
    def execute(
        cls,
        file_name: str,
        model: ModelPatcher,
        clip: CLIP,
        trigger: str,
        superclass: str,
        number: int,
        covariance: Covariance | None = None,
    ) -> io.NodeOutput:
        """Import the concept."""
        check_trigger(trigger.strip())
        family, (encoder, embedding) = host.family_of(model), encoder_of(model, clip)
        found = foreign_formats.read(path_of(file_name), host.layers_of(model), host.width_of(model), embedding, number)
        word = superclass.strip() or found.superclass
        if not 0 < len(word) <= SUPERCLASS_LENGTH:
            raise PerfusionError(
                "The file does not contain a usable superclass; enter a word or two as the superclass, such as teddy."
            )
        inverse = metric(found, clip, covariance)
        concept = found.concept(trigger.strip(), word, family, encoder, host.word_encoding(clip, word), inverse)
        told = f"imported from {file_name}, a {found.kind} concept\n{describe(concept)}"
        return io.NodeOutput((concept,), concept.trigger, word, ui=ui.PreviewText(told))


NODES = [PerfusionImport]
