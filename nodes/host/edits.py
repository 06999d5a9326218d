"""A MODEL whose cross-attention projections are edited while it runs, and only then."""

import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import torch
from comfy.conds import CONDCrossAttn, CONDNoiseShape, CONDRegular
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy.samplers import CFGGuider
from torch import Tensor, nn

from ...perfusion_core import PerfusionError
from ...perfusion_core.concept import Concept, Stack, combine, edit_of, with_outputs
from ...perfusion_core.edit import EXACT, Edit
from .attention import Attention, Injection, Regions, Watch
from .layout import Layout
from .models import family_of, layers_of, width_of
from .projections import Comparer, Kept, Projections
from .watching import POSITIVE, Prompt, Recorder, Run
from .words import KEYS, PLACE, REACH, marked, notes_of, words_of

KEY = "perfusion"
BESIDE = "named stands locks locked regions where columns".split()
"""What travels beside an encoding to the model, as `perfusion_…`, for J concepts of which R have a region:

`named` [B, N, J]: other than 0 where a concept's trigger word can have reached a token; in exact mode.
`locks` [B, N, d], `locked` [B, 1, 1]: under global key-locking, the encoding that keys read, and whether they do.
`regions` [B, R, h, w], `stands` [B, N, R]: where concepts may show, and the tokens of their words.
`where` [B, 2, h, w]: row and column of each latent pixel, for maps that are recorded.
`columns` [B, N, 1]: the token of another picture's prompt whose map a token takes, or -1.
"""
GIVEN = "context named locked locks stands regions".split()
"""What keys and values depend on."""
OVERRIDE = "optimized_attention_override"

log = logging.getLogger("perfusion")


@dataclass(frozen=True)
class Applied:
    """What a MODEL carries: the concepts, and what is to be done with its cross-attention maps."""

    stack: Stack = ()
    mode: str = EXACT
    recorder: Recorder | None = None
    layout: Layout | None = None
    probe: Comparer | None = None
    layers: tuple[str, ...] = ()
    made: dict[torch.device, list[Edit]] = field(default_factory=dict)
    kept: dict[torch.device, Kept] | None = None
    """While a sampler runs, what is kept from one step to the next, unless the weights may change between them."""

    def edits(self, device: torch.device) -> list[Edit]:
        """The edit outside all regions, then that of each concept's region in the stack's order, on a device.

        In a region there is its own concept beside those that have none.
        """
        if self.stack and device not in self.made:
            whole, regional = edit_of(self.stack, self.mode).to(device), [concept.region is not None for concept in self.stack]
            owners = [-1, *(i for i, inside in enumerate(regional) if inside)]
            actives = [[not inside or i == own for i, inside in enumerate(regional)] for own in owners]
            strengths = whole.strength * torch.tensor(actives, device=device)
            self.made[device] = [replace(whole, strength=strength) for strength in strengths]
        return self.made.get(device, [])

    def projections(self, options: Mapping[str, Any], inputs: Mapping[str, Tensor | None]) -> Projections:
        """Those of a UNet call."""
        context, named, locked, locks, stands, regions = given = [inputs.get(name) for name in GIVEN]
        edits = self.edits(context.device)

        def make() -> Projections:
            made = Projections(edits, context, named, locked, locks)
            if regions is None or not (made.change or bool(stands.any())):
                made.only_first()
            return made

        if self.kept is None:
            return make()
        kept = self.kept.setdefault(context.device, Kept())
        return kept.projections(tuple(options["uuids"]), dict(zip(GIVEN, given, strict=True)), make)


