"""Encoding of texts in bulk, for the covariance and for training."""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from comfy.sd1_clip import SDTokenizer
from torch import Tensor, nn

from ....perfusion_core import PerfusionError
from ....perfusion_core.concept_file import MAX_VECTORS
from ....perfusion_core.prompts import TEMPLATES
from ..model.families import clip_model, encoders_of, kind_of
from ..model.loading import adapt, layer_encodings, load
from .annotated_encoding import TRIGGER_INFLUENCE, WORD_POSITIONS
from .encoding_notes import note_mask
from .prompt_ids import model_context
from .trigger_words import Tokenizer, counts_spaces, is_blank, own_tokens, tokenizer_with_words

log = logging.getLogger("perfusion")

UNPADDED, CONTENT, ALL = "unpadded", "content", "all"
POSITIONS = (UNPADDED, CONTENT, ALL)
"""Which tokens of a caption are used: from the start token to the first end token; only those between these; padding as well."""


def prepare_clip(clip: CLIP) -> None:
    """Load a CLIP and set its options, as its own encoding methods do."""
    load(clip.patcher)
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})


def encoding_width(clip: CLIP) -> int:
    """Return the width d of a CLIP's encodings."""
    return sum(tokenizer.embedding_size for tokenizer in encoders_of(clip).values())


def sections_of(
    clip: CLIP, texts: Sequence[str], tokenizer: Tokenizer | None = None, what: str = "A caption or superclass"
) -> dict[str, list]:
    """Tokenize several short prompts as the sections of a single one, which the host then encodes as a batch.

    An error calls such a prompt `what`.

    Raises:
        PerfusionError: a prompt is longer than one section.
    """
    joined: dict[str, list] = {}
    for text in texts:
        for name, sections in (tokenizer or clip.tokenizer).tokenize_with_weights(text).items():
            if len(sections) != 1:
                raise PerfusionError(f"{what} is too long for one prompt of {len(sections[0])} tokens; shorten it: {text[:60]!r}…")
            joined.setdefault(name, []).append([(token[0], 1.0) for token in sections[0]])
    return joined


def check_lengths(clip: CLIP, prompts: Mapping[str, str], trigger: str, superclass: str, initial_word: str) -> None:
    """Raise PerfusionError if a training prompt does not fit into one section.

    `prompts` maps what an error calls it to the prompt with `{}` for the concept, whose word has as many vectors as `initial_word`
    or, if that is empty, the superclass.
    """
    tokenizer = tokenizer_with_words(clip, {trigger: embed(clip, initial_word or superclass)}, {trigger: superclass})
    for what, prompt in prompts.items():
        sections_of(clip, [prompt.format(trigger)], tokenizer, what)


def conditionings(clip: CLIP, texts: Sequence[str]) -> list[list]:
    """Return each text's conditioning, as CLIP Text Encode returns it."""
    return [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in texts]


