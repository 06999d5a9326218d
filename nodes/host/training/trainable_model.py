"""A loaded checkpoint as the core's `Base`: concepts can be trained on it, and its weights are not changed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import CLIP
from torch import Tensor

from ....perfusion_core import PerfusionError
from ....perfusion_core.gated_edit import Edit
from ....perfusion_core.training.base_model import Encoded, processor_has_bfloat16
from ..model.families import clip_model, encoders_of, fine_layers_of, kind_of, layers_of, unet_config_of
from ..model.loading import check_reloadable, load, non_dynamic_clip, non_dynamic_model, project, unload_copies
from ..text.encoding import Method, embed, prepare_clip, sections_of
from ..text.encoding_notes import END
from ..text.trigger_words import Tokenizer, prompt_tokens, token_labels, tokenizer_with_words, trigger_masks
from ..unet.edited_projections import Projections
from .activation_memory import MemoryNeed, activation_checkpointing, count_saved_bytes
from .differentiable import (
    alias,
    attention_with_backward,
    differentiable_encoder,
    kernels_with_backward,
    linears,
    marked_as_training,
    norms_with_own_input,
    weights_cast_to_input,
)


def best_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16 if the device computes faster in it, else float32."""
    fast = processor_has_bfloat16() if device.type == "cpu" else comfy.model_management.should_use_bf16(device)
    return torch.bfloat16 if fast else torch.float32


def check_trainable(model: ModelPatcher, clip: CLIP) -> None:
    """Raise PerfusionError if a model or a text encoder has weights that only its own loader can compute with.

    GGUF files and some others are loaded as tensors of a class of their own, or as integers. So are models refused whose forward
    needs more than a prompt.
    """
    if unet_config_of(model).get("model_type") == "vace":
        raise PerfusionError(
            "This model (VACE) needs a control video, which training cannot provide; train on Wan's text-to-video model of the "
            "same size instead; the concept will work with this one too."
        )
    for what, patcher in (("model", model), ("text encoder", clip.patcher)):
        check_plain(what, patcher)
        for name, weight in patcher.model.named_parameters():
            kind = type(weight.data).__name__
            if kind != "Tensor" or not weight.is_floating_point():
                raise PerfusionError(
                    f"Training cannot read this {what}: its weight {name} is a {kind} of {weight.dtype}, as in GGUF and "
                    "scaled fp8 files. Train on the same weights in full or half precision; the concept will work with these too."
                )


def check_plain(what: str, patcher: ModelPatcher) -> None:
    """Raise PerfusionError if a model or a text encoder, `what`, has a LoRA that is computed beside its weights."""
    if getattr(patcher, "injections", None):
        raise PerfusionError(
            f"This {what} has a LoRA in bypass mode, which neither training nor measuring can see; load the LoRA with Load LoRA "
            "instead."
        )


@contextlib.contextmanager
def pooled(clip: CLIP, name: str) -> Iterator[list[Tensor]]:
    """Collect the pooled outputs [P, width] of a CLIP's encoder `name` in the yielded list; it stays empty if `name` is empty."""
    heard: list[Tensor] = []
    if not name:
        yield heard
        return
    handle = clip_model(clip, name).register_forward_hook(lambda module, args, output: heard.append(output[1]))
    try:
        yield heard
    finally:
        handle.remove()


EVERYTHING = 1e30
"""Bytes that no device has."""