# ---- a call of the UNet --------------------------------------------------------------------------------------------------------


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
    """Wraps a UNet's forward: with what its options carry."""
    options = transformer_options if transformer_options is not None else {}
    applied: Applied = options[KEY]
    beside = {name: kwargs.pop(f"{KEY}_{name}", None) for name in BESIDE}
    if applied.mode == EXACT and applied.stack and beside["named"] is None:
        # The host's guider of two models asks for the negative by itself: nothing was laid beside it, but its notes came along.
        beside["named"] = marked(context, REACH, [concept.trigger for concept in applied.stack])
        context = context.as_subclass(Tensor)
    where, columns = beside.pop("where"), beside.pop("columns")
    inputs = {"x": x, "timesteps": timesteps, "context": context, "y": y} | beside

    def maps_of(x: Tensor, times: Tensor, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        seen: dict[str, Tensor] = {}
        first, count = options["cond_or_uncond"].index(POSITIVE), len(options["cond_or_uncond"])
        rows = slice(first * len(x), (first + 1) * len(x))
        alone = options | {"cond_or_uncond": [POSITIVE], "uuids": options["uuids"][first : first + 1]}
        mine = [_rows(value, rows, count * len(x)) for value in (control, kwargs)]
        call_unet(executor, {"x": x, "timesteps": times, **given}, alone, *mine, lambda layer, maps, _: seen.update({layer: maps}))
        return seen

    watch = injection = None
    if applied.recorder is not None and where is not None:
        applied.recorder.call(options, where, inputs)
        watch = lambda _, maps, shape: applied.recorder.see(options, maps, shape)  # noqa: E731
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
    """Run the UNet with the concepts of its options."""
    applied: Applied = options[KEY]
    x, projections = inputs["x"], applied.projections(options, inputs)
    attention = regions = None
    if len(projections.edits) > 1:
        regions = regions_of(inputs["regions"], inputs["stands"])
    if watch is not None or regions is not None or injection is not None:
        attention = Attention(tuple(x.shape[-2:]), watch, regions, injection)
    projections.observer, projections.comparer = attention, applied.probe
    given = (x, inputs["timesteps"], projections.encoding, inputs.get("y"), control)
    # Where nothing changes, nothing is wrapped at all: such a prompt is the base model's to the last bit.
    if attention is None and applied.probe is None and not projections.change:
        return executor(*given, options, **kwargs)
    unet = executor.class_obj
    with contextlib.ExitStack() as opened:
        opened.enter_context(projections.within(unet, applied.layers))
        if attention is not None:
            opened.enter_context(attention.within(unet, applied.layers))
            options = options | {OVERRIDE: attention.override(options.get(OVERRIDE))}
        return executor(*given, options, **kwargs)


def regions_of(masks: Tensor, stands: Tensor) -> Regions:
    """From R concepts' regions [B, R, h, w] and the places of their words [B, N, R] to what holds where."""
    masks = masks.float().clamp(0, 1)
    masks = masks / masks.sum(1, keepdim=True).clamp(min=1)
    weights = torch.cat([1 - masks.sum(1, keepdim=True), masks], 1)
    words = stands.transpose(1, 2) > 0
    others = 1 - torch.eye(words.shape[1], device=words.device)
    others = torch.cat([torch.ones_like(others[:1]), others]) > 0
    return Regions(weights, (words[:, None] & others[None, :, :, None]).any(2))


def _rows(value: Any, rows: slice, count: int) -> Any:
    """The same with those rows alone of all tensors that have `count` of them."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == count else value
    if isinstance(value, dict):
        return {key: _rows(item, rows, count) for key, item in value.items()}
    return [_rows(item, rows, count) for item in value] if isinstance(value, list) else value


# ---- a run of the sampler ------------------------------------------------------------------------------------------------------


def prepare_conds(
    executor: WrapperExecutor,
    guider: CFGGuider,
    sigmas: Tensor,
    extra_args: dict,
    callback: Callable | None,
    noise: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """Wraps a sampling run: hands what the encodings know of themselves to the model, beside them."""
    applied: Applied = extra_args["model_options"]["transformer_options"][KEY]
    size = tuple(noise.shape[-2:])
    prompts: dict[UUID, Prompt] = {}
    said: set[str] = set()
    for kind, conds in guider.conds.items():
        prepared = []
        for cond in conds or ():
            cross = cond.get("model_conds", {}).get("c_crossattn")
            if cross is not None:
                said |= set(notes_of(cross.cond, REACH))
                if kind == "positive":
                    prompts[cond["uuid"]] = prompt_of(cross.cond, applied)
                cond = cond | {"model_conds": cond["model_conds"] | conds_beside(cross.cond, applied, size)}
            prepared.append(cond)
        guider.conds[kind] = prepared
    share_locks([cond["model_conds"] for conds in guider.conds.values() for cond in conds if "model_conds" in cond])
    for trigger in (concept.trigger for concept in applied.stack):
        if trigger not in said:
            log.warning(
                "The concept %s is applied, but no prompt names it: write %s in a prompt whose CLIP comes from Apply Concept.",
                trigger,
                trigger,
            )
    if not any(cond.get("hooks") is not None for conds in guider.conds.values() for cond in conds or ()):
        extra_args = with_applied(extra_args, replace(applied, kept={}))
    if applied.recorder is None:
        return executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
    with applied.recorder.recording(size, prompts) as done:
        samples = executor(guider, sigmas, extra_args, callback, noise, *args, **kwargs)
        done(guider.inner_model.process_latent_out(samples.float()))
    return samples


def with_applied(extra_args: dict, applied: Applied) -> dict:
    """A sampling run's arguments with this in place of what its MODEL carries."""
    options = extra_args["model_options"]
    return extra_args | {"model_options": options | {"transformer_options": options["transformer_options"] | {KEY: applied}}}


def prompt_of(encoding: Tensor, applied: Applied) -> Prompt:
    """What a prompt says, and how far each concept's gate opens at each of its words."""
    gates = {}
    edits = applied.edits(encoding.device)
    if edits:
        opened = edits[0].gates(encoding.as_subclass(Tensor))[0]
        reach = notes_of(encoding, REACH)
        for j, concept in enumerate(applied.stack):
            reached = 1
            if applied.mode == EXACT:
                reached = reach[concept.trigger][0, :, 0] != 0 if concept.trigger in reach else 0
            gates[concept.trigger] = opened[:, j] * reached
    return Prompt(words_of(encoding), gates)


def conds_beside(encoding: Tensor, applied: Applied, size: tuple[int, int]) -> dict[str, CONDRegular]:
    """The host's conditioning for an encoding, as a plain tensor, and for its notes."""
    plain = encoding.as_subclass(Tensor)
    keys = notes_of(encoding, KEYS)

    def marks(kind: str, concepts: Stack) -> CONDCrossAttn:
        return CONDCrossAttn(marked(encoding, kind, [concept.trigger for concept in concepts]))

    beside: dict[str, CONDRegular] = {}
    if applied.mode == EXACT and applied.stack:
        beside["named"] = marks(REACH, applied.stack)
    if keys:
        beside |= {
            "locks": CONDCrossAttn(keys[""].to(plain.device)),
            "locked": CONDRegular(torch.ones(1, 1, 1, device=plain.device)),
        }
    placed = tuple(concept for concept in applied.stack if concept.region is not None)
    if placed:
        masks = [nn.functional.interpolate(c.region[None, None].float(), size, mode="area") for c in placed]
        beside |= {"stands": marks(PLACE, placed), "regions": CONDNoiseShape(torch.cat(masks, 1).to(plain.device))}
    if applied.recorder is not None:
        rows, columns = (torch.arange(n, device=plain.device) for n in size)
        beside["where"] = CONDNoiseShape(torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None])
    if applied.layout is not None:
        beside["columns"] = CONDCrossAttn(applied.layout.columns(words_of(encoding)).to(plain.device))
    return {"c_crossattn": CONDCrossAttn(plain)} | {f"{KEY}_{name}": cond for name, cond in beside.items()}


