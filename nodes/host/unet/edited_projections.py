"""The edited keys and values of a UNet, computed for each encoding."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ....perfusion_core.gated_edit import EXACT, Coefficients, Edit
from ..model.families import Family
from .named_tokens import influenced_tokens
from .projection_hooks import layers_reading, replace_key_value_forwards


class Observer(Protocol):
    """Receives the keys and values that a UNet call reads."""

    def project(self, layer: str, keys: bool, edited: Sequence[Tensor]) -> None:
        """Receive a layer's keys or values, one tensor for each set of edits."""

    def miss(self, layer: str) -> None:
        """Take note of a layer that reads another number of tokens than the UNet's encoding has."""


class Comparer(Protocol):
    """Receives the projections that are computed, with and without the edit."""

    def compare(self, layer: str, keys: bool, plain: Sequence[Tensor], edited: Sequence[Tensor]) -> None:
        """Receive a layer's keys or values without and with each set of edits."""


@dataclass(frozen=True)
class OtherEncodings:
    """Encodings that a patch makes layers read instead of the UNet's own: regional prompts, appended tokens.

    Attributes:
        edit: the edit of all concepts, wherever their regions are.
        triggers: their trigger words.
        report: called with the coefficients of each encoding that is read.
        causal: whether a token is encoded only from those before it.
    """

    edit: Edit
    triggers: Sequence[str]
    report: Callable[[Coefficients], None]
    causal: bool = True

    def named(self, x: Tensor, own: Tensor, named: Tensor | None) -> Tensor:
        """Return the tokens of an encoding [B, N, d] that trigger words can have influenced, [B, N, J].

        If it begins with the UNet's own encoding, `named` applies to that part, and no trigger word has reached what follows.
        """
        found = influenced_tokens(x, self.edit, self.triggers, causal=self.causal)
        more = x.shape[1] - own.shape[1]
        if named is None or more < 0 or x.shape[0] != own.shape[0]:
            return found
        # Compared on the device, since this runs in every layer.
        return torch.where((x[:, : own.shape[1]] == own).all(), nn.functional.pad(named, (0, 0, 0, more)), found)

    def coefficients(self, edit: Edit, x: Tensor, own: Tensor, named: Tensor | None) -> Coefficients:
        """Return an edit's coefficients for an encoding."""
        by = edit.coefficients(x.as_subclass(Tensor), self.named(x, own, named) if edit.mode == EXACT else None)
        self.report(by)
        return by


