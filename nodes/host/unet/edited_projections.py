"""The edited keys and values of a UNet, made for each encoding."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ....perfusion_core.gated_edit import Coefficients, Edit
from .projection_hooks import keys_and_values_changed


class Observer(Protocol):
    """Is told of the keys and values that a UNet call reads."""

    def project(self, layer: str, keys: bool, edited: Sequence[Tensor]) -> None:
        """Told of a layer's keys or values with each set of edits."""


class Comparer(Protocol):
    """Is told of the projections that are made."""

    def compare(self, layer: str, keys: bool, plain: Tensor, edited: Sequence[Tensor]) -> None:
        """Told of a layer's keys or values as they are without an edit, and with each set of edits."""


class Projections:
    """The edited keys and values of an encoding.

    The edit adds to whatever the host's own Linear gives, so weight patches, offloading and quantised weights keep working, and
    attention patches that call to_k and to_v themselves meet it as well.
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        encoding: Tensor,
        named: Tensor | None = None,
        locked: Tensor | None = None,
        locks: Tensor | None = None,
    ) -> None:
        """The coefficients of an encoding [B, N, d] are computed here, once for all layers."""
        self.edits, self.encoding, self.named, self.locked = edits, encoding, named, locked
        self.observer: Observer | None = None
        self.comparer: Comparer | None = None
        self.by = [edit.coefficients(encoding, named) for edit in edits]
        self.key_encoding = encoding if locks is None else torch.where(locked > 0, locks.to(encoding), encoding)
        self.change = any(by.any() for by in self.by) or locks is not None
        """Whether any layer's output changes."""
        self.kept: dict[tuple[str, bool], list[Tensor]] | None = None
        """Layer and whether its keys -> what was made of this encoding; None where nothing is to be kept."""

    def bytes(self) -> int:
        """Memory of all keys and values that may be kept."""
        widths = sum(value.shape[-1] for value in self.edits[0].values.values()) if self.edits else 0
        return 2 * widths * len(self.edits) * self.encoding[..., 0].numel() * self.encoding.element_size()

    def only_first(self) -> None:
        """Drop the edits of all regions."""
        self.edits, self.by = self.edits[:1], self.by[:1]

    def _coefficients(self, edit: Edit, known: Coefficients, x: Tensor) -> Coefficients:
        if x is self.encoding or x is self.key_encoding:
            return known
        # An attention patch has put other tokens here: those that it appended were reached by no trigger word.
        if self.named is None or x.shape[0] != self.named.shape[0]:
            return edit.coefficients(x)
        missing = max(x.shape[1] - self.named.shape[1], 0)
        return edit.coefficients(x, nn.functional.pad(self.named, (0, 0, 0, missing))[:, : x.shape[1]])

    def _made(self, plain: Callable[[Tensor], Tensor], layer: str, keys: bool, x: Tensor) -> list[Tensor]:
        """A layer's keys or values of x, with each set of edits."""

        def project(vectors: Tensor) -> Tensor:
            return plain(vectors.to(x.device, x.dtype))

        output = plain(x)
        results = [] if self.edits else [output]
        for edit, known in zip(self.edits, self.by, strict=True):
            by = self._coefficients(edit, known, x)
            if keys and x is self.key_encoding and self.locked is not None:
                # These keys are the superclass prompt's own: nothing is edited in them.
                by = Coefficients(by.remove * (1 - self.locked), by.add * (1 - self.locked))
            corrected = (edit.key_correction if keys else edit.value_correction)(layer, by, project)
            results.append(output + corrected.to(output.dtype))
        if self.comparer is not None:
            self.comparer.compare(layer, keys, output, results)
        return results

    def _forward(self, plain: Callable[[Tensor], Tensor], layer: str, keys: bool) -> Callable[[Tensor], Tensor]:
        """What takes the place of a Linear's own forward, `plain`."""

        def forward(x: Tensor) -> Tensor:
            kept = self.kept if x is self.encoding else None
            if keys and x is self.encoding:
                x = self.key_encoding  # under global key-locking, keys read the superclass prompt
            results = None if kept is None else kept.get((layer, keys))
            if results is None:
                results = self._made(plain, layer, keys, x)
                if kept is not None:
                    kept[layer, keys] = results
            if self.observer is not None:
                self.observer.project(layer, keys, results)
            return results[0]

        return forward

    @contextlib.contextmanager
    def within(self, unet: nn.Module, layers: Sequence[str]) -> Iterator[None]:
        """While it is open, the UNet's cross-attention projections of these layers give the edited keys and values."""
        with keys_and_values_changed(unet, layers, self._forward):
            yield
