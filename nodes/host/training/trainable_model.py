"""A loaded checkpoint as the core's `Base`: it can be taught, and its weights are not changed."""

import contextlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import comfy.clip_model
import comfy.model_management
import comfy.ops
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor, nn

from ....perfusion_core.gated_edit import Edit
from ....perfusion_core.training.base_model import Encoded, processor_has_bfloat16
from ..model.families import clip_model, kind_of, layers_of
from ..model.loading import load, project, undivided, undivided_clip
from ..text.encoding import Method, embed, prepare_clip, sections_of
from ..text.trigger_words import places_of, tokenizer_with_words
from ..unet.edited_projections import Projections
from ..unet.projection_hooks import in_place_of
from .activation_memory import MemoryNeed, computed_twice, counting


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it faster, else float32."""
    fast = processor_has_bfloat16() if device.type == "cpu" else comfy.model_management.should_use_bf16(device)
    return torch.bfloat16 if fast else torch.float32


def alias(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module as tensors that share their memory but may take part in a backward pass.

    A checkpoint's weights are inference tensors, which autograd refuses to keep.
    """
    shared = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        normal = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        shared[name] = normal.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return shared


def linears(module: nn.Module) -> dict[str, nn.Linear]:
    """By name, the Linears whose weights the host brings to the input's precision anew at each call, as they are in memory."""
    return {
        name: each
        for name, each in module.named_modules()
        if isinstance(each, comfy.ops.manual_cast.Linear) and not each.weight_function and not each.bias_function
    }


