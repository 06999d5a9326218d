"""The interface between the training loop and the model that is trained on, which keeps the loop independent of any host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..gated_edit import Edit

Word = Mapping[str, Tensor]
"""Name of a text encoder -> embedding vectors, [n, width]."""


@dataclass(frozen=True)
class Encoded:
    """Prompts encoded by the text encoders of a model.

    Attributes:
        tokens: [P, N, d], the input of cross-attention.
        places: int [P], the position of the word's last vector in each prompt.
        pooled: [P, w], the text encoders' further input to the UNet; None if there is none.
        unpadded: bool [P, N], the tokens that are not padding; in exact mode the edit leaves padding alone. None if the gates alone
            decide.
    """

    tokens: Tensor
    places: Tensor
    pooled: Tensor | None = None
    unpadded: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """Return the tensors that depend on the word."""
        return [self.tokens] if self.pooled is None else [self.tokens, self.pooled]

    def leaves(self) -> Encoded:
        """Return the same encodings detached from the graph, as leaves that require gradients."""
        tokens, *pooled = (part.detach().requires_grad_() for part in self.parts())
        return replace(self, tokens=tokens, pooled=pooled[0] if pooled else None)

    def of_prompts(self, which: Tensor) -> Encoded:
        """Return the prompts with the given indices, int [B], in that order."""
        tokens, *pooled = (part[which] for part in self.parts())
        unpadded = None if self.unpadded is None else self.unpadded[which.to(self.unpadded.device)]
        return Encoded(tokens, self.places[which.to(self.places.device)], pooled[0] if pooled else None, unpadded)

    def shortened(self, length: int) -> Encoded:
        """Return the first `length` tokens of each prompt."""
        unpadded = None if self.unpadded is None else self.unpadded[:, :length]
        return replace(self, tokens=self.tokens[:, :length], unpadded=unpadded)

    def at_word(self) -> Tensor:
        """Return the encoding of the word's last vector in each prompt, float32 [P, d]."""
        return self.tokens.float()[torch.arange(len(self.places)), self.places]


class Base(Protocol):
    """The model that a concept is trained on. Shapes: P prompts, B pictures, d the width of an encoding.

    Attributes:
        half: whether gradients are computed in float16, in which small ones vanish unless the loss is scaled.
    """

    half: bool

    def embed(self, text: str) -> dict[str, Tensor]:
        """Return the embedding vectors of the text's tokens, float32 [n, width] for each text encoder."""

    def encode(self, templates: Sequence[str], word: Word) -> Encoded:
        """Encode P prompts with the word in place of `{}`; differentiable with respect to the word."""

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Return layer -> (W_K v, W_V v), float32 [J, m] each, for vectors [J, d]."""

    def fine_layers(self) -> Set[str]:
        """Return the layers of the highest resolution.

        Raises:
            PerfusionError: all layers have the same resolution.
        """

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """Return the model's prediction from noised latents and its target, [B, c, …, h, w] each.

        The prediction is differentiable with respect to the encodings and to `values` and `keys` of the edit.

        Args:
            latents: [B, c, h, w], or [B, c, 1, h, w] for models of videos.
            noise: standard normal, same shape.
            time: [B] in [0, 1), from the lowest noise level to the highest.
            encoded: B prompts.
            edit: the edit of the layers; None for no edit.
        """


def processor_has_bfloat16() -> bool:
    """Return whether this processor has bfloat16 instructions; without them bfloat16 works, but is no faster."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))
