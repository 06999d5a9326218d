"""The only place where the projections of attention layers (to_q, to_k and to_v) are replaced or observed."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator

from torch import Tensor, nn

Forward = Callable[..., Tensor]


@contextlib.contextmanager
def replace_forward(module: nn.Module, forward: Callable) -> Iterator[None]:
    """Replace a module's forward within the context; afterwards restore the previous one, be it its class's or its own."""
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
    unet: nn.Module, layers: Iterable[str], changed: Callable[[Forward, str, bool], Forward]
) -> Iterator[None]:
    """Replace the forward of to_k and to_v in a UNet's layers within the context by changed(its own, layer, whether it is to_k)."""
    with contextlib.ExitStack() as opened:
        for layer in layers:
            attention = unet.get_submodule(layer)
            for module, keys in ((attention.to_k, True), (attention.to_v, False)):
                opened.enter_context(replace_forward(module, changed(module.forward, layer, keys)))
        yield


@contextlib.contextmanager
def observe_queries(unet: nn.Module, layers: Iterable[str], told: Callable[[str, Tensor, int], None]) -> Iterator[None]:
    """Call told(layer, queries [B, h·w, heads·c], heads) for each of a UNet's layers that runs within the context."""

    def see(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        told(layer, output, heads)

    with contextlib.ExitStack() as opened:
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_q.register_forward_hook(functools.partial(see, layer, module.heads))
            opened.callback(handle.remove)
        yield


@contextlib.contextmanager
def observe_queries_and_keys(unet: nn.Module, layers: Iterable[str], told: Callable[[Tensor, Tensor, int], None]) -> Iterator[None]:
    """Call told(queries [B, h·w, heads·c], keys [B, N, heads·c], heads) for each of the layers that runs within the context."""
    queries: dict[str, Tensor] = {}

    def keys_of(layer: str, heads: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        told(queries[layer], output, heads)

    with contextlib.ExitStack() as opened:
        opened.enter_context(observe_queries(unet, layers, lambda layer, query, _: queries.update({layer: query})))
        for layer in layers:
            module = unet.get_submodule(layer)
            handle = module.to_k.register_forward_hook(functools.partial(keys_of, layer, module.heads))
            opened.callback(handle.remove)
        yield
