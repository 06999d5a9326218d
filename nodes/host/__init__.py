"""The only room that knows ComfyUI's internals: a new host version is this package's work.

`models`: what a MODEL and a CLIP are. `words`: trigger words in prompts and encodings. `edits`: a MODEL with concepts.
`encode`: texts in bulk. `student`: a checkpoint that can be taught. `sampling`: pictures and latents.
"""

from .edits import model_with_edit
from .encode import contents, embed, encoding_width, prepare_clip
from .models import check_interrupt, family_of, identity_of, layers_of
from .sampling import draw, latents_of
from .student import Student, best_precision, learning
from .words import clip_with_words

__all__ = [
    "Student",
    "best_precision",
    "check_interrupt",
    "clip_with_words",
    "contents",
    "draw",
    "embed",
    "encoding_width",
    "family_of",
    "identity_of",
    "latents_of",
    "layers_of",
    "learning",
    "model_with_edit",
    "prepare_clip",
]