def encodings(model: ModelPatcher, clip: CLIP, texts: Sequence[str], triggers: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Encode short prompts with a CLIP that knows trigger words.

    Returns:
        What the MODEL's layers read of them, [P, N, d]; [P, N, J], 1 at the tokens that each trigger word can have reached; and the
        same at those that are the word itself.
    """
    found = [model_context(model, cond, more, triggers) for ((cond, more),) in conditionings(clip, texts)]
    plain = torch.cat([encoding.as_subclass(Tensor) for encoding in found])
    plain = layer_encodings(model, plain) if kind_of(model).adapts_tokens else plain
    kinds = TRIGGER_INFLUENCE, WORD_POSITIONS
    return plain, *(torch.cat([note_mask(encoding, kind, triggers) for encoding in found]) for kind in kinds)


def embed(clip: CLIP, text: str) -> dict[str, Tensor]:
    """Return the embedding vectors of a word, float32 [n, width] for each text encoder, on the CPU.

    The word may be anything that a prompt may contain: plain words, `embedding:NAME` for one of the user's embeddings, or a trigger
    word that the CLIP knows.

    Raises:
        PerfusionError: the embedding does not exist or was made for other text encoders, or the word has no vectors, too many, or
            a different number for each text encoder.
    """
    # A word of a prompt stands behind a space.
    spaced = any(counts_spaces(tokenizer) for tokenizer in encoders_of(clip).values())
    tokens, vectors = _tokens_of(clip, f" {text}" if spaced else text), {}
    for name, tokenizer in encoders_of(clip).items():
        table = clip_model(clip, name).transformer.get_input_embeddings().weight
        found = own_tokens(tokens[name.removeprefix("clip_")], tokenizer)
        own = [
            token if isinstance(token, Tensor) else table[token] for token in found if not (spaced and is_blank(tokenizer, token))
        ]
        if not 1 <= len(own) <= MAX_VECTORS:
            raise PerfusionError(
                f"A learned word can have 1 to {MAX_VECTORS} vectors, but {text[:60]!r} has {len(own)}; choose another one."
            )
        for vector in own:
            if vector.shape != (tokenizer.embedding_size,):
                raise PerfusionError(
                    f"{text[:60]!r} was made for another base model: its vectors have width {vector.shape[-1]}, but this CLIP's "
                    f"text encoder {name} expects width {tokenizer.embedding_size}; choose an embedding made for this base model."
                )
        vectors[name] = torch.stack([vector.detach().float().cpu() for vector in own])
    if len({len(each) for each in vectors.values()}) > 1:
        counts = " and ".join(f"{len(each)} for {name}" for name, each in vectors.items())
        raise PerfusionError(
            f"{text[:60]!r} has different numbers of vectors ({counts}); choose a word with the same number for each text encoder."
        )
    return vectors


def _tokens_of(clip: CLIP, text: str) -> dict[str, list]:
    """Tokenize a word; raise PerfusionError for an embedding that cannot be read, which the host would drop with a warning."""
    for tokenizer in encoders_of(clip).values():
        for name in re.findall(rf"{re.escape(tokenizer.embedding_identifier)}(\S*)", text):
            if not name or not _readable(tokenizer, name):
                raise PerfusionError(
                    f"There is no embedding {name[:60]!r} in models/embeddings, or it cannot be read; put its file there, or "
                    "choose another word."
                )
    return clip.tokenizer.tokenize_with_weights(text)


def _readable(tokenizer: SDTokenizer, name: str) -> bool:
    try:
        return isinstance(tokenizer._try_get_embedding(name)[0], Tensor)
    except Exception as error:  # the file may be of any kind, and the host raises whatever error reading it causes
        log.warning("The embedding %s cannot be read: %s", name, error)
        return False


class Method(nn.Module):
    """A module whose forward is another module's method, since `torch.func.functional_call` only calls forwards."""

    def __init__(self, module: nn.Module, method: str) -> None:
        """Wrap the method of `module` named `method`."""
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the method."""
        return getattr(self.module, self.method)(*args, **kwargs)


def caption_encodings(
    clip: CLIP, texts: Sequence[str], precision: torch.dtype, positions: str = UNPADDED, model: ModelPatcher | None = None
) -> Tensor:
    """Return what the layers of a MODEL read of captions, or the encodings if there is none: [tokens, d], at one of POSITIONS."""
    if model is not None and kind_of(model).ids:
        return _with_ids(model, clip, texts, precision, positions)
    found = _caption_encodings(clip, texts, precision, positions)
    return found if model is None else layer_encodings(model, found)


def _with_ids(model: ModelPatcher, clip: CLIP, texts: Sequence[str], precision: torch.dtype, positions: str) -> Tensor:
    """Return the result of `caption_encodings` for a model that reads ids, whose tokens are those that layers read."""
    family, tokens, found = kind_of(model), sections_of(clip, texts), []
    end, alike = getattr(clip.tokenizer, family.ids).end_token, {}
    for sections in zip(*tokens.values(), strict=True):
        alike.setdefault(tuple(map(len, sections)), []).append(sections)
    load(model)
    for group in alike.values():
        given = dict(zip(tokens, map(list, zip(*group, strict=True)), strict=True))
        with torch.autocast(clip.patcher.load_device.type, precision, enabled=precision != torch.float32):
            encoded = clip.cond_stage_model.encode_token_weights(given)[0].reshape(len(group), -1, encoding_width(clip))
        ids = torch.tensor([[token for token, _ in section] for section in given[family.ids]])
        beside = {f"{family.ids}_ids": ids, f"{family.ids}_weights": torch.ones(ids.shape)}
        adapted = adapt(model.model, family, model.load_device, encoded, beside).to(encoded)
        ends = (ids == end).int().argmax(1).tolist() if positions != ALL else [adapted.shape[1]] * len(group)
        more = int(positions == UNPADDED)
        found += [encoding[: at + more] for encoding, at in zip(adapted, ends, strict=True)]
    return torch.cat(found)


def _caption_encodings(clip: CLIP, texts: Sequence[str], precision: torch.dtype, positions: str) -> Tensor:
    """Return the encodings [tokens, d] of captions at `positions`, one of POSITIONS.

    Causal encoders and those that do not look at padding give the same without it, so unless padding is requested all sections
    are truncated to the longest caption, which takes a fraction of the time. Other encoders get captions of one length at a time.
    """
    tokens = sections_of(clip, texts)
    tokenizer = next(iter(encoders_of(clip).values()))
    sections = next(iter(tokens.values()))
    ends = [[token for token, _ in section].index(tokenizer.end_token) for section in sections]
    if positions != ALL and len(set(map(len, sections))) > 1:
        alike: dict[int, list[str]] = {}
        for text, section in zip(texts, sections, strict=True):
            alike.setdefault(len(section), []).append(text)
        return torch.cat([_caption_encodings(clip, each, precision, positions) for each in alike.values()])
    length = max(ends) + 1 if positions != ALL else None
    tokens = {name: [section[:length] for section in sections] for name, sections in tokens.items()}
    encoder = Method(clip.cond_stage_model, "encode_token_weights")
    # The host adds the position embeddings as a whole, so they must be as long as the truncated sections.
    shorter = {name: weight[:length] for name, weight in encoder.named_parameters() if name.endswith("position_embedding.weight")}
    with torch.autocast(clip.patcher.load_device.type, precision, enabled=precision != torch.float32):
        out = torch.func.functional_call(encoder, shorter, (tokens,))[0]
    encodings = out.reshape(len(texts), -1, out.shape[-1])
    if positions == ALL:
        return encodings.flatten(0, 1)
    first, after = (int(tokenizer.start_token is not None), 0) if positions == CONTENT else (0, 1)
    return torch.cat([encoding[first : at + after] for encoding, at in zip(encodings, ends, strict=True)])


def word_encoding(clip: CLIP, word: str) -> Tensor:
    """Return the mean encoding [d] of a plain word's last token over the training prompts, on the CPU.

    The encoders are causal: text after the word does not affect the word's encoding, so it is left out.
    """
    prepare_clip(clip)
    beginnings = [template[: template.index("{}")] + word for template in TEMPLATES]
    # Position -2 is the last token before the end token.
    return torch.stack([caption_encodings(clip, [text], torch.float32)[-2] for text in beginnings]).mean(0).float().cpu()
