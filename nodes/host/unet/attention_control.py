"""Control of the cross-attention of one UNet call: observing it, confining it to regions, injecting maps of another image."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ....perfusion_core.attention_maps import attention, inject_maps, layer_resolution, merge_heads, split_heads, weighted_sum
from .projection_hooks import observe_queries
from .regions import Regions

Watch = Callable[[str, Tensor, tuple[int, int]], None]
"""Called with each layer's name, its attention maps [B, heads, h·w, N], float32, and (h, w)."""


@dataclass(frozen=True)
class Injection:
    """Attention maps of another image that replace this image's own.

    Attributes:
        maps: layer -> maps of the other image, [b, heads, h·w, N'].
        columns: [B, N], the token of the other prompt whose map each token takes; -1 where it keeps its own.
    """

    maps: Mapping[str, Tensor]
    columns: Tensor


class AttentionControl:
    """Observes and changes the cross-attention of one UNet call.

    Maps are computed when keys are projected, so they are observed under other attention patches too. Regions and injection change
    the layer's output through the host's `optimized_attention_override`, so they only affect layers whose attention the host
    itself computes.
    """

    def __init__(
        self, size: tuple[int, int], watch: Watch | None = None, regions: Regions | None = None, injection: Injection | None = None
    ) -> None:
        """Control a call on latents of this height and width."""
        self.size, self.watch, self.regions, self.injection = size, watch, regions, injection
        self.layer, self.heads = "", 1
        self.query: Tensor | None = None
        self.keys: Sequence[Tensor] = ()
        self.values: Sequence[Tensor] = ()
        self.missed: set[str] = set()
        """Layers that read another number of tokens than the UNet's encoding has."""

    @contextlib.contextmanager
    def within(self, unet: nn.Module, layers: Sequence[str]) -> Iterator[None]:
        """Capture the queries of these layers within the context."""

        def see(layer: str, query: Tensor, heads: int) -> None:
            self.layer, self.heads, self.query = layer, heads, query

        with observe_queries(unet, layers, see):
            yield

    def project(self, layer: str, keys: bool, edited: Sequence[Tensor]) -> None:
        """Receive a layer's keys or values, one tensor for each set of edits; see `Observer.project`."""
        if not keys:
            self.values = edited
            return
        self.keys = edited
        if self.watch is not None and self.query is not None:
            shape = layer_resolution(self.query.shape[1], *self.size)
            maps = self._maps(self.query, edited, self.heads)
            whole = maps[0] if len(maps) == 1 else weighted_sum(maps, self.regions.at(shape))
            self.watch(layer, whole, shape)

    def miss(self, layer: str) -> None:
        """Take note of a layer that cannot be controlled; see `Observer.miss`."""
        self.missed.add(layer)

    def _maps(self, query: Tensor, keys: Sequence[Tensor], heads: int) -> list[Tensor]:
        """Return the maps [B, heads, h·w, N] of each set of edits."""
        maps = [attention(query, k, heads, bias) for k, bias in zip(keys, self._biases(query, len(keys)), strict=True)]
        if self.injection is None or self.layer not in self.injection.maps:
            return maps
        return [inject_maps(one, self.injection.maps[self.layer], self.injection.columns) for one in maps]

    def _biases(self, x: Tensor, sets: int) -> list[Tensor | None]:
        """Return the bias of each set of edits; none if a layer has only one set, which acts regardless of regions."""
        if self.regions is None or sets == 1:
            return [None] * sets
        return [self.regions.bias(s, x) if self.regions.excluding[s] else None for s in range(sets)]

    def override(self, previous: Callable | None) -> Callable:
        """Return a function for the host's `optimized_attention_override`; `previous` is the override set before, if any."""

        def attend(func: Callable, q: Tensor, k: Tensor, v: Tensor, heads: int, *args: Any, **kwargs: Any) -> Tensor:
            usual = functools.partial(previous, func) if previous is not None else func
            if not self.keys or k is not self.keys[0] or (self.injection is None and self.regions is None):
                return usual(q, k, v, heads, *args, **kwargs)
            if self.injection is None:
                biases = self._biases(q, len(self.keys))
                whole = [None if bias is None else bias.expand(-1, q.shape[1], -1) for bias in biases]
                parts = [usual(q, *kv, heads, mask=m, **kwargs) for *kv, m in zip(self.keys, self.values, whole, strict=True)]
            else:
                maps = self._maps(q, self.keys, heads)
                parts = [merge_heads(m @ split_heads(v, heads).float()) for m, v in zip(maps, self.values, strict=True)]
            if len(parts) == 1:
                return parts[0].to(q.dtype)
            return weighted_sum(parts, self.regions.at(layer_resolution(q.shape[1], *self.size))).to(q.dtype)

        return attend
