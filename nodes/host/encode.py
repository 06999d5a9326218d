"""Texts encoded in bulk, as the covariance and the training need them."""

from collections.abc import Sequence

import torch
from comfy.sd import CLIP
from torch import Tensor

from ...perfusion_core import PerfusionError
from ...perfusion_core.prompts import TEMPLATES
from .models import encoders_of, load
from .words import REACH, Tokenizer, marked


def prepare_clip(clip: CLIP) -> None:
    """Load a CLIP and set its options, as its own encoding does."""
    load(clip.patcher)
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})


def encoding_width(clip: CLIP) -> int:
    """Width d of the encodings that a CLIP gives."""
    return sum(tokenizer.embedding_size for tokenizer in encoders_of(clip).values())


def sections_of(clip: CLIP, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> dict[str, list]:
    """Several short prompts tokenized as the sections of one, which the host then encodes as a batch.

    Raises:
        PerfusionError: a prompt is longer than one section.
    """
    joined: dict[str, list] = {}
    for text in texts:
        for name, sections in (tokenizer or clip.tokenizer).tokenize_with_weights(text).items():
            if len(sections) != 1:
                raise PerfusionError(
                    f"A caption or superclass is too long for one prompt of {len(sections[0])} tokens: {text[:60]!r}…"
                )
            joined.setdefault(name, []).append([(token[0], 1.0) for token in sections[0]])
    return joined


def encodings(clip: CLIP, texts: Sequence[str], triggers: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Encodings [P, N, d] of short prompts by a CLIP that knows trigger words, and where these can have reached, [P, N, J]."""
    found = [clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0] for text in texts]
    plain = torch.cat([encoding.as_subclass(Tensor) for encoding in found])
    return plain, torch.cat([marked(encoding, REACH, triggers) for encoding in found])


def contents(clip: CLIP, texts: Sequence[str], precision: torch.dtype) -> Tensor:
    """Encodings [tokens, d] of the captions' own tokens, from the start to the first end token; padding is left out."""
    tokens = sections_of(clip, texts)
    device = clip.patcher.load_device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        out = clip.cond_stage_model.encode_token_weights(tokens)[0]
    encodings = out.reshape(len(texts), -1, out.shape[-1])
    rows = [[token for token, _ in section] for section in next(iter(tokens.values()))]
    ends = next(iter(encoders_of(clip).values())).end_token
    return torch.cat([encoding[: row.index(ends) + 1] for encoding, row in zip(encodings, rows, strict=True)])


def word_encoding(clip: CLIP, word: str) -> Tensor:
    """Mean encoding [d] of a plain word's last token in the prompts of training, on the CPU.

    The encoders are causal: what follows the word in a prompt does not reach it, so it is left out.
    """
    prepare_clip(clip)
    beginnings = [template[: template.index("{}")] + word for template in TEMPLATES]
    # The last token before the end token.
    return torch.stack([contents(clip, [text], torch.float32)[-2] for text in beginnings]).mean(0).float().cpu()
