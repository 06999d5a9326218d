"""The only places where the projections of attention layers, to_q, to_k and to_v, are changed or listened to."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

Forward = Callable[[Tensor], Tensor]


@contextlib.contextmanager
def in_place_of(module: nn.Module, forward: Callable) -> Iterator[None]:
    """While it is open, a module has this forward; afterwards the one that it had, be that its class's or its own."""
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
def keys_and_values_changed(
    unet: nn.Module, layers: Iterable[str], changed: Callable[[Forward, str, bool], Forward]
) -> Iterator[None]:
    """While it is open, to_k and to_v of a UNet's layers have another forward: changed(their own, layer, whether it is to_k)."""
    with contextlib.ExitStack() as opened:
        for layer in layers:
            attention = unet.get_submodule(layer)
            for module, keys in ((attention.to_k, True), (attention.to_v, False)):
                opened.enter_context(in_place_of(module, changed(module.forward, layer, keys)))
        yield


@contextlib.contextmanager
def queries_seen(unet: nn.Module, layers: Iterable[str], told: Callable[[str, Tensor, int], None]) -> Iterator[None]:
    """While it is open, told(layer, queries [B, h·w, heads·c], heads) is called for each of a UNet's layers that runs."""

    def see(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        told(layer, output, heads)

    with contextlib.ExitStack() as opened:
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_q.register_forward_hook(functools.partial(see, layer, module.heads))
            opened.callback(handle.remove)
        yield


@contextlib.contextmanager
def queries_and_keys_seen(unet: nn.Module, layers: Iterable[str], told: Callable[[Tensor, Tensor, int], None]) -> Iterator[None]:
    """While it is open, told(queries [B, h·w, heads·c], keys [B, N, heads·c], heads) is called for each layer that runs."""
    queries: dict[str, Tensor] = {}

    def keys_of(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        told(queries[layer], output, heads)

    with contextlib.ExitStack() as opened:
        opened.enter_context(queries_seen(unet, layers, lambda layer, query, _: queries.update({layer: query})))
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_k.register_forward_hook(functools.partial(keys_of, layer, module.heads))
            opened.callback(handle.remove)
        yield
