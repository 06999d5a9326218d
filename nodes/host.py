"""The only room that knows ComfyUI's internals: a new host version is this file's work.

Text side: `clip_with_words` makes a CLIP that knows trigger words. Its encodings carry, as `Named` tensors, which trigger words
can have reached which tokens, through the host's conditioning nodes to the sampler.
Model side: `model_with_edit` makes a MODEL whose cross-attention projections are edited while it runs, and only then.
Training: `Student` is the core's `Base` over a loaded checkpoint, without copying or changing its weights.
"""

import contextlib
import copy
import hashlib
import logging
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.clip_model
import comfy.model_management
import comfy.sample
import comfy.utils
import torch
from comfy.conds import CONDCrossAttn
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider
from comfy.sd import CLIP, VAE
from comfy.sd1_clip import SDClipModel, SDTokenizer
from torch import Tensor, nn

from ..perfusion_core import PerfusionError
from ..perfusion_core.concept import Concept, Stack, combine, edit_of
from ..perfusion_core.edit import EXACT, Coefficients, Edit, Project

KEY = "perfusion"
NAMED = "perfusion_named"
FAMILIES = {768: "sd1", 1024: "sd2", 2048: "sdxl"}
"""Width of the encoding that cross-attention reads -> base family."""

Tokenizer = Any
"""A CLIP's tokenizer: an object that holds an `SDTokenizer` for each of its text encoders."""

Tokens = Mapping[str, list]
"""A tokenized prompt: encoder's letter -> sections -> (token or embedding vector, weight)."""

log = logging.getLogger("perfusion")


# ---- what a model and a text encoder are -------------------------------------------------------------------------------------


def layers_of(model: ModelPatcher) -> dict[str, int]:
    """Cross-attention layers of a MODEL and the width m of their projections, in the order that the model runs them.

    Raises:
        PerfusionError: the model has none, as models without a UNet of Stable Diffusion's kind.
    """
    unet = model.model.diffusion_model
    found = {
        name: module.to_v.out_features
        for name, module in unet.named_modules()
        if name.endswith(".attn2") and hasattr(module, "to_k") and module.to_k.in_features == width_of(model)
    }
    if not found:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this model has no cross-attention of that kind.")
    return found


def width_of(model: ModelPatcher) -> int:
    """Width d of the encodings that a MODEL's cross-attention reads; 0 where it has none."""
    width = model.model.model_config.unet_config.get("context_dim") or 0
    return width if isinstance(width, int) else 0


def family_of(model: ModelPatcher) -> str:
    """Base family of a MODEL; raises PerfusionError where it is none that Perfusion knows."""
    family = FAMILIES.get(width_of(model))
    if family is None:
        raise PerfusionError("Perfusion needs a Stable Diffusion 1, 2 or XL model; this is another kind.")
    return family


def encoders_of(clip: CLIP) -> dict[str, SDTokenizer]:
    """A CLIP's text encoders by name, and their tokenizers.

    Raises:
        PerfusionError: it has none of CLIP's kind.
    """
    found = {k: v for k, v in vars(clip.tokenizer).items() if isinstance(v, SDTokenizer)}
    if not found or any(not isinstance(clip_model(clip, name), SDClipModel) for name in found):
        raise PerfusionError("Perfusion needs the text encoder of a Stable Diffusion checkpoint; this CLIP is of another kind.")
    return found


def clip_model(clip: CLIP, name: str) -> nn.Module | None:
    """The text encoder of that name in a CLIP."""
    return getattr(clip.cond_stage_model, name, None)