def share_locks(conds: list[dict[str, CONDRegular]]) -> None:
    """Where one prompt's keys are locked globally, give the others blanks: the host batches what has the same inputs."""
    locks, locked = f"{KEY}_locks", f"{KEY}_locked"
    if any(locks in each for each in conds):
        for each in conds:
            if locks not in each and "c_crossattn" in each:
                encoding = each["c_crossattn"].cond
                each[locks] = CONDCrossAttn(encoding)
                each[locked] = CONDRegular(torch.zeros(1, 1, 1, device=encoding.device))


# ---- a MODEL that carries it -----------------------------------------------------------------------------------------------------


def check_fit(concept: Concept, model: ModelPatcher) -> None:
    """Raise PerfusionError unless the concept was taught to a model of this one's family and shape."""
    family, layers = family_of(model), layers_of(model)
    if concept.family != family:
        raise PerfusionError(
            f"{concept.trigger} was taught to an {concept.family} model and this one is {family}; "
            f"use an {concept.family} checkpoint."
        )
    if (concept.values and concept.layers != layers) or len(concept.target_input) != width_of(model):
        raise PerfusionError(
            f"{concept.trigger} was taught to an {family} model of another shape, "
            f"{shape_of(concept.layers, len(concept.target_input))}; this one has {shape_of(layers, width_of(model))}."
        )


