"""What makes the host's modules differentiable: aliases of their weights, and replacements of what has no backward pass."""

import contextlib
import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import comfy.ldm.common_dit
import comfy.ldm.modules.attention as host_attention
import comfy.model_management
import comfy.ops
import comfy.quant_ops
import torch
from comfy.clip_model import CLIPLayer
from comfy.text_encoders.t5 import T5LayerFF, T5LayerSelfAttention
from torch import Tensor, nn

from ..unet.projection_hooks import replace_forward

DIFFERENTIABLE = {"attention_basic", "attention_split", "attention_sub_quad", "attention_xformers", "attention_pytorch"}
"""The host's attention functions that have a backward pass; those of --use-sage-attention and its like have none."""


def alias(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and buffers as tensors that share their memory but can take part in a backward pass.

    A checkpoint's weights are inference tensors, which autograd refuses to save.
    """
    shared = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        normal = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        shared[name] = normal.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return shared


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Return by name the Linears whose stored weights the host casts to the input's precision at each call, without patches."""
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, comfy.ops.manual_cast.Linear) and not each.weight_function and not each.bias_function
    }


@contextlib.contextmanager
def differentiable_encoder(module: nn.Module, linears: Iterable[nn.Linear]) -> Iterator[None]:
    """Make a text encoder of the host differentiable within the context.

    The host's layers of CLIP and T5 add to their input in place, which prevents a backward pass; here they create new tensors.
    `linears` use their weights as given, without casting them, unless the host asks for more than a product.
    """

    def linear(self: nn.Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs:
            return type(self).forward(self, x, *args, **kwargs)
        return nn.functional.linear(x, self.weight, self.bias)

    def forward(self: nn.Module, x: Tensor, mask: Tensor | None = None, optimized_attention: Callable | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    def self_attention(self: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        output, bias = self.SelfAttention(self.layer_norm(x), *args, **kwargs)
        return x + output, bias

    def feed_forward(self: nn.Module, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))

    replaced = {CLIPLayer: forward, T5LayerSelfAttention: self_attention, T5LayerFF: feed_forward}
    with contextlib.ExitStack() as opened:
        for each in module.modules():
            for kind, own in replaced.items():
                if isinstance(each, kind):
                    opened.enter_context(replace_forward(each, types.MethodType(own, each)))
        for each in linears:
            opened.enter_context(replace_forward(each, types.MethodType(linear, each)))
        yield


@contextlib.contextmanager
def weights_cast_to_input(module: nn.Module) -> Iterator[None]:
    """Make the host's layers cast their weights to the precision of their input within the context.

    Otherwise a graphics card computes in the weights' own precision and rejects inputs of another one.
    """
    layers = [each for each in module.modules() if getattr(each, "comfy_cast_weights", None) is False]
    for each in layers:
        each.comfy_cast_weights = True
    try:
        yield
    finally:
        for each in layers:
            each.comfy_cast_weights = False


@contextlib.contextmanager
def norms_with_own_input() -> Iterator[None]:
    """Let the host's RMS norm without weights keep a copy of its input within the context.

    LTX-Video's blocks add in place to what they have normalised, which prevents a backward pass.
    """
    before = comfy.ldm.common_dit.rms_norm

    def rms_norm(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return before(x.clone(), *args, **kwargs)

    comfy.ldm.common_dit.rms_norm = rms_norm
    try:
        yield
    finally:
        comfy.ldm.common_dit.rms_norm = before


@contextlib.contextmanager
def kernels_with_backward() -> Iterator[None]:
    """Let the host compute in plain operations what fused kernels without a backward pass compute, within the context.

    These are the norm and rotation of queries and keys in Cosmos-Predict2's self-attention, and products in fp8 where the host was
    started with fast ones; it computes those in the input's precision if the kernel returns None.
    """
    kernels, name = getattr(comfy.quant_ops, "ck", None), "rms_rope_split_half"
    plain = functools.reduce(lambda at, part: getattr(at, part, None), ("backends", "eager", "rope", name), kernels)
    with contextlib.ExitStack() as opened:
        for holder, kernel, instead in ((kernels, name, plain), (comfy.ops, "fp8_linear", lambda *_: None)):
            if instead is not None and hasattr(holder, kernel):  # older hosts do not have all of them
                opened.callback(setattr, holder, kernel, getattr(holder, kernel))
                setattr(holder, kernel, instead)
        yield


def attention_with_backward(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Compute attention by the host's function if that is DIFFERENTIABLE, else by PyTorch's own.

    The signature is that of the host's `optimized_attention_override`. Norms of queries and keys may leave these in float32 beside
    values in half precision, which not every function takes.
    """
    name = getattr(attention, "__name__", "")
    return (attention if name in DIFFERENTIABLE else host_attention.attention_pytorch)(q.to(v), k.to(v), v, *args, **kwargs)


@contextlib.contextmanager
def marked_as_training() -> Iterator[None]:
    """Tell the host within the context that gradients are needed, so that it takes no path that has none."""
    before = getattr(comfy.model_management, "in_training", False)
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before
