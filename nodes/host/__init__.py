"""The only room that knows ComfyUI's internals: a new host version is this package's work.

`models`: what a MODEL and a CLIP are. `words`: trigger words in prompts and encodings; `locking`: global key-locking there.
`edits`: a MODEL with concepts; `attention`, `watching`, `layout`: what is seen of its attention and changed in it.
`encode`: texts in bulk. `student`: a checkpoint that can be taught; `memory`: what that takes. `sampling`: pictures and latents.
`looking`: where a word is in a picture. `probing`: what LoRAs and edits do to a model's projections. `routes`: what the page can
ask.
"""

from .edits import check_fit, model_watched, model_with_edit, model_with_layout, model_with_settings
from .encode import POSITIONS, UNPADDED, conditionings, contents, embed, encoding_width, encodings, prepare_clip, word_encoding
from .locking import encode_locked
from .looking import look
from .memory import Need, free_memory
from .models import (
    Interrupted,
    check_interrupt,
    encoders_of,
    family_of,
    free_unused,
    identity_of,
    identity_of_weights,
    layers_of,
    lora_names,
    memory_ran_out,
    projections,
    width_of,
)
from .probing import Findings, probed
from .routes import serve
from .sampling import Preview, draw, foreseen, latents_of, sample, samplers
from .student import Student, best_precision, learning
from .watching import Prompt, Recorder, Run
from .words import END, START, clip_with_words

__all__ = [
    "END",
    "POSITIONS",
    "START",
    "UNPADDED",
    "Findings",
    "Interrupted",
    "Need",
    "Preview",
    "Prompt",
    "Recorder",
    "Run",
    "Student",
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
    "identity_of",
    "identity_of_weights",
    "latents_of",
    "layers_of",
    "learning",
    "look",
    "lora_names",
    "memory_ran_out",
    "model_watched",
    "model_with_edit",
    "model_with_layout",
    "model_with_settings",
    "prepare_clip",
    "probed",
    "projections",
    "sample",
    "samplers",
    "serve",
    "width_of",
    "word_encoding",
]
