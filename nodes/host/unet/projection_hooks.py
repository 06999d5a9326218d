"""The only place where the projections of attention layers (to_q, to_k and to_v in a UNet) are replaced or observed."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..model.families import Family

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def replace_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace a module's forward within the context; afterwards restore the previous one, whether its class's or its own."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextlib.contextmanager
def replace_key_value_forwards(
    unet: nn.Module, family: Family, layers: Iterable[str], changed: Callable[[Forward, str, bool, bool], Forward]
) -> Iterator[None]:
    """Replace the forward of the key and value projections in a model's layers within the context.

    The new one is changed(the projection's own, layer, whether it computes keys, whether it has a bias). If one Linear computes
    both, each half is changed separately.
    """
    with contextlib.ExitStack() as opened:
        for layer in layers:
            to_k, to_v = family.projections(unet.get_submodule(layer))
            biased = getattr(to_k, "bias", None) is not None
            if family.fused:
                parts = [changed(_half(to_k.forward, i), layer, i == 0, biased) for i in range(2)]
                opened.enter_context(replace_forward(to_k, functools.partial(_joined, parts)))
                continue
            for module, keys in ((to_k, True), (to_v, False)):
                opened.enter_context(replace_forward(module, changed(module.forward, layer, keys, biased)))
        yield


def _half(forward: Forward, which: int) -> Forward:
    return lambda *args, **kwargs: forward(*args, **kwargs).chunk(2, -1)[which]


def _joined(parts: Iterable[Forward], *args: Any, **kwargs: Any) -> Tensor:
    return torch.cat([part(*args, **kwargs) for part in parts], -1)


@contextlib.contextmanager
def layers_reading(unet: nn.Module, family: Family, encoding: Tensor) -> Iterator[None]:
    """Let the layers of a model read this encoding [B, N, d] within the context, if the model itself adapts it for them."""
    if not family.adapts_tokens:
        yield
        return
    adapter = unet.get_submodule(family.adapter)
    plain = adapter.forward

    def forward(context: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # Anything else that another node passes through the adapter stays as it is.
        if context.shape[:-1].numel() != encoding.shape[:-1].numel():
            return plain(context, *args, **kwargs)
        return encoding.reshape(*context.shape[:-1], encoding.shape[-1])

    with replace_forward(adapter, forward):
        yield


@contextlib.contextmanager
def observe_queries(unet: nn.Module, layers: Iterable[str], observe: Callable[[str, Tensor, int], None]) -> Iterator[None]:
    """Call observe(layer, queries [B, h·w, heads·c], heads) for each of a UNet's layers that runs within the context."""

    def see(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        observe(layer, output, heads)

    with contextlib.ExitStack() as opened:
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_q.register_forward_hook(functools.partial(see, layer, module.heads))
            opened.callback(handle.remove)
        yield


@contextlib.contextmanager
def observe_queries_and_keys(
    unet: nn.Module, layers: Iterable[str], observe: Callable[[Tensor, Tensor, int], None]
) -> Iterator[None]:
    """Call observe(queries [B, h·w, heads·c], keys [B, N, heads·c], heads) for each of the layers that runs within the context."""
    queries: dict[str, Tensor] = {}

    def keys_of(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        observe(queries[layer], output, heads)

    with contextlib.ExitStack() as opened:
        opened.enter_context(observe_queries(unet, layers, lambda layer, query, _: queries.update({layer: query})))
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_k.register_forward_hook(functools.partial(keys_of, layer, module.heads))
            opened.callback(handle.remove)
        yield