def shape_of(layers: Mapping[str, int], width: int) -> str:
    """What a message tells of a model's shape."""
    widths = ", ".join(str(each) for each in sorted(set(layers.values()))) or "any width"
    return f"{len(layers)} cross-attention layers of {widths} that read encodings of {width}"


def carried(model: ModelPatcher) -> Applied | None:
    """What a MODEL carries of Perfusion."""
    return model.model_options.get("transformer_options", {}).get(KEY)


def model_with(model: ModelPatcher, applied: Applied) -> ModelPatcher:
    """A clone of a MODEL that carries this in place of what it carried."""
    applied = replace(applied, layers=tuple(layers_of(model)), made={})
    # What cannot work together is found now, not in the middle of a graph.
    applied.edits(torch.device("cpu"))
    cloned = model.clone()
    cloned.model_options["transformer_options"] = cloned.model_options.get("transformer_options", {}) | {KEY: applied}
    for where, wrapper in ((WrappersMP.DIFFUSION_MODEL, run_edited), (WrappersMP.SAMPLER_SAMPLE, prepare_conds)):
        cloned.remove_wrappers_with_key(where, KEY)
        cloned.add_wrapper_with_key(where, KEY, wrapper)
    return cloned


def model_with_edit(model: ModelPatcher, stack: Stack, mode: str) -> ModelPatcher:
    """A clone of a MODEL that the concepts are applied to, beside those that it carries already.

    Words alone edit nothing: they are the CLIP's, and where there is nothing else the MODEL itself is given back.

    Raises:
        PerfusionError: a concept does not fit the model, two have one trigger word, or the model carries another edit mode.
    """
    for concept in stack:
        check_fit(concept, model)
    stack = with_outputs(stack)
    if not stack:
        return model
    before = carried(model) or Applied()
    if before.stack and before.mode != mode:
        raise PerfusionError(f"This model carries concepts in the edit mode {before.mode!r}; apply further ones in the same mode.")
    return model_with(model, replace(before, stack=combine(before.stack, stack), mode=mode))


def model_watched(model: ModelPatcher, recorder: Recorder) -> ModelPatcher:
    """A clone of a MODEL whose sampling runs are recorded."""
    return model_with(model, replace(carried(model) or Applied(), recorder=recorder))


def model_with_layout(model: ModelPatcher, run: Run, start: float, end: float) -> ModelPatcher:
    """A clone of a MODEL that keeps another picture's layout, from `start` to `end` (0 to 1) of the way from noise to picture."""
    sampling = model.get_model_object("model_sampling")
    span = (float(sampling.percent_to_sigma(share)) for share in (start, end))
    return model_with(model, replace(carried(model) or Applied(), layout=Layout(run, *span), recorder=None))


def model_with_settings(model: ModelPatcher, trigger: str, **settings: float) -> ModelPatcher:
    """A clone of a MODEL whose concepts have other settings: the one of this trigger word or, if it is empty, all.

    All else that the model carries stays as it is, in its place. A concept of strength 0 is not carried on, just as it would
    not have been applied; its word means to the text encoder what it meant.

    Raises:
        PerfusionError: the model carries no concepts, or none of this trigger word.
    """
    before = carried(model) or Applied()
    if not before.stack:
        raise PerfusionError("This model carries no concepts; connect the model that Apply Concept gives.")
    known = [concept.trigger.casefold() for concept in before.stack]
    if trigger and trigger.casefold() not in known:
        raise PerfusionError(
            f"This model carries no concept {trigger[:80]!r}; it has {', '.join(c.trigger for c in before.stack)}."
        )
    chosen = [not trigger or each == trigger.casefold() for each in known]
    changed = (c.with_settings(**settings) if chose else c for c, chose in zip(before.stack, chosen, strict=True))
    return model_with(model, replace(before, stack=tuple(concept for concept in changed if concept.strength > 0)))
