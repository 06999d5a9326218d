"""Measure the covariance of a text encoder's encodings."""

import hashlib
import logging
from pathlib import Path

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.utils import ProgressBar
from comfy_api.latest import io, ui

from ..perfusion_core import PerfusionError
from ..perfusion_core.captions import captions as shipped_captions
from ..perfusion_core.captions import in_file, lines_of
from ..perfusion_core.covariance import Covariance, Estimate
from . import host
from .folders import work_folder
from .io_types import CATEGORY, CovarianceType

log = logging.getLogger("perfusion")

CAPTIONS_AT_ONCE = 128


def measure(clip: CLIP, texts: list[str] | None, positions: str = host.UNPADDED, model: ModelPatcher | None = None) -> Covariance:
    """Return the covariance of a CLIP over these captions, or over the shipped ones if `texts` is None; cached in a file.

    It describes the encodings that cross-attention reads. If the model adapts those of the text encoder, the model is needed too.

    Args:
        clip: the text encoder.
        texts: captions.
        positions: one of `host.POSITIONS`, the tokens that are measured.
        model: the model whose cross-attention reads the encodings.

    Raises:
        PerfusionError: the model is needed but not given.
    """
    host.check_plain("text encoder", clip.patcher)
    if model is None and host.encodings_adapted(clip):
        raise PerfusionError(
            "Models with this text encoder adapt its encodings before their layers read them; connect the model to Measure Text "
            "Encoder as well."
        )
    identity = host.identity_of(clip, model)
    which = "" if texts is None else "-" + hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
    which += "" if positions == host.UNPADDED else f"-{positions}"
    path = work_folder() / f"covariance-{identity}{which}.safetensors"
    if path.exists():
        try:
            return Covariance.load(path)
        except PerfusionError as error:
            log.warning("%s The text encoder will be measured again.", error)
    host.prepare_clip(clip)
    if texts is None:
        texts = shipped_captions(max(1000, host.width_of(model) if model is not None else host.encoding_width(clip)))
    texts = sorted(texts, key=len)  # similar lengths together: a batch takes as long as its longest caption
    precision, estimate, bar = host.best_precision(clip.patcher.load_device), None, ProgressBar(len(texts))
    # The host may compute weights with LoRAs when they are first used, and keep them: not within autocast, which would round them.
    host.caption_encodings(clip, texts[:1], torch.float32, positions, model)
    log.info("Measuring the text encoder over %d captions; this is done once.", len(texts))
    for i in range(0, len(texts), CAPTIONS_AT_ONCE):
        host.check_interrupt()
        encodings = host.caption_encodings(clip, texts[i : i + CAPTIONS_AT_ONCE], precision, positions, model)
        estimate = estimate or Estimate(encodings.shape[-1])
        estimate.add(encodings)
        bar.update(len(texts[i : i + CAPTIONS_AT_ONCE]))
    covariance = estimate.finish(identity)
    try:
        covariance.save(path)
    except PerfusionError as error:  # it is needed now; the file only saves time later
        log.warning("%s The text encoder will be measured again the next time.", error)
    return covariance


def check_covariance(clip: CLIP, covariance: Covariance | None, model: ModelPatcher | None = None) -> None:
    """Raise PerfusionError if the covariance, if any, was measured on another text encoder, or for another model; see `measure`."""
    if covariance is not None and covariance.identity != host.identity_of(clip, model):
        raise PerfusionError("This covariance was measured on another text encoder; connect one measured on this CLIP, or none.")


def caption_lines(captions: str, file: str) -> list[str] | None:
    """Return the user's captions, one per line, from the text and the file in the input folder; None if there are none.

    Raises:
        PerfusionError: the file is not in the input folder or is not readable UTF-8 text, or there are too many or too long
            captions.
    """
    own = in_file(Path(folder_paths.get_input_directory()), file.strip()) if file.strip() else []
    return lines_of([captions, *own]) or None


class PerfusionCovariance(io.ComfyNode):
    """Measures the covariance of a text encoder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        return io.Schema(
            node_id="PerfusionCovariance",
            display_name="Measure Text Encoder (Perfusion)",
            category=CATEGORY,
            description="Measures how a text encoder's encodings are distributed. Train Concept does this automatically; use this "
            "node to supply your own captions. The result is kept for each text encoder.",
            search_aliases=["perfusion", "covariance"],
            inputs=[
                io.Clip.Input("clip", tooltip="The text encoder."),
                io.String.Input(
                    "captions",
                    default="",
                    multiline=True,
                    tooltip="Captions, one per line. Empty: varied ones that come with the pack.",
                ),
                io.String.Input(
                    "captions_file", default="", optional=True, tooltip="A text file in the input folder, one caption per line."
                ),
                io.Combo.Input(
                    "positions",
                    options=list(host.POSITIONS),
                    default=host.UNPADDED,
                    optional=True,
                    advanced=True,
                    tooltip="Which tokens of the captions to measure. unpadded: the words, with the start token and one end "
                    "token. content: only the words. all: also the padding that fills up a prompt.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that reads the encodings. Needed for Wan, LTX-Video, PixArt, Cosmos-Predict2 and "
                    "Anima, which may adapt the encodings first.",
                ),
            ],
            outputs=[
                CovarianceType.Output(display_name="covariance", tooltip="For Train Concept or Import Concept."),
                io.String.Output(display_name="report", tooltip="How many tokens were measured, and the condition number."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: CLIP,
        captions: str,
        captions_file: str = "",
        positions: str = host.UNPADDED,
        model: ModelPatcher | None = None,
    ) -> io.NodeOutput:
        """Measure the covariance, or read the cached one."""
        covariance = measure(clip, caption_lines(captions, captions_file), positions, model)
        report = f"{covariance.count} tokens, condition number {covariance.condition():.3g}, text encoder {covariance.identity}"
        return io.NodeOutput(covariance, report, ui=ui.PreviewText(report))


NODES = [PerfusionCovariance]