class TrainableModel:
    """The core's `Base` over a MODEL and a CLIP of the host. Use it outside of inference mode, within `gradients_enabled`.

    Its weights are the host's own, in the host's memory: the host must not move them while this object holds them. Call
    `release_weights` before sampling with the same MODEL, and `close` in the end.

    If `twice` is set, parts of the model are recomputed in the backward pass, which takes a third longer and a fraction of the
    memory.
    """

    WORD = "<perfusion-word>"
    twice = False
    room = 0.0
    """Bytes of the device's memory that the host frees of other models whenever this one is loaded."""

    def __init__(self, model: ModelPatcher, clip: CLIP, precision: torch.dtype, min_snr: float = 0.0, superclass: str = "") -> None:
        """Load both models. Their weights are shared and never changed; only those of the text encoder may be copied.

        The ids of `superclass` stand for the word where a model reads ids beside an encoding.

        With `min_snr` γ above 0, the squared error at a time of signal-to-noise ratio s is min(s, γ) times the squared error of
        the predicted latents (Min-SNR-γ, arXiv 2303.09556); with 0, times are weighted as in the model's own objective.
        """
        check_reloadable(clip.patcher, "text encoder")  # before the model is copied
        self.model = non_dynamic_model(model)
        self.clip = non_dynamic_clip(clip)
        pairs = (self.model, model), (self.clip.patcher, clip.patcher)
        self.copied = [(own, given) for own, given in pairs if own is not given]
        self.precision, self.min_snr, self.superclass = precision, min_snr, superclass
        self.device, self.encoder_device = self.model.load_device, self.clip.patcher.load_device
        same = self.encoder_device.type == self.device.type
        self.encoder_precision = precision if same else best_precision(self.encoder_device)
        self.half = torch.float16 in (self.precision, self.encoder_precision)
        self.layers = layers_of(self.model)
        self.family = kind_of(self.model)
        self.encoder = Method(self.clip.cond_stage_model, "encode_token_weights")
        self.release_weights()
        try:
            self._hold()
        except BaseException:
            self.close()
            raise

    def _hold(self) -> None:
        """Load both models onto the device and hold their weights, if they are not held already."""
        if self.unet_weights:
            return
        load(self.model, self.clip.patcher, room=self.room)
        self.unet = self.model.model.diffusion_model
        prepare_clip(self.clip)
        self.unet_weights = alias(self.unet)
        self.linears = linears(self.encoder)
        self.encoder_weights = alias(self.encoder)
        # Cast to the precision of training once instead of at each step; a backward pass would save the cast weights in any case.
        for name in self.linears:
            for weight in (f"{name}.weight", f"{name}.bias"):
                if weight in self.encoder_weights:
                    self.encoder_weights[weight] = self.encoder_weights[weight].to(self.encoder_precision)

    def release_weights(self) -> None:
        """Hold no weights, so that the host may move them; whatever computes next loads and holds them again."""
        self.unet_weights, self.encoder_weights, self.linears = {}, {}, {}

    def close(self) -> None:
        """Free the memory of the models' copies, if any were made; this object is empty afterwards."""
        self.release_weights()
        unload_copies(self.copied)
        vars(self).clear()

    def unload_others(self) -> bool:
        """Let the host unload all other models from the device; return whether there were any. A CPU's memory is not managed."""
        own = {id(self.model.model), id(self.clip.patcher.model)}
        loaded = [each for each in comfy.model_management.current_loaded_models if each.device == self.device and each.model]
        others = [each for each in loaded if id(each.model.model) not in own and each.model_loaded_memory() > 0]
        if self.device.type == "cpu" or not others:
            return False
        self.room = EVERYTHING
        self.release_weights()
        self._hold()
        return True

    def embed(self, text: str) -> dict[str, Tensor]:
        """See `Base.embed`."""
        return {name: vectors.to(self.device) for name, vectors in embed(self.clip, text).items()}

    def encode(self, templates: Sequence[str], word: Mapping[str, Tensor]) -> Encoded:
        """See `Base.encode`."""
        self._hold()
        tokenizer = tokenizer_with_words(self.clip, {self.WORD: word}, {self.WORD: self.superclass})
        tokens = sections_of(self.clip, [t.format(self.WORD) for t in templates], tokenizer)
        if self.family.ids:
            return self._encode_with_ids(tokens, tokenizer)
        lengths = [len(section) for section in next(iter(tokens.values()))]
        stands = padded(trigger_masks(tokens, tokenizer)[self.WORD], lengths)
        places = stands.shape[1] - 1 - stands.int().flip(1).argmax(1)
        unpadded = None if self.family.causal else padded(prompt_tokens(tokens, tokenizer), lengths).to(self.device)
        whole = max(lengths)
        if unpadded is not None and self._zeroes_padding():
            # Padding takes no part in the other tokens' encodings; without it, hundreds of tokens less are computed.
            longest = int(unpadded.sum(1).max())
            tokens = {name: [section[:longest] for section in sections] for name, sections in tokens.items()}
            lengths = [min(length, longest) for length in lengths]
        with contextlib.ExitStack() as opened:
            opened.enter_context(self._encoding())
            heard = opened.enter_context(pooled(self.clip, self.family.pooled))
            # The host encodes prompts together only if they are of one length.
            parts = [tokens] if len(set(lengths)) == 1 else [{name: [each] for name, each in one} for one in apart(tokens)]
            out = torch.cat([torch.func.functional_call(self.encoder, self.encoder_weights, (each,))[0] for each in parts], 1)
        encodings = padded(out.to(self.device, torch.float32)[0], lengths)
        encodings = self._read(torch.nn.functional.pad(encodings, (0, 0, 0, whole - encodings.shape[1])))
        return Encoded(encodings, places, heard[0].to(encodings) if heard else None, unpadded)

    def _zeroes_padding(self) -> bool:
        """Whether all text encoders mask padding and return zeros for it."""
        encoders = [clip_model(self.clip, name) for name in encoders_of(self.clip)]
        return all(encoder.enable_attention_masks and encoder.zero_out_masked for encoder in encoders)

    @contextlib.contextmanager
    def _encoding(self) -> Iterator[None]:
        """Let the text encoder compute in the precision of training, and be differentiable, within the context."""
        with (
            computing(self.encoder_device, self.encoder_precision),
            differentiable_encoder(self.encoder, self.linears.values()),
        ):
            yield

    def _encode_with_ids(self, tokens: Mapping[str, list], tokenizer: Tokenizer) -> Encoded:
        """Return the result of `encode` for a model that reads ids: the word is where the superclass's last id is.

        The host's encoder, which pads nothing, and its adapter take one prompt at a time.
        """
        found, words, adapter = [], [], Method(self.unet, "preprocess_text_embeds")
        weights = {f"module.{key}": weight for key, weight in self._adapter_weights().items()}
        for each in apart(tokens):
            one = {name: [section] for name, section in each}
            with self._encoding():
                encoding, _, beside = torch.func.functional_call(self.encoder, self.encoder_weights, (one,))
            ids = beside[f"{self.family.ids}_ids"][None].to(self.device)
            with self._computing():
                given = (encoding.to(self.device, torch.float32), ids)
                found.append(torch.func.functional_call(adapter, weights, given)[0].float())
            words.append(token_labels(one, tokenizer, self.family.ids))
        places = torch.tensor([len(said) - 1 - said[::-1].index(self.WORD) for said in words])
        inside = torch.nn.utils.rnn.pad_sequence([torch.arange(len(said)) <= said.index(END) for said in words], batch_first=True)
        encodings = torch.nn.utils.rnn.pad_sequence(found, batch_first=True)
        unpadded = torch.nn.functional.pad(inside, (0, encodings.shape[1] - inside.shape[1])).to(self.device)
        return Encoded(encodings, places, None, unpadded)

    def _adapter_weights(self) -> dict[str, Tensor]:
        """Return the weights of the adapter by their names in the model."""
        return {key: weight for key, weight in self.unet_weights.items() if key.startswith(f"{self.family.adapter}.")}

    def _read(self, encodings: Tensor) -> Tensor:
        """Return what the layers read of text encodings, float32 [P, N, d]; differentiable."""
        if not self.family.adapter:
            return encodings
        name = f"{self.family.adapter}."
        own = {key.removeprefix(name): weight for key, weight in self._adapter_weights().items()}
        with self._computing():
            return torch.func.functional_call(self.unet.get_submodule(self.family.adapter), own, (encodings,)).float()

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Make the model compute in the precision of training within the context."""
        wide = weights_cast_to_input(self.unet) if self.precision == torch.float32 else contextlib.nullcontext()
        norms = norms_with_own_input() if self.family.in_place else contextlib.nullcontext()
        with computing(self.device, self.precision), kernels_with_backward(), norms, wide:
            yield

    def project(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Base.project`."""
        self._hold()
        return project(self.unet_weights, self.family, self.layers, vectors)

    def fine_layers(self) -> set[str]:
        """See `Base.fine_layers`."""
        return fine_layers_of(self.model)

    def objective(self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None) -> tuple[Tensor, Tensor]:
        """See `Base.objective`. The target is the model's output from which the host would compute exactly the original latents."""
        if self.family.padded:
            return self._objective(latents, noise, time, encoded, edit)
        # Layers would read the padding of shorter prompts, so only prompts of the same length are computed together.
        lengths, found, order = encoded.unpadded.sum(1), [], []
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            given = encoded.of_prompts(rows).shortened(length)
            found.append(self._objective(latents[rows], noise[rows], time[rows], given, edit))
            order.append(rows)
        back = torch.cat(order).argsort()
        prediction, target = (torch.cat(each)[back] for each in zip(*found, strict=True))
        return prediction, target

    def _objective(
        self, latents: Tensor, noise: Tensor, time: Tensor, encoded: Encoded, edit: Edit | None
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `objective` for prompts of one length."""
        self._hold()
        sampling = self.model.model.model_sampling
        sigmas = sampling.sigmas.to(self.device)
        sigma = sigmas[(time * len(sigmas)).long()]
        x = sampling.noise_scaling(sigma, noise, latents)
        named = None if encoded.unpadded is None else encoded.unpadded[..., None].float()
        projections = Projections([edit] if edit is not None else [], encoded.tokens, named)

        @contextlib.contextmanager
        def edited() -> Iterator[None]:
            with self._computing(), projections.within(self.unet, self.family, self.layers):
                yield

        with contextlib.ExitStack() as opened:
            opened.enter_context(edited())
            if self.twice:
                opened.enter_context(activation_checkpointing(self.unet, self.unet_weights, edited))
            inputs = (self._with_blank_channels(sampling.calculate_input(sigma, x)), sampling.timestep(sigma).float())
            chosen = {"optimized_attention_override": attention_with_backward}
            options = {"context": encoded.tokens, "transformer_options": chosen, **self._conditions(encoded, latents)}
            prediction = torch.func.functional_call(self.unet, self.unet_weights, inputs, options)
        nothing = sampling.calculate_denoised(sigma, torch.zeros_like(x), x)
        slope = nothing - sampling.calculate_denoised(sigma, torch.ones_like(x), x)
        target = (nothing - latents) / slope
        if self.min_snr > 0:
            one, zero = torch.ones_like(latents), torch.zeros_like(latents)
            # Shares of picture and noise at a level: 1 and sigma in the diffusion of UNets, 1 - sigma and sigma in a flow.
            picture, grain = sampling.noise_scaling(sigma, zero, one), sampling.noise_scaling(sigma, one, zero)
            scale = slope.abs() * (picture.square() / grain.square()).clamp(max=self.min_snr).sqrt()
            prediction, target = scale * prediction, scale * target
        return prediction, target

    def _with_blank_channels(self, x: Tensor) -> Tensor:
        """Return the UNet's input with the further channels that inpainting and editing models read, as for an empty picture."""
        blank = self.model.model.concat_cond(noise=x, latent_image=torch.zeros_like(x), device=x.device)
        return x if blank is None else torch.cat([x, blank.to(x)], 1)

    def _conditions(self, encoded: Encoded, latents: Tensor) -> dict[str, Tensor]:
        """Return the model's additional inputs.

        If it reads a pooled output: that output and the size of the images, embedded. If it reads a mask of the tokens: the tokens
        that are not padding.
        """
        if "attention_mask" in self.family.inputs:
            return {"attention_mask": encoded.unpadded.long()}
        if encoded.pooled is None:
            return {}
        height, width = (side * self.model.model.latent_format.spacial_downscale_ratio for side in latents.shape[-2:])
        given = {"pooled_output": encoded.pooled, "height": height, "width": width, "device": self.device}
        return {"y": self.model.model.encode_adm(**given).to(self.device)}

    def bytes(self) -> int:
        """Return the bytes that the model and its text encoder occupy, copies of the encoder's weights included."""
        self._hold()
        own = {tensor.untyped_storage().data_ptr() for tensor in self.encoder.state_dict().values()}
        copied = sum(each.nbytes for each in self.encoder_weights.values() if each.untyped_storage().data_ptr() not in own)
        return self.model.model_size() + self.clip.patcher.model_size() + copied

    def need(self, word: Mapping[str, Tensor], templates: Sequence[str], step: Callable[[], object]) -> MemoryNeed:
        """Return the memory that `step`, which calls `objective` for one image, would save for its backward pass; none can follow.

        It includes the memory that prompts with this word would save in the text encoder, which encodes all of a step's at once,
        however many images are computed at a time.
        """
        self._hold()
        learned = {name: vectors.clone().requires_grad_() for name, vectors in word.items()}
        adapter = self._adapter_weights() if self.family.adapter else {}
        with count_saved_bytes(self.encoder, {**self.encoder_weights, **adapter}) as said:
            self.encode(templates, learned)
        with count_saved_bytes(self.unet, self.unet_weights) as need:
            step()
        need.outside.fixed += said.outside.of(1)
        return need


def apart(tokens: Mapping[str, list]) -> Iterator[Iterator[tuple[str, list]]]:
    """Yield the prompts of a tokenized batch one by one, as pairs of an encoder's name and its section."""
    for sections in zip(*tokens.values(), strict=True):
        yield zip(tokens, sections, strict=True)


def padded(joined: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return prompts of these lengths, joined in a tensor [sum of lengths, …], as [P, longest, …]; what is missing is 0."""
    if len(set(lengths)) == 1:
        return joined.reshape(len(lengths), lengths[0], *joined.shape[1:])
    return torch.nn.utils.rnn.pad_sequence(joined.split(list(lengths)), batch_first=True)


@contextlib.contextmanager
def computing(device: torch.device, precision: torch.dtype) -> Iterator[None]:
    """Compute in this precision on a device within the context, and tell the host that gradients are needed."""
    with marked_as_training(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
        yield


@contextlib.contextmanager
def gradients_enabled() -> Iterator[None]:
    """Leave inference mode, in which nodes run, within the context and record the gradients that are requested."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
