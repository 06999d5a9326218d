"""One call of a model with concepts applied."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ....perfusion_core.gated_edit import EXACT
from .attention_control import AttentionControl, Injection, Watch
from .named_tokens import influenced_tokens
from .perfusion_state import EXTRA_MODEL_INPUTS, KEY, OVERRIDE, PerfusionState
from .projection_hooks import replace_forward
from .regions import regions_of


@dataclass(frozen=True)
class Call:
    """One call of a model's forward, its arguments by name.

    Attributes:
        executor: the host's executor of what is wrapped.
        names: the positional arguments, as far as they were given as such.
        given: all arguments, without `transformer_options`.
    """

    executor: WrapperExecutor
    names: tuple[str, ...]
    given: dict[str, Any]

    @classmethod
    def of(cls, executor: WrapperExecutor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple["Call", dict]:
        """Return a call and its `transformer_options`, which carry the Perfusion state and thus the model's family."""
        options = next(each for each in (*args, *kwargs.values()) if isinstance(each, dict) and KEY in each)
        names = options[KEY].family.inputs[: len(args)]
        given = dict(zip(names, args, strict=True)) | kwargs
        del given["transformer_options"]
        return cls(executor, names, given), options

    def replaced(self, **given: Any) -> "Call":
        """Return the call with some of its arguments replaced."""
        return replace(self, given=self.given | given)

    def run(self, options: dict) -> Tensor:
        """Call the model."""
        given = self.given | {"transformer_options": options}
        args = [given.pop(name) for name in self.names]
        return self.executor(*args, **given)


def run_edited(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
    """Wrap a model's forward: run it with the concepts, recorder and layout that `transformer_options` carry."""
    call, options = Call.of(executor, args, kwargs)
    applied: PerfusionState = options[KEY]
    applied.report.calls += 1
    beside = {name: call.given.pop(f"{KEY}_{name}", None) for name in EXTRA_MODEL_INPUTS}
    x, context = call.given["x"], call.given.get("context")
    if applied.mode == EXACT and applied.stack and beside["named"] is None:
        # The host's dual-model guider prepares the negative prompt by itself, and wrappers of other packs drop what they do not
        # know: then there are no additional inputs.
        edit, read = applied.everywhere(context.device), applied.family.read(executor.class_obj, context.as_subclass(Tensor))
        beside["named"] = influenced_tokens(context, edit, applied.triggers, read, applied.family.causal)
        context = context.as_subclass(Tensor)
    where, columns = beside.pop("where"), beside.pop("columns")
    positives = applied.positive_places(options)
    inputs = {"x": x, "timesteps": call.given.get("timesteps"), "context": context, "y": call.given.get("y")} | beside

    def maps_of(x: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        first, kinds = positives[0], options["cond_or_uncond"]
        count = len(kinds)
        rows = slice(first * len(x), (first + 1) * len(x))
        # With the concepts that the first image was made with.
        uuids = options.get("uuids", [])[first : first + 1]
        alone = options | {"cond_or_uncond": kinds[first : first + 1], "uuids": uuids, KEY: applied.layout.run.state}
        own = {"x", "timesteps", "context", "y"}
        mine = {name: value if name in own else _rows(value, rows, count * len(x)) for name, value in call.given.items()}
        theirs = {"x": x, "timesteps": times, **given}
        call_unet(replace(call, given=mine), theirs, alone, lambda layer, maps, _: seen.update({layer: maps}))
        return seen

    watch = injection = None
    if applied.recorder is not None and where is not None:
        applied.recorder.record_inputs(options, where, inputs)
        watch = lambda _, maps, shape: applied.recorder.record_maps(options, maps, shape)  # noqa: E731
    if applied.layout is not None and columns is not None:
        injection = applied.layout.injection(options, x, columns, positives, maps_of)
    return call_unet(call, inputs, options, watch, injection)


def ask_wrappers(executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Tensor:
    """Wrap the application of a model whose forward does not call wrappers: make it call them."""
    unet = executor.class_obj.diffusion_model
    plain = unet.forward

    def forward(*given: Any, transformer_options: dict, **more: Any) -> Tensor:
        wrappers = get_all_wrappers(WrappersMP.DIFFUSION_MODEL, transformer_options)
        wrapped = WrapperExecutor.new_class_executor(plain, unet, wrappers)
        return wrapped.execute(*given, transformer_options=transformer_options, **more)

    with replace_forward(unet, forward):
        return executor(*args, **kwargs)


def call_unet(
    call: Call,
    inputs: Mapping[str, Tensor | None],
    options: dict,
    watch: Watch | None = None,
    injection: Injection | None = None,
) -> Tensor:
    """Run the model with the concepts that its options carry; `inputs` take precedence over the call's own arguments."""
    applied: PerfusionState = options[KEY]
    unet, family = call.executor.class_obj, applied.family
    x, projections = inputs["x"], applied.projections(unet, options, inputs)
    attention = regions = None
    if len(projections.edits) > 1:
        regions = regions_of(inputs["regions"], inputs["stands"])
    if watch is not None or regions is not None or injection is not None:
        attention = AttentionControl(tuple(x.shape[-2:]), watch, regions, injection)
    projections.observer, projections.comparer = attention, applied.comparer
    projections.replaced = replaced_layers(options, applied.layers)
    # Unless the model adapts it, layers read the encoding that is cached.
    context = inputs["context"] if family.adapts_tokens else projections.encoding
    told = {"x": x, "timesteps": inputs["timesteps"], "context": context, "y": inputs.get("y")}
    call = call.replaced(**{name: value for name, value in told.items() if name in call.given})
    # If nothing changes, nothing is wrapped: the output for such a prompt is bit for bit that of the base model.
    if attention is None and applied.comparer is None and not projections.change and not reads_other_encodings(options):
        return call.run(options)
    with contextlib.ExitStack() as opened:
        opened.enter_context(projections.within(unet, family, applied.layers))
        if attention is not None:
            opened.enter_context(attention.within(unet, applied.layers))
            options = options | {OVERRIDE: attention.override(options.get(OVERRIDE))}
        output = call.run(options)
    if attention is not None:
        applied.report.missed.update(attention.missed)
    return output


def replaced_layers(options: Mapping[str, Any], layers: Sequence[str]) -> set[str]:
    """Return the layers of a Stable Diffusion UNet whose attention a patch computes."""
    patched = options.get("patches_replace", {}).get("attn2", {})
    return {layer for layer in layers if patched and not {block_of(layer), block_of(layer)[:2]}.isdisjoint(patched)}


def block_of(layer: str) -> tuple[str | int, ...]:
    """Return the host's key of a UNet's layer in `patches_replace`: its part, the block's number, and that of its transformer."""
    found = re.match(r"(input|middle|output)_blocks?\.(\d+)\..*transformer_blocks\.(\d+)\.", layer)
    if found is None:
        return (layer,)
    part, number, inner = found.groups()
    return part, 0 if part == "middle" else int(number), int(inner)


def reads_other_encodings(options: Mapping[str, Any]) -> bool:
    """Whether patches may have cross-attention read other encodings than the UNet is called with."""
    return bool(options.get("patches", {}).get("attn2_patch") or options.get("patches_replace", {}).get("attn2"))


def _rows(value: Any, rows: slice, count: int) -> Any:
    """Return `value` with only these rows of all tensors in it that have `count` rows."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {key: _rows(item, rows, count) for key, item in value.items()}
    return [_rows(item, rows, count) for item in value] if isinstance(value, list) else value
