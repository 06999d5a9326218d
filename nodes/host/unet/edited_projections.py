"""The edited keys and values of a UNet, computed for each encoding."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ....perfusion_core.gated_edit import Coefficients, Edit
from .projection_hooks import replace_key_value_forwards


class Observer(Protocol):
    """Receives the keys and values that a UNet call reads."""

    def project(self, layer: str, keys: bool, edited: Sequence[Tensor]) -> None:
        """Receive a layer's keys or values, one tensor for each set of edits."""


class Comparer(Protocol):
    """Receives the projections that are computed, with and without the edit."""

    def compare(self, layer: str, keys: bool, plain: Tensor, edited: Sequence[Tensor]) -> None:
        """Receive a layer's keys or values without an edit, and with each set of edits."""


class Projections:
    """The edited keys and values of an encoding.

    The edit is added to the output of the host's own Linear, so weight patches, offloading and quantised weights keep working, and
    attention patches that call to_k and to_v themselves get the edit as well.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        encoding: Tensor,
        named: Tensor | None = None,
        locked: Tensor | None = None,
        locks: Tensor | None = None,
    ) -> None:
        """Compute the coefficients of an encoding [B, N, d], once for all layers.

        For `named`, `locked` and `locks` see `perfusion_state.EXTRA_MODEL_INPUTS`.
        """
        self.edits, self.encoding, self.named, self.locked = edits, encoding, named, locked
        self.observer: Observer | None = None
        self.comparer: Comparer | None = None
        self.by = [edit.coefficients(encoding, named) for edit in edits]
        self.key_encoding = encoding if locks is None else torch.where(locked > 0, locks.to(encoding), encoding)
        self.change = any(by.any() for by in self.by) or locks is not None
        """Whether the output of any layer changes."""
        self.kept: dict[tuple[str, bool], list[Tensor]] | None = None
        """(Layer, whether its keys) -> the cached projections of this encoding; None if nothing is to be cached."""

    def bytes(self) -> int:
        """Return the bytes of all keys and values that may be cached."""
        widths = sum(value.shape[-1] for value in self.edits[0].values.values()) if self.edits else 0
        return 2 * widths * len(self.edits) * self.encoding[..., 0].numel() * self.encoding.element_size()

    def only_first(self) -> None:
        """Drop the edits of all regions."""
        self.edits, self.by = self.edits[:1], self.by[:1]

    def _coefficients(self, edit: Edit, known: Coefficients, x: Tensor) -> Coefficients:
        if x is self.encoding or x is self.key_encoding:
            return known
        # An attention patch has passed in other tokens: no trigger word has reached those that it appended.
        if self.named is None or x.shape[0] != self.named.shape[0]:
            return edit.coefficients(x)
        missing = max(x.shape[1] - self.named.shape[1], 0)
        return edit.coefficients(x, nn.functional.pad(self.named, (0, 0, 0, missing))[:, : x.shape[1]])

    def _made(self, plain: Callable[..., Tensor], layer: str, keys: bool, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Compute a layer's keys or values of x with each set of edits; the host may hand its Linear more than x."""

        def project(vectors: Tensor) -> Tensor:
            return plain(vectors.to(x.device, x.dtype))

        output = plain(x, *args, **kwargs)
        results = [] if self.edits else [output]
        for edit, known in zip(self.edits, self.by, strict=True):
            by = self._coefficients(edit, known, x)
            if keys and x is self.key_encoding and self.locked is not None:
                # Locked keys are the superclass prompt's own and are not edited.
                by = Coefficients(by.remove * (1 - self.locked), by.add * (1 - self.locked))
            corrected = (edit.key_correction if keys else edit.value_correction)(layer, by, project)
            results.append(output + corrected.to(output.dtype))
        if self.comparer is not None:
            self.comparer.compare(layer, keys, output, results)
        return results

    def _forward(self, plain: Callable[..., Tensor], layer: str, keys: bool) -> Callable[..., Tensor]:
        """Return the function that replaces a Linear's own forward, `plain`."""

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept = self.kept if x is self.encoding else None
            if keys and x is self.encoding:
                x = self.key_encoding  # under global key-locking, keys read the superclass prompt
            results = None if kept is None else kept.get((layer, keys))
            if results is None:
                results = self._made(plain, layer, keys, x, *args, **kwargs)
                if kept is not None:
                    kept[layer, keys] = results
            if self.observer is not None:
                self.observer.project(layer, keys, results)
            return results[0]

        return forward

    @contextlib.contextmanager
    def within(self, unet: nn.Module, layers: Sequence[str]) -> Iterator[None]:
        """Make the UNet's cross-attention projections of these layers return the edited keys and values within the context."""
        with replace_key_value_forwards(unet, layers, self._forward):
            yield
