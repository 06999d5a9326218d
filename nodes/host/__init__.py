"""The only package that depends on ComfyUI's internals; support for a new host version is implemented here.

`model`: MODEL and CLIP objects, and their weights. `text`: trigger words, encodings, global key-locking. `unet`: a MODEL with
concepts applied, and its attention. `training`: a checkpoint that can be trained. `sampling`: images and latents. `vision`:
embeddings of pictures. `folders`: where the host looks for concepts. `page_routes`: HTTP routes for the host's web page.
`execution`: interrupts and out-of-memory errors.
"""

from .execution import Interrupted, check_interrupt, free_unused, memory_ran_out
from .folders import FOLDER, listed
from .model.families import clip_layer, encoders_of, encodings_adapted, family_of, fine_layers_of, kind_of, layers_of, width_of
from .model.identity import identity_of, identity_of_weights
from .model.loading import layer_encodings, lora_names, projections
from .page_routes import serve
from .sampling import (
    Preview,
    check_vae,
    decoded,
    draw,
    is_distilled,
    latents_of,
    pixels_per_latent,
    predict_from_noise,
    sample,
    samplers,
)
from .text.clip_with_words import clip_with_words
from .text.encoding import (
    POSITIONS,
    UNPADDED,
    caption_encodings,
    check_lengths,
    conditionings,
    embed,
    encoding_width,
    encodings,
    prepare_clip,
    word_encoding,
)
from .text.encoding_notes import END, START
from .text.global_key_locking import encode_locked
from .training.activation_memory import MemoryNeed, free_memory
from .training.trainable_model import TrainableModel, best_precision, check_plain, check_trainable, gradients_enabled
from .unet.attention_recorder import PromptRecord, Recorder, SamplingRun
from .unet.gate_report import GateReport, gate_report
from .unet.object_attention import check_finding, object_attention
from .unet.patched_model import (
    check_fit,
    check_mode,
    model_watched,
    model_with_edit,
    model_with_layout,
    model_with_settings,
    stack_of,
)
from .vision import picture_embeddings

__all__ = [
    "END",
    "FOLDER",
    "POSITIONS",
    "START",
    "UNPADDED",
    "GateReport",
    "Interrupted",
    "MemoryNeed",
    "Preview",
    "PromptRecord",
    "Recorder",
    "SamplingRun",
    "TrainableModel",
    "best_precision",
    "caption_encodings",
    "check_finding",
    "check_fit",
    "check_interrupt",
    "check_lengths",
    "check_mode",
    "check_plain",
    "check_trainable",
    "check_vae",
    "clip_layer",
    "clip_with_words",
    "conditionings",
    "decoded",
    "draw",
    "embed",
    "encode_locked",
    "encoders_of",
    "encoding_width",
    "encodings",
    "encodings_adapted",
    "family_of",
    "fine_layers_of",
    "free_memory",
    "free_unused",
    "gate_report",
    "gradients_enabled",
    "identity_of",
    "identity_of_weights",
    "is_distilled",
    "kind_of",
    "latents_of",
    "layer_encodings",
    "layers_of",
    "listed",
    "lora_names",
    "memory_ran_out",
    "model_watched",
    "model_with_edit",
    "model_with_layout",
    "model_with_settings",
    "object_attention",
    "picture_embeddings",
    "pixels_per_latent",
    "predict_from_noise",
    "prepare_clip",
    "projections",
    "sample",
    "samplers",
    "serve",
    "stack_of",
    "width_of",
    "word_encoding",
]
