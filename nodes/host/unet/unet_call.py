"""One call of a UNet with concepts applied."""

import contextlib
from collections.abc import Mapping
from typing import Any

from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from ....perfusion_core.gated_edit import EXACT
from .attention_control import AttentionControl, Injection, Watch
from .attention_recorder import POSITIVE
from .named_tokens import influenced_tokens
from .perfusion_state import EXTRA_MODEL_INPUTS, KEY, OVERRIDE, PerfusionState
from .regions import regions_of


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
    """Wrap a UNet's forward: run it with the concepts, recorder and layout that `transformer_options` carry."""
    options = transformer_options if transformer_options is not None else {}
    applied: PerfusionState = options[KEY]
    applied.report.calls += 1
    beside = {name: kwargs.pop(f"{KEY}_{name}", None) for name in EXTRA_MODEL_INPUTS}
    if applied.mode == EXACT and applied.stack and beside["named"] is None:
        # The host's dual-model guider prepares the negative prompt by itself, and wrappers of other packs drop what they do not
        # know: then there are no additional inputs.
        beside["named"] = influenced_tokens(context, applied.everywhere(context.device), applied.triggers)
        context = context.as_subclass(Tensor)
    where, columns = beside.pop("where"), beside.pop("columns")
    inputs = {"x": x, "timesteps": timesteps, "context": context, "y": y} | beside

    def maps_of(x: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        first, count = options["cond_or_uncond"].index(POSITIVE), len(options["cond_or_uncond"])
        rows = slice(first * len(x), (first + 1) * len(x))
        alone = options | {"cond_or_uncond": [POSITIVE], "uuids": options.get("uuids", [])[first : first + 1]}
        mine = [_rows(value, rows, count * len(x)) for value in (control, kwargs)]
        call_unet(executor, {"x": x, "timesteps": times, **given}, alone, *mine, lambda layer, maps, _: seen.update({layer: maps}))
        return seen

    watch = injection = None
    if applied.recorder is not None and where is not None:
        applied.recorder.record_inputs(options, where, inputs)
        watch = lambda _, maps, shape: applied.recorder.record_maps(options, maps, shape)  # noqa: E731
    if applied.layout is not None and columns is not None:
        injection = applied.layout.injection(options, x, columns, maps_of)
    return call_unet(executor, inputs, options, control, kwargs, watch, injection)


def call_unet(
    executor: WrapperExecutor,
    inputs: Mapping[str, Tensor | None],
    options: dict,
    control: dict | None,
    kwargs: dict,
    watch: Watch | None = None,
    injection: Injection | None = None,
) -> Tensor:
    """Run the UNet with the concepts that its options carry."""
    applied: PerfusionState = options[KEY]
    x, projections = inputs["x"], applied.projections(options, inputs)
    attention = regions = None
    if len(projections.edits) > 1:
        regions = regions_of(inputs["regions"], inputs["stands"])
    if watch is not None or regions is not None or injection is not None:
        attention = AttentionControl(tuple(x.shape[-2:]), watch, regions, injection)
    projections.observer, projections.comparer = attention, applied.comparer
    given = (x, inputs["timesteps"], projections.encoding, inputs.get("y"), control)
    # If nothing changes, nothing is wrapped: the output for such a prompt is bit for bit that of the base model.
    if attention is None and applied.comparer is None and not projections.change and not reads_other_encodings(options):
        return executor(*given, options, **kwargs)
    unet = executor.class_obj
    with contextlib.ExitStack() as opened:
        opened.enter_context(projections.within(unet, applied.layers))
        if attention is not None:
            opened.enter_context(attention.within(unet, applied.layers))
            options = options | {OVERRIDE: attention.override(options.get(OVERRIDE))}
        return executor(*given, options, **kwargs)


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
