"""The model that is taught, as the training loop sees it: the loop knows no host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..gated_edit import Edit

Word = Mapping[str, Tensor]
"""Text encoder's name -> embedding vectors, [n, width]."""


@dataclass(frozen=True)
class Encoded:
    """Prompts as the text encoders of a model give them.

    Attributes:
        tokens: [P, N, d], what cross-attention reads.
        places: int [P], where the word's last vector stands in each prompt.
        pooled: [P, w], what else the UNet reads of the text encoders; None where it reads nothing else.
    """

    tokens: Tensor
    places: Tensor
    pooled: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """The tensors that depend on the word."""
        return [self.tokens] if self.pooled is None else [self.tokens, self.pooled]

    def leaves(self) -> Encoded:
        """The same numbers as leaves of a graph of their own, by which gradients are asked for."""
        parts = [part.detach().requires_grad_() for part in self.parts()]
        return Encoded(parts[0], self.places, *parts[1:])

    def of_prompts(self, which: Tensor) -> Encoded:
        """The prompts of these numbers, int [B], in this order."""
        return Encoded(self.tokens[which], self.places[which.to(self.places.device)], *(part[which] for part in self.parts()[1:]))

    def at_word(self) -> Tensor:
        """The encoding of the word's last vector in each prompt, float32 [P, d]."""
        return self.tokens.float()[torch.arange(len(self.places)), self.places]


class Base(Protocol):
    """The model that is taught; P prompts, B pictures, d the width of an encoding."""

    def embed(self, text: str) -> dict[str, Tensor]:
        """The embedding vectors of the text's tokens, float32 [n, width] for each text encoder."""

    def encode(self, templates: Sequence[str], word: Word) -> Encoded:
        """P prompts with the word in place of `{}`; differentiable by the word."""

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Layer -> (W_K v, W_V v), float32 [J, m] each, of vectors [J, d]."""

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """The model's prediction from noised latents and what it should have been, [B, c, h, w] each.

        Args:
            latents: [B, c, h, w].
            noise: standard normal, same shape.
            time: [B] in [0, 1), from the least noise to the most.
            encoded: of B prompts.
            edit: how the layers are edited, if at all; differentiable by its `values`, `keys` and by the encodings.
        """


def processor_has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16; others take it too, but no faster."""
    return any(getattr(torch.cpu, f"_is_{name}_supported", bool)() for name in ("amx_tile", "avx512_bf16"))
