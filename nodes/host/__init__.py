"""The only room that knows ComfyUI's internals: a new host version is this package's work.

`model`: what a MODEL and a CLIP are, and their weights. `text`: trigger words, encodings, global key-locking. `unet`: a MODEL with
concepts, and its attention. `training`: a checkpoint that can be taught. `sampling`: pictures and latents. `folders`: where the
host looks for concepts. `page_routes`: what the page can ask. `execution`: interrupts, and memory that runs out.
"""

from .execution import Interrupted, check_interrupt, free_unused, memory_ran_out
from .folders import listed
from .model.families import encoders_of, family_of, layers_of, width_of
from .model.identity import identity_of, identity_of_weights
from .model.loading import lora_names, projections
from .page_routes import serve
from .sampling import Preview, draw, foreseen, latents_of, sample, samplers
from .text.encoding import (
    POSITIONS,
    UNPADDED,
    conditionings,
    contents,
    embed,
    encoding_width,
    encodings,
    prepare_clip,
    word_encoding,
)
from .text.encoding_notes import END, START
from .text.global_key_locking import encode_locked
from .text.trigger_words import clip_with_words
from .training.activation_memory import MemoryNeed, free_memory
from .training.trainable_model import TrainableModel, best_precision, learning
from .unet.attention_recorder import Prompt, Recorder, Run
from .unet.gate_report import GateReport, gate_report
from .unet.object_attention import object_attention
from .unet.patched_model import check_fit, model_watched, model_with_edit, model_with_layout, model_with_settings

__all__ = [
    "END",
    "POSITIONS",
    "START",
    "UNPADDED",
    "GateReport",
    "Interrupted",
    "MemoryNeed",
    "Preview",
    "Prompt",
    "Recorder",
    "Run",
    "TrainableModel",
    "best_precision",
    "check_fit",
    "check_interrupt",
    "clip_with_words",
    "conditionings",
    "contents",
    "draw",
    "embed",
    "encode_locked",
    "encoders_of",
    "encoding_width",
    "encodings",
    "family_of",
    "foreseen",
    "free_memory",
    "free_unused",
    "gate_report",
    "identity_of",
    "identity_of_weights",
    "latents_of",
    "layers_of",
    "learning",
    "listed",
    "lora_names",
    "memory_ran_out",
    "model_watched",
    "model_with_edit",
    "model_with_layout",
    "model_with_settings",
    "object_attention",
    "prepare_clip",
    "projections",
    "sample",
    "samplers",
    "serve",
    "width_of",
    "word_encoding",
]