class Projections:
    """The edited keys and values of an encoding.

    The edit is added to the output of the host's own Linear, so weight patches, offloading and quantised weights keep working, and
    attention patches that call to_k and to_v themselves get the edit as well. A norm of keys comes after it.

    For a Linear with a bias, W u is its output for u without that bias: plain(u) - plain(0).
    """

    def __init__(
        self,
        edits: Sequence[Edit],
        encoding: Tensor,
        named: Tensor | None = None,
        locked: Tensor | None = None,
        locks: Tensor | None = None,
        regional: Tensor | None = None,
    ) -> None:
        """Compute the coefficients of an encoding [B, N, d], once for all layers.

        For `named`, `locked`, `locks` and `regional` see `perfusion_state.EXTRA_MODEL_INPUTS`.
        """
        self.edits, self.encoding, self.named, self.locked = edits, encoding, named, locked
        self.read = list(regional.chunk(len(edits), 2)) if regional is not None else [encoding] * max(len(edits), 1)
        """The encoding that each set of edits reads."""
        self.observer: Observer | None = None
        self.comparer: Comparer | None = None
        self.others: OtherEncodings | None = None
        self.replaced: set[str] = set()
        """Layers whose attention a patch computes, which regions do not reach: concepts act there regardless of them."""
        self.by = [edit.coefficients(each, named) for edit, each in zip(edits, self.read, strict=False)]
        self.key_encodings = self.read
        if locks is not None:
            self.key_encodings = [torch.where(locked > 0, locks.to(each), each) for each in self.read]
        differ = any(each is not encoding and not torch.equal(each, encoding) for each in self.read)
        self.change = any(by.any() for by in self.by) or locks is not None or differ
        """Whether the output of any layer changes."""
        self.copies: dict[tuple, tuple[Tensor, bool]] = {}
        """Tensors that layers read, by their places in memory, and whether each equals the encoding.

        They are held during a call, so that no other tensor takes such a place.
        """
        self.kept: dict[tuple[str, bool], list[Tensor]] | None = None
        """(Layer, whether its keys) -> the cached projections of this encoding; None if nothing is to be cached."""

    def bytes(self) -> int:
        """Return the bytes of all keys and values that may be cached."""
        widths = sum(value.shape[-1] for value in self.edits[0].values.values()) if self.edits else 0
        return 2 * widths * len(self.edits) * self.encoding[..., 0].numel() * self.encoding.element_size()

    def only_first(self) -> None:
        """Drop the edits of all regions."""
        self.edits, self.by, self.read, self.key_encodings = (
            each[:1] for each in (self.edits, self.by, self.read, self.key_encodings)
        )

    def _is_own(self, x: Tensor) -> bool:
        """Return whether a layer reads the model's own encoding, even as a view of another shape."""
        if x is self.encoding:
            return True
        mine = self.encoding
        if (x.numel(), x.shape[-1], x.dtype, x.device) != (mine.numel(), mine.shape[-1], mine.dtype, mine.device):
            return False
        if x.data_ptr() == mine.data_ptr() and x.is_contiguous() and mine.is_contiguous():
            return True
        if x.shape != mine.shape:
            return False
        # Wan's image-to-video models read it as a part of a longer tensor. Compared once for all layers of a call.
        where = x.data_ptr(), x.stride()
        if where not in self.copies:
            self.copies[where] = x, torch.equal(x.as_subclass(Tensor), mine.as_subclass(Tensor))
        return self.copies[where][1]

    def _edits(self, layer: str, x: Tensor, own: bool) -> Sequence[Edit]:
        """Return a layer's sets of edits for an encoding; regions are for as many images and tokens as the UNet was called with."""
        fits = len(self.edits) > 1 and x.shape[:2] == self.encoding.shape[:2] and layer not in self.replaced
        return self.edits if own or not self.others or fits else [self.others.edit]

    def _reads_own(self, layer: str, x: Tensor) -> bool:
        """Return whether a layer reads the model's own encoding, with all sets of edits."""
        return self._is_own(x) and not (len(self.edits) > 1 and layer in self.replaced)

    def _made(
        self, plain: Callable[..., Tensor], layer: str, keys: bool, biased: bool, x: Tensor, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        """Compute a layer's keys or values of x with each set of edits; the host may pass its Linear more than x."""
        own = self._reads_own(layer, x)
        edits = self._edits(layer, x, own)
        read = (self.key_encodings if keys else self.read) if own else [x.as_subclass(Tensor)] * max(len(edits), 1)
        outputs = {id(each): plain(each, *args, **kwargs) for each in {id(each): each for each in read}.values()}
        before = [outputs[id(each)] for each in read]

        def project(vectors: Tensor) -> Tensor:
            vectors = vectors.to(x.device, x.dtype)
            if not biased:
                return plain(vectors)
            outputs = plain(nn.functional.pad(vectors, (0, 0, 0, 1))).float()
            return outputs[:-1] - outputs[-1:]

        results = [] if edits else before
        for i, edit in enumerate(edits):
            by = self.by[i] if own else self.others.coefficients(edit, x, self.encoding, self.named)
            if keys and own and self.locked is not None:
                # Locked keys are the superclass prompt's own and are not edited.
                free = 1 - self.locked
                by = Coefficients(by.keys.remove * free, by.keys.add * free)
            corrected = (edit.key_correction if keys else edit.value_correction)(layer, by, project)
            results.append(before[i] + corrected.to(before[i].dtype))
        if self.comparer is not None:
            self.comparer.compare(layer, keys, before, results)
        return results

    def _forward(self, plain: Callable[..., Tensor], layer: str, keys: bool, biased: bool) -> Callable[..., Tensor]:
        """Return the function that replaces a Linear's own forward, `plain`."""

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            kept = self.kept if self._reads_own(layer, x) else None
            results = None if kept is None else kept.get((layer, keys))
            if results is None:
                results = self._made(plain, layer, keys, biased, x, *args, **kwargs)
                if kept is not None:
                    kept[layer, keys] = results
            if self.observer is not None and x.shape[0] == self.encoding.shape[0]:
                if x.shape[1] == self.encoding.shape[1]:
                    self.observer.project(layer, keys, results)
                else:
                    self.observer.miss(layer)
            # Returned as it is if its shape fits, since the control of attention recognises keys by identity.
            fits = results[0].shape[:-1] == x.shape[:-1]
            return results[0] if fits else results[0].reshape(*x.shape[:-1], -1)

        return forward

    @contextlib.contextmanager
    def within(self, unet: nn.Module, family: Family, layers: Sequence[str]) -> Iterator[None]:
        """Make the model's layers read the encoding, and its edited keys and values, within the context."""
        try:
            with (
                layers_reading(unet, family, self.encoding),
                replace_key_value_forwards(unet, family, layers, self._forward),
            ):
                yield
        finally:
            self.copies.clear()