def identity_of(clip: CLIP) -> str:
    """A digest of a CLIP's text encoders: of its layer norms and some of its vocabulary, which every fine-tune moves."""
    digest = hashlib.sha256(str(clip.layer_idx).encode())
    for name in sorted(encoders_of(clip)):
        transformer = clip_model(clip, name).transformer
        norms = [(k, v) for k, v in sorted(transformer.state_dict().items()) if "norm" in k]
        vocabulary = transformer.get_input_embeddings().weight[::97]
        for key, tensor in [*norms, ("vocabulary", vocabulary)]:
            digest.update(key.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


# ---- encodings that know their trigger words -------------------------------------------------------------------------------


class Named(Tensor):
    """An encoding [B, N, d] that knows which trigger words can have reached its tokens.

    `named`: trigger word -> [B, N, 1], other than 0 where it can. Conditioning nodes mix, join and cut encodings with a few
    linear operations; the same are applied to `named`. After any other operation the result is a plain tensor.
    """

    named: dict[str, Tensor]
    LINEAR = frozenset("mul add sub div cat concat getitem rmul radd truediv narrow repeat expand clone to cpu contiguous".split())

    @classmethod
    def of(cls, encoding: Tensor, named: dict[str, Tensor]) -> "Named":
        """The encoding with its knowledge."""
        result = encoding.as_subclass(cls)
        result.named = named
        return result

    @classmethod
    def __torch_function__(cls, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
            name = func.__name__.strip("_")
            if name not in cls.LINEAR or not isinstance(result, Tensor) or result.ndim != 3:
                return result
            plain = 1.0 if name in ("mul", "rmul", "div", "truediv") else 0.0
            triggers = {trigger for tensor in _tensors((args, kwargs)) for trigger in getattr(tensor, "named", {})}
            try:
                named = {t: func(*_shadow(args, t, plain), **_shadow(kwargs, t, plain)) for t in triggers}
            except (RuntimeError, IndexError):
                return result
            return Named.of(result, named) if all(v.shape[:2] == result.shape[:2] for v in named.values()) else result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


def _shadow(value: Any, trigger: str, plain: float) -> Any:
    """Arguments of an operation on encodings as those of the same on one trigger's `named`."""
    if isinstance(value, Tensor) and value.ndim == 3:
        named = getattr(value, "named", {})
        if trigger in named:
            return named[trigger]
        return torch.full((*value.shape[:2], 1), plain if not isinstance(value, Named) else 0.0, device=value.device)
    if isinstance(value, list | tuple):
        return type(value)(_shadow(item, trigger, plain) for item in value)
    return {k: _shadow(v, trigger, plain) for k, v in value.items()} if isinstance(value, dict) else value


# ---- a CLIP that knows trigger words -----------------------------------------------------------------------------------------


class _KnowsWords:
    """Mixed into a copy of the host's tokenizer: trigger words enter as the host's own embeddings do.

    `words`: trigger word -> its embedding vectors [n, width].
    """

    words: dict[str, Tensor]

    def tokenize_with_weights(self, text: str, *args: Any, **kwargs: Any) -> list[list[tuple]]:
        for i, trigger in enumerate(self.words):
            text = re.sub(re.escape(trigger), f" {self.embedding_identifier}perfusion-word-{i} ", text, flags=re.IGNORECASE)
        return super().tokenize_with_weights(text, *args, **kwargs)

    def _try_get_embedding(self, embedding_name: str) -> tuple[Tensor | None, str, str]:
        name, _, rest = embedding_name.strip().partition(" ")
        match = re.fullmatch(r"perfusion-word-(\d+)", name)
        if match and int(match[1]) < len(self.words):
            return list(self.words.values())[int(match[1])], name, rest.strip()
        return super()._try_get_embedding(embedding_name)


def tokenizer_with_words(tokenizer: Tokenizer, words: Mapping[str, Mapping[str, Tensor]]) -> Tokenizer:
    """A copy of a CLIP's tokenizer that knows more words: trigger -> encoder's name -> vectors [n, width]."""
    taught = copy.copy(tokenizer)
    for name, part in vars(tokenizer).items():
        if isinstance(part, SDTokenizer):
            knowing = copy.copy(part)
            if not isinstance(part, _KnowsWords):
                knowing.__class__ = type(f"{type(part).__name__}WithWords", (_KnowsWords, type(part)), {})
                knowing.embedding_directory = part.embedding_directory or []
            knowing.words = getattr(part, "words", {}) | {trigger: word[name] for trigger, word in words.items()}
            setattr(taught, name, knowing)
    return taught


def places_of(tokens: Tokens, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """Trigger word -> bool [N], where its vectors stand in a tokenized prompt."""
    found: dict[str, Tensor] = {}
    for part in vars(tokenizer).values():
        if not isinstance(part, _KnowsWords):
            continue
        storages = {vectors.untyped_storage().data_ptr(): trigger for trigger, vectors in part.words.items()}
        for sections in tokens.values():
            row = [token[0] for section in sections for token in section]
            for n, token in enumerate(row):
                trigger = storages.get(token.untyped_storage().data_ptr()) if isinstance(token, Tensor) else None
                if trigger is not None:
                    found.setdefault(trigger, torch.zeros(len(row), dtype=torch.bool))[n] = True
    return found


class ClipWithWords(CLIP):
    """A CLIP that knows the trigger words of `stack`; its encodings are `Named`."""

    stack: Stack = ()

    def clone(self, *args: Any, **kwargs: Any) -> "ClipWithWords":  # noqa: D102
        cloned = super().clone(*args, **kwargs)
        cloned.__class__ = ClipWithWords
        cloned.stack = self.stack
        return cloned

    def encode_from_tokens(self, tokens: Tokens, return_pooled: bool | str = False, return_dict: bool = False) -> Any:  # noqa: D102
        out = super().encode_from_tokens(tokens, return_pooled, return_dict)
        if return_dict:
            return out | {"cond": self._name(out["cond"], tokens)}
        return (self._name(out[0], tokens), *out[1:]) if return_pooled else self._name(out, tokens)

    def encode_from_tokens_scheduled(self, tokens: Tokens, *args: Any, **kwargs: Any) -> list[list]:  # noqa: D102
        return [[self._name(cond, tokens), *rest] for cond, *rest in super().encode_from_tokens_scheduled(tokens, *args, **kwargs)]

    def _name(self, cond: Tensor, tokens: Tokens) -> Tensor:
        """A word reaches its own token and, the encoders being causal, those after it in the same section."""
        if isinstance(cond, Named):
            return cond
        section = len(next(iter(tokens.values()))[0])
        named = {}
        for trigger, places in places_of(tokens, self.tokenizer).items():
            reached = torch.cat([part.cumsum(0) > 0 for part in places.split(section)])[: cond.shape[1]]
            named[trigger] = reached.to(cond.device, torch.float32)[None, :, None].expand(cond.shape[0], -1, 1)
        return Named.of(cond, named)


def clip_with_words(clip: CLIP, stack: Stack) -> ClipWithWords:
    """A clone of a CLIP that also knows the trigger words of the concepts.

    Raises:
        PerfusionError: a concept's word was learned for other text encoders.
    """
    encoders = encoders_of(clip)
    for concept in stack:
        for name, tokenizer in encoders.items():
            if name not in concept.word or concept.word[name].shape[1] != tokenizer.embedding_size:
                raise PerfusionError(
                    f"{concept.trigger} was taught to text encoders {', '.join(concept.word)}; this CLIP has {', '.join(encoders)}."
                )
    cloned = clip.clone()
    cloned.__class__ = ClipWithWords
    cloned.tokenizer = tokenizer_with_words(clip.tokenizer, {concept.trigger: concept.word for concept in stack})
    cloned.stack = combine(getattr(clip, "stack", ()), stack)
    return cloned


# ---- a MODEL with edited projections -----------------------------------------------------------------------------------------


@dataclass
class Applied:
    """What a MODEL carries: the concepts and their edit, on every device that it has been asked for on."""

    stack: Stack
    mode: str
    edits: dict[torch.device, Edit] = field(default_factory=dict)

    def edit(self, device: torch.device) -> Edit:
        """The edit on a device."""
        if device not in self.edits:
            self.edits[device] = edit_of(self.stack, self.mode).to(device)
        return self.edits[device]


@contextlib.contextmanager
def edited(unet: nn.Module, edit: Edit, encoding: Tensor, by: Coefficients, named: Tensor | None) -> Iterator[None]:
    """While it is open, the UNet's cross-attention projections give the edited keys and values.

    The edit adds to whatever the host's own Linear gives, so weight patches, offloading and quantised weights keep working,
    and attention patches that call to_k and to_v themselves meet it as well.
    """

    def coefficients(x: Tensor) -> Coefficients:
        if x is encoding:
            return by
        # An attention patch has put other tokens here: those that it appended were reached by no trigger word.
        if named is None or x.shape[0] != named.shape[0]:
            return edit.coefficients(x)
        missing = x.shape[1] - named.shape[1]
        return edit.coefficients(x, nn.functional.pad(named, (0, 0, 0, max(missing, 0)))[:, : x.shape[1]])

    def hook(layer: str, correction: Callable[[str, Coefficients, Project], Tensor]) -> Callable:
        def add(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            x = args[0]
            corrected = correction(layer, coefficients(x), lambda vectors: module.forward(vectors.to(x.device, x.dtype)))
            return output + corrected.to(output.dtype)

        return add

    handles = []
    try:
        for layer in edit.values:
            attention = unet.get_submodule(layer)
            handles.append(attention.to_k.register_forward_hook(hook(layer, edit.key_correction)))
            handles.append(attention.to_v.register_forward_hook(hook(layer, edit.value_correction)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_edited(
    executor: WrapperExecutor,
    x: Tensor,
    timesteps: Tensor | None = None,
    context: Tensor | None = None,
    y: Tensor | None = None,
    control: dict | None = None,
    transformer_options: dict | None = None,
    **kwargs: Any,
) -> Tensor:
    """Wraps a UNet's forward: with the edit that its options carry."""
    transformer_options = transformer_options if transformer_options is not None else {}
    named = kwargs.pop(NAMED, None)
    edit = transformer_options[KEY].edit(context.device)
    by = edit.coefficients(context, named)
    # Where no gate is open nothing is wrapped at all: such a prompt is the base model's to the last bit.
    around = edited(executor.class_obj, edit, context, by, named) if by.any() else contextlib.nullcontext()
    with around:
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)


def prepare_conds(
    executor: WrapperExecutor, guider: CFGGuider, sigmas: Tensor, extra_args: dict, *args: Any, **kwargs: Any
) -> Tensor:
    """Wraps a sampling run: hands what the encodings know of trigger words to the model, beside them."""
    applied: Applied = extra_args["model_options"]["transformer_options"][KEY]
    triggers = [concept.trigger for concept in applied.stack]
    said: set[str] = set()
    for kind, conds in guider.conds.items():
        prepared = []
        for cond in conds or ():
            cross = cond.get("model_conds", {}).get("c_crossattn")
            if cross is not None:
                known = getattr(cross.cond, "named", {})
                said |= set(known)
                encoding = cross.cond.as_subclass(Tensor)
                blank = torch.zeros(*encoding.shape[:2], 1, device=encoding.device)
                named = torch.cat([known[t].to(encoding.device) if t in known else blank for t in triggers], dim=2)
                mine = {"c_crossattn": CONDCrossAttn(encoding)}
                if applied.mode == EXACT:
                    mine[NAMED] = CONDCrossAttn((named != 0).float())
                cond = cond | {"model_conds": cond["model_conds"] | mine}
            prepared.append(cond)
        guider.conds[kind] = prepared
    for trigger in triggers:
        if trigger not in said:
            log.warning(
                "The concept %s is applied, but no prompt names it: write %s in a prompt whose CLIP comes from Perfusion Apply.",
                trigger,
                trigger,
            )
    return executor(guider, sigmas, extra_args, *args, **kwargs)


def check_fit(concept: Concept, model: ModelPatcher) -> None:
    """Raise PerfusionError unless the concept was taught to a model of this one's family and shape."""
    family, layers = family_of(model), layers_of(model)
    if concept.family != family:
        raise PerfusionError(
            f"{concept.trigger} was taught to a {concept.family} model and this one is {family}; use a {concept.family} checkpoint."
        )
    if {layer: len(o) for layer, o in concept.values.items()} != layers or len(concept.target_input) != width_of(model):
        raise PerfusionError(
            f"{concept.trigger} was taught to a {family} model of another shape, with {len(concept.values)} cross-attention "
            f"layers; this one has {len(layers)}."
        )


def model_with_edit(model: ModelPatcher, stack: Stack, mode: str) -> ModelPatcher:
    """A clone of a MODEL that the concepts are applied to, beside those that it carries already.

    Raises:
        PerfusionError: a concept does not fit the model, two have one trigger word, or the model carries another edit mode.
    """
    for concept in stack:
        check_fit(concept, model)
    carried: Applied | None = model.model_options.get("transformer_options", {}).get(KEY)
    if carried is not None and carried.mode != mode:
        raise PerfusionError(f"This model carries concepts in the edit mode {carried.mode!r}; apply further ones in the same mode.")
    applied = Applied(combine(carried.stack if carried else (), stack), mode)
    applied.edit(torch.device("cpu"))
    cloned = model.clone()
    cloned.model_options["transformer_options"] = cloned.model_options.get("transformer_options", {}) | {KEY: applied}
    for where, wrapper in ((WrappersMP.DIFFUSION_MODEL, run_edited), (WrappersMP.SAMPLER_SAMPLE, prepare_conds)):
        cloned.remove_wrappers_with_key(where, KEY)
        cloned.add_wrapper_with_key(where, KEY, wrapper)
    return cloned


# ---- text encodings in bulk, for the covariance --------------------------------------------------------------------------------


def load(*patchers: ModelPatcher) -> None:
    """Have models on their device, whole."""
    comfy.model_management.load_models_gpu(list(patchers), force_full_load=True)


def check_interrupt() -> None:
    """Raise the host's own exception where the user has asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def prepare_clip(clip: CLIP) -> None:
    """Load a CLIP and set its options, as its own encoding does."""
    load(clip.patcher)
    clip.cond_stage_model.reset_clip_options()
    if clip.layer_idx is not None:
        clip.cond_stage_model.set_clip_options({"layer": clip.layer_idx})
    clip.cond_stage_model.set_clip_options({"execution_device": clip.patcher.load_device})


def encoding_width(clip: CLIP) -> int:
    """Width d of the encodings that a CLIP gives."""
    return sum(tokenizer.embedding_size for tokenizer in encoders_of(clip).values())


def sections_of(clip: CLIP, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> dict[str, list]:
    """Several short prompts tokenized as the sections of one, which the host then encodes as a batch.

    Raises:
        PerfusionError: a prompt is longer than one section.
    """
    joined: dict[str, list] = {}
    for text in texts:
        for name, sections in (tokenizer or clip.tokenizer).tokenize_with_weights(text).items():
            if len(sections) != 1:
                raise PerfusionError(
                    f"A caption or superclass is too long for one prompt of {len(sections[0])} tokens: {text[:60]!r}…"
                )
            joined.setdefault(name, []).append([(token[0], 1.0) for token in sections[0]])
    return joined


def contents(clip: CLIP, texts: Sequence[str], precision: torch.dtype) -> Tensor:
    """Encodings [tokens, d] of the captions' own tokens, from the start to the first end token; padding is left out."""
    tokens = sections_of(clip, texts)
    device = clip.patcher.load_device
    with torch.autocast(device.type, precision, enabled=precision != torch.float32):
        out = clip.cond_stage_model.encode_token_weights(tokens)[0]
    encodings = out.reshape(len(texts), -1, out.shape[-1])
    rows = [[token for token, _ in section] for section in next(iter(tokens.values()))]
    ends = next(iter(encoders_of(clip).values())).end_token
    return torch.cat([encoding[: row.index(ends) + 1] for encoding, row in zip(encodings, rows, strict=True)])


# ---- a checkpoint that can be taught -----------------------------------------------------------------------------------------


def best_precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32."""
    if device.type == "cpu":
        native = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if comfy.model_management.should_use_bf16(device) else torch.float32


def alias(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a module as tensors that share their memory but may take part in a backward pass.

    A checkpoint's weights are inference tensors, which autograd refuses to keep.
    """
    shared = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        normal = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        shared[name] = normal.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
    return shared


class _Method(nn.Module):
    """A module's method as a forward, since `functional_call` calls no other."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.module, self.method)(*args, **kwargs)


@contextlib.contextmanager
def out_of_place(module: nn.Module) -> Iterator[None]:
    """While it is open, the host's CLIP layers add to a new tensor: in place, no backward passes through them."""

    def forward(self: nn.Module, x: Tensor, mask: Tensor | None = None, optimized_attention: Callable | None = None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
        return x + self.mlp(self.layer_norm2(x))

    layers = [layer for layer in module.modules() if isinstance(layer, comfy.clip_model.CLIPLayer)]
    try:
        for layer in layers:
            layer.forward = types.MethodType(forward, layer)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


class Student:
    """The core's `Base` over a MODEL and a CLIP of the host. Use it outside inference mode, with `learning`."""

    WORD = "<perfusion-student>"

    def __init__(self, model: ModelPatcher, clip: CLIP, precision: torch.dtype, min_snr: float = 0.0) -> None:
        """Load both; their weights are shared, never copied or changed.

        With `min_snr` γ above 0 the error at a time of signal-to-noise ratio s counts as min(s, γ) times the error of the
        latents that it stands for (Min-SNR-γ, arXiv 2303.09556); with 0 all times count as the model's own objective has it.
        """
        self.model = model.get_non_dynamic_delegate() if model.is_dynamic() else model
        self.clip, self.precision, self.min_snr = clip, precision, min_snr
        self.device = self.model.load_device
        load(self.model, clip.patcher)
        prepare_clip(clip)
        self.unet = self.model.model.diffusion_model
        self.layers = layers_of(self.model)
        self.unet_weights = alias(self.unet)
        self.encoder = _Method(clip.cond_stage_model, "encode_token_weights")
        self.encoder_weights = alias(self.encoder)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def embed(self, text: str) -> dict[str, Tensor]:
        """See `Base.embed`."""
        tokens = sections_of(self.clip, [text])
        vectors = {}
        for name, tokenizer in encoders_of(self.clip).items():
            (row,) = tokens[name.removeprefix("clip_")]
            ids = [token for token, _ in row][1 : [token for token, _ in row].index(tokenizer.end_token)]
            table = clip_model(self.clip, name).transformer.get_input_embeddings().weight
            vectors[name] = table[torch.tensor(ids, device=table.device)].detach().float().to(self.device)
        return vectors

    def encode(self, templates: Sequence[str], word: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See `Base.encode`."""
        tokenizer = tokenizer_with_words(self.clip.tokenizer, {self.WORD: word})
        tokens = sections_of(self.clip, [t.format(self.WORD) for t in templates], tokenizer)
        stands = places_of(tokens, tokenizer)[self.WORD].reshape(len(templates), -1)
        places = stands.shape[1] - 1 - stands.int().flip(1).argmax(1)
        with self._autocast(), out_of_place(self.encoder):
            out = torch.func.functional_call(self.encoder, self.encoder_weights, (tokens,))[0]
        return out.to(self.device, torch.float32).reshape(len(templates), -1, out.shape[-1]), places

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Base.project`."""
        found = {}
        for layer in self.layers:
            weights = [self.unet_weights[f"{layer}.{which}.weight"] for which in ("to_k", "to_v")]
            found[layer] = tuple(vectors.float() @ weight.float().T for weight in weights)
        return found

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encodings: Tensor, edit: Edit) -> tuple[Tensor, Tensor]:
        """See `Base.objective`. The target is the output that the host would have turned into the latents themselves."""
        sampling = self.model.model.model_sampling
        sigmas = sampling.sigmas.to(self.device)
        sigma = sigmas[(time * len(sigmas)).long()]
        x = sampling.noise_scaling(sigma, noise, latents)
        by = edit.coefficients(encodings)
        with edited(self.unet, edit, encodings, by, None), self._autocast():
            inputs = (sampling.calculate_input(sigma, x), sampling.timestep(sigma).float())
            options = {"context": encodings, "transformer_options": {}}
            prediction = torch.func.functional_call(self.unet, self.unet_weights, inputs, options)
        nothing = sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        slope = nothing - sampling.calculate_denoised(sigma, torch.ones_like(x), x)
        target = (nothing - latents) / slope
        if self.min_snr > 0:
            scale = slope.abs() * (1 / sigma[:, None, None, None].square()).clamp(max=self.min_snr).sqrt()
            prediction, target = scale * prediction, scale * target
        return prediction, target


@contextlib.contextmanager
def learning() -> Iterator[None]:
    """Nodes run in inference mode; while this is open, gradients are recorded where they are asked for."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def latents_of(vae: VAE, model: ModelPatcher, pixels: Tensor) -> Tensor:
    """Latents [B, c, h, w] as the model sees them, of pictures [B, H, W, 3] in 0…1."""
    encoded = vae.encode(pixels[..., :3])
    return model.model.process_latent_in(encoded.to(torch.float32))


def draw(model: ModelPatcher, clip: CLIP, vae: VAE, prompt: str, size: int, seed: int, steps: int = 20, cfg: float = 6.0) -> Tensor:
    """One picture [1, size, size, 3] in 0…1 of a prompt, by the host's sampler."""
    with torch.inference_mode():
        positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt, ""))
        scale = vae.spacial_compression_encode()
        latent = torch.zeros(1, model.model.latent_format.latent_channels, size // scale, size // scale)
        noise = comfy.sample.prepare_noise(latent, seed)
        samples = comfy.sample.sample(
            model, noise, steps, cfg, "ddim", "normal", positive, negative, latent, disable_pbar=True, seed=seed
        )
        return vae.decode(samples).clamp(0, 1)