@contextlib.contextmanager
def teachable(module: nn.Module, linears: Iterable[nn.Linear]) -> Iterator[None]:
    """While it is open, the host's CLIP layers add to a new tensor: in place, no backward passes through them.

    And its Linears take their weights as they are given them.
    """

    def forward(self: nn.Module, x: Tensor, mask: Tensor | None = None, optimized_attention: Callable | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    with contextlib.ExitStack() as opened:
        for each in module.modules():
            if isinstance(each, comfy.clip_model.CLIPLayer):
                opened.enter_context(in_place_of(each, types.MethodType(forward, each)))
        for each in linears:
            opened.enter_context(in_place_of(each, types.MethodType(nn.Linear.forward, each)))
        yield


@contextlib.contextmanager
def widening(module: nn.Module) -> Iterator[None]:
    """While it is open, the host's layers bring their weights to the precision of what they are given.

    A graphics card computes in the weights' own precision otherwise, and refuses what has another.
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
def pooled(clip: CLIP, name: str) -> Iterator[list[Tensor]]:
    """While it is open, the pooled outputs [P, width] of a CLIP's encoder of this name are put into the list; none of no name."""
    heard: list[Tensor] = []
    if not name:
        yield heard
        return
    handle = clip_model(clip, name).register_forward_hook(lambda module, args, output: heard.append(output[1]))
    try:
        yield heard
    finally:
        handle.remove()


class TrainableModel:
    """The core's `Base` over a MODEL and a CLIP of the host. Use it outside inference mode, with `learning`.

    Its weights are the host's own, in the host's memory: while it holds them the host must not move them. Whoever draws with the
    same MODEL meanwhile does so within `lent`.

    `twice` may be set: parts of the model are then computed twice, which takes a third longer and a fraction of the memory.
    """

    WORD = "<perfusion-word>"
    twice = False

    def __init__(self, model: ModelPatcher, clip: CLIP, precision: torch.dtype, min_snr: float = 0.0) -> None:
        """Load both; their weights are shared, never changed, and none but the text encoder's copied.

        With `min_snr` γ above 0 the error at a time of signal-to-noise ratio s counts as min(s, γ) times the error of the
        latents that it stands for (Min-SNR-γ, arXiv 2303.09556); with 0 all times count as the model's own objective has it.
        """
        self.model = undivided(model)
        self.clip = undivided_clip(clip)
        self.precision, self.min_snr = precision, min_snr
        self.device = self.model.load_device
        self.unet = self.model.model.diffusion_model
        self.layers = layers_of(self.model)
        self.pooled = kind_of(self.model).pooled
        self.encoder = Method(self.clip.cond_stage_model, "encode_token_weights")
        self._take()

    def _take(self) -> None:
        """Have both on the device, and hold their weights."""
        load(self.model, self.clip.patcher)
        prepare_clip(self.clip)
        self.unet_weights = alias(self.unet)
        self.linears = linears(self.encoder)
        self.encoder_weights = alias(self.encoder)
        # Brought to the precision of training once, and not at each step; a backward pass would keep them so in any case.
        for name in self.linears:
            for weight in (f"{name}.weight", f"{name}.bias"):
                if weight in self.encoder_weights:
                    self.encoder_weights[weight] = self.encoder_weights[weight].to(self.precision)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """While it is open, no weight is held: the host may move them, and they are taken again from where they are then."""
        self.unet_weights, self.encoder_weights, self.linears = {}, {}, {}
        yield
        self._take()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def embed(self, text: str) -> dict[str, Tensor]:
        """See `Base.embed`."""
        return {name: vectors.to(self.device) for name, vectors in embed(self.clip, text).items()}

    def encode(self, templates: Sequence[str], word: Mapping[str, Tensor]) -> Encoded:
        """See `Base.encode`."""
        tokenizer = tokenizer_with_words(self.clip.tokenizer, {self.WORD: word})
        tokens = sections_of(self.clip, [t.format(self.WORD) for t in templates], tokenizer)
        stands = places_of(tokens, tokenizer)[self.WORD].reshape(len(templates), -1)
        places = stands.shape[1] - 1 - stands.int().flip(1).argmax(1)
        with self._autocast(), teachable(self.encoder, self.linears.values()), pooled(self.clip, self.pooled) as heard:
            out = torch.func.functional_call(self.encoder, self.encoder_weights, (tokens,))[0]
        encodings = out.to(self.device, torch.float32).reshape(len(templates), -1, out.shape[-1])
        return Encoded(encodings, places, *(each.to(encodings) for each in heard))

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Base.project`."""
        return project(self.unet_weights, self.layers, vectors)

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """See `Base.objective`. The target is the output that the host would have turned into the latents themselves."""
        sampling = self.model.model.model_sampling
        sigmas = sampling.sigmas.to(self.device)
        sigma = sigmas[(time * len(sigmas)).long()]
        x = sampling.noise_scaling(sigma, noise, latents)
        projections = Projections([edit] if edit is not None else [], encoded.tokens)

        @contextlib.contextmanager
        def edited() -> Iterator[None]:
            wide = widening(self.unet) if self.precision == torch.float32 else contextlib.nullcontext()
            with projections.within(self.unet, self.layers), wide:
                yield

        with contextlib.ExitStack() as opened:
            opened.enter_context(edited())
            opened.enter_context(self._autocast())
            if self.twice:
                opened.enter_context(computed_twice(self.unet, self.unet_weights, edited))
            inputs = (sampling.calculate_input(sigma, x), sampling.timestep(sigma).float())
            options = {"context": encoded.tokens, "transformer_options": {}, **self._conditions(encoded, latents)}
            prediction = torch.func.functional_call(self.unet, self.unet_weights, inputs, options)
        nothing = sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        slope = nothing - sampling.calculate_denoised(sigma, torch.ones_like(x), x)
        target = (nothing - latents) / slope
        if self.min_snr > 0:
            scale = slope.abs() * (1 / sigma[:, None, None, None].square()).clamp(max=self.min_snr).sqrt()
            prediction, target = scale * prediction, scale * target
        return prediction, target

    def _conditions(self, encoded: Encoded, latents: Tensor) -> dict[str, Tensor]:
        """What else the UNet is given where it reads a pooled output: that, and the pictures' size."""
        if encoded.pooled is None:
            return {}
        height, width = (side * self.model.model.latent_format.spacial_downscale_ratio for side in latents.shape[-2:])
        given = {"pooled_output": encoded.pooled, "height": height, "width": width, "device": self.device}
        return {"y": self.model.model.encode_adm(**given).to(self.device)}

    def bytes(self) -> int:
        """Memory that the model and its text encoder lie in."""
        return self.model.model_size() + self.clip.patcher.model_size()

    def need(self, word: Mapping[str, Tensor], step: Callable[[], object]) -> MemoryNeed:
        """What `step`, which calls `objective` for one picture, would keep for its backward pass; none can follow.

        And what two prompts of this word would keep in the text encoder.
        """
        learned = {name: vectors.clone().requires_grad_() for name, vectors in word.items()}
        with counting(self.encoder, self.encoder_weights) as said:
            self.encode(["a {}", "the {}"], learned)
        with counting(self.unet, self.unet_weights) as need:
            step()
        need.outside.fixed += said.outside.of(1)
        return need


@contextlib.contextmanager
def learning() -> Iterator[None]:
    """Nodes run in inference mode; while this is open, gradients are recorded where they are asked for."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
