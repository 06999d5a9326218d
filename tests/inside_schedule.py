"""What concepts with schedules do at each step, in the real host: run by test_schedule.py in the host's own interpreter.

`python -m tests.inside_schedule COMFYUI CHECKPOINT CONCEPT OTHER` prints one JSON object of what was measured.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from perfusion_fleet import inside

COMFYUI, CHECKPOINT, CONCEPT, OTHER = map(Path, sys.argv[1:])
inside.enter_with_pack(COMFYUI)

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from scripts.harness.differences import worst  # noqa: E402
from tests.kept_runs import kept_and_not  # noqa: E402

host, locking, patched_model, sampling_run, projected = (
    inside.part(f"nodes.host{name}")
    for name in ("", ".text.global_key_locking", ".unet.patched_model", ".unet.sampling_run", ".unet.edited_projections")
)
Concept, Schedule = inside.part("perfusion_core.concept").Concept, inside.part("perfusion_core.schedule").Schedule

STEPS = 4
"""At 0, 1/3, 2/3 and 1 of the way."""
Outputs = list[dict[tuple[str, str], Tensor]]


class Bench:
    """The base, two concepts, and a prompt that names both."""

    def __init__(self) -> None:
        self.model, self.clip, _ = comfy.sd.load_checkpoint_guess_config(str(CHECKPOINT))[:3]
        self.one, self.other = (Concept.load(path).with_settings(bias=0.4) for path in (CONCEPT, OTHER))
        self.words = host.clip_with_words(self.clip, (self.one, self.other))
        self.text = f"a photo of a {self.one.trigger} and a {self.other.trigger}"
        self.prompt = self.encode(self.text)

    def encode(self, text: str) -> list:
        return self.words.encode_from_tokens_scheduled(self.words.tokenize(text))

    def applied(self, *stack: object, mode: str = "exact") -> object:
        return host.model_with_edit(self.model, stack, mode)

    def run(self, model: object, prompt: list | None = None, steps: int = STEPS) -> Tensor:
        latents = torch.zeros(1, 4, 8, 8)
        noise, given = comfy.sample.prepare_noise(latents, 1), prompt or self.prompt
        return comfy.sample.sample(model, noise, steps, 1.0, "euler", "normal", given, [], latents, disable_pbar=True, seed=1)

    def outputs(self, model: object, prompt: list | None = None, steps: int = STEPS) -> Outputs:
        """For each step: (layer, to_k | to_v) -> what it gives."""
        seen: dict[tuple[str, str], list[Tensor]] = {}
        handles = []
        for layer in host.layers_of(self.model):
            for which in ("to_k", "to_v"):

                def see(_: object, __: tuple, output: Tensor, key: tuple = (layer, which)) -> None:
                    seen.setdefault(key, []).append(output.clone())

                handles.append(self.model.model.diffusion_model.get_submodule(f"{layer}.{which}").register_forward_hook(see))
        try:
            self.run(model, prompt, steps)
        finally:
            for handle in handles:
                handle.remove()
        assert {len(each) for each in seen.values()} == {steps}
        return [{key: each[i] for key, each in seen.items()} for i in range(steps)]


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def which(found: Outputs, *wanted: Outputs) -> list[int]:
    """For each step, the number of the only one of `wanted` whose keys and values are the same to the bit; -1 if none or more."""
    places = [[n for n, (each,) in enumerate(wanted) if equal(step, each)] for step in found]
    return [place[0] if len(place) == 1 else -1 for place in places]


def parts(bench: Bench) -> dict:
    """Which concepts' keys and values there are at each step: none's, the first's, the second's, both's.

    As a patch has layers read them, too: there, whose they are nearest to.
    """
    one, other = bench.one.with_settings(schedule=Schedule(0, 0.5)), bench.other.with_settings(schedule=Schedule(0.3, 0.9))
    found = {}
    for mode in ("paper", "exact"):
        stacks = (), (bench.one,), (bench.other,), (bench.one, bench.other)
        plain = [bench.outputs(bench.applied(*stack, mode=mode), steps=1) for stack in stacks]
        found[mode] = [which(bench.outputs(bench.applied(*stack, mode=mode)), *plain) for stack in ((one,), (one, other))]
    patched, read = bench.applied(one, other), bench.prompt[0][0].clone()
    patched.set_model_attn2_patch(lambda q, k, v, options: (q, read, read))
    brought = bench.outputs(patched, bench.encode("a house"))
    nearest = [min(range(4), key=lambda n, step=step: apart(step, plain[n][0])) for step in brought]
    return {"parts": found, "brought by a patch": nearest, "bare": equal(brought[-1], plain[0][0])}


def rising(bench: Bench) -> dict:
    """Values and keys at each step against the formula in float64, with the percent from the host's table of noise levels."""
    schedule, one = Schedule(0.2, 1, 0.5), bench.one
    prompt = bench.encode(f"a photo of a {one.trigger} on the grass")
    found = bench.outputs(bench.applied(one.with_settings(schedule=schedule)), prompt)
    sampling = bench.model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)[:-1].double().numpy()
    table = sampling.log_sigmas.double().numpy()
    percents = 1 - np.interp(np.log(sigmas), table, np.arange(len(table))) / 999
    encoding = prompt[0][0].as_subclass(Tensor)[0].double()
    inputs, probe = one.target_input.double(), one.probe.double()
    similar = encoding @ probe / (probe @ inputs)
    named = torch.arange(len(encoding)) >= 5
    apart = []
    for percent, outputs in zip(percents, found, strict=True):
        bias = 0.4 + 0.5 * (percent - 0.2) / 0.8
        gate = torch.sigmoid((similar - bias) / one.temperature) * named * (percent >= 0.2)
        gate = torch.where(gate >= 1e-3, gate, 0)
        for (layer, which), output in outputs.items():
            weight = bench.model.model.diffusion_model.get_submodule(f"{layer}.{which}").weight.double()
            target = one.values[layer].double() if which == "to_v" else weight @ one.superclass_encoding.double()
            change = (gate[:, None] * (target - similar[:, None] * (weight @ inputs))).float()
            apart.append(worst(output[0], encoding @ weight.T + change))
    return {"rising": max(apart), "percents": [round(float(percent), 3) for percent in percents]}


def kept(bench: Bench) -> dict:
    """Runs with what is kept from step to step against runs that keep nothing; and how often each layer is asked."""
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    one, other = bench.one, bench.other
    rising, part = Schedule(0, 1, 0.3), Schedule(0.3, 0.7)
    locked = locking.encode_locked(bench.words, f"a photo of a {one.trigger}")
    runs = {
        "no schedule": (bench.applied(one), None),
        "two schedules": (bench.applied(one.with_settings(schedule=rising), other.with_settings(schedule=part)), None),
        "a region": (bench.applied(replace(one, region=left, schedule=part)), None),
        "locked keys": (bench.applied(one.with_settings(schedule=part)), locked),
    }
    found, counts = {}, {}
    for name, run in runs.items():
        given = sampling_run, projected, len(host.layers_of(bench.model))
        found[name], counts[name] = kept_and_not(*given, lambda run=run: bench.run(*run))
    return {"kept": found, "times made": counts}


def regional(bench: Bench) -> dict:
    """In each region and outside, at each step: whether keys and values are those without the edit, or those of all the time."""
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    stack = (replace(bench.one, region=left), replace(bench.other, region=left.flip(1)))

    def read(steps: int, *parts: Schedule) -> list[dict]:
        seen: list[dict] = []

        class Seen:
            def compare(self, layer: str, keys: bool, plain: list[Tensor], edited: list[Tensor]) -> None:
                if not seen or (layer, keys) in seen[-1]:
                    seen.append({})
                seen[-1][layer, keys] = [each.clone() for each in plain], [each.clone() for each in edited]

        edited = bench.applied(*(c.with_settings(schedule=part) for c, part in zip(stack, parts, strict=True)))
        watched = patched_model.model_with(edited, replace(patched_model.get_perfusion_state(edited), comparer=Seen()))
        usual, sampling_run.with_applied = sampling_run.with_applied, lambda extra_args, _: extra_args
        try:
            bench.run(watched, steps=steps)
        finally:
            sampling_run.with_applied = usual
        return seen

    found, (whole,) = read(STEPS, Schedule(0, 0.5), Schedule(0.3, 0.9)), read(1, Schedule(), Schedule())
    told = []
    for step in found:
        bare = [all(torch.equal(plain[s], edited[s]) for plain, edited in step.values()) for s in range(3)]
        same = [max(worst(step[key][1][s], whole[key][1][s]) for key in step) < 1e-5 for s in range(3)]
        told.append("".join("?" if one == other else "-" if one else "+" for one, other in zip(bare[1:], same[1:], strict=True)))
        assert bare[0] and same[0]
    return {"regions": told}


def apart(one: dict, other: dict) -> float:
    return max(worst(one[key], other[key]) for key in one)


def said(bench: Bench) -> dict:
    """What is said of concepts that do not act."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logging.getLogger("perfusion").addHandler(handler)
    found = {}
    for name, stack in {
        "no step": (bench.one.with_settings(schedule=Schedule(0.9, 0.95)), bench.other),
        "some steps": (bench.one.with_settings(schedule=Schedule(0.9, 1)), bench.other.with_settings(schedule=Schedule(0, 0.1))),
        "bias too high": (bench.one.with_settings(schedule=Schedule(0.3, 0.5), bias=9.0),),
    }.items():
        lines.clear()
        bench.run(bench.applied(*stack))
        found[name] = list(lines)
    logging.getLogger("perfusion").removeHandler(handler)
    return {"said": found}


def settings(bench: Bench) -> dict:
    """Whether a schedule outlives what other nodes do to a MODEL's concepts."""
    schedule = Schedule(0.3, 0.7)
    model = bench.applied(bench.one.with_settings(schedule=schedule), bench.other)
    changed = patched_model.model_with_settings(model, "", bias=0.2, strength=0.5)
    inspected = host.gate_report(model, bench.prompt)
    return {
        "kept by settings": [each.schedule == schedule for each in patched_model.get_perfusion_state(changed).stack],
        "inspected": min(inspected.changes.values.values()) > 0 and not inspected.missing,
    }


with torch.inference_mode():
    BENCH = Bench()
    measured = {name: value for part in (parts, rising, kept, regional, said, settings) for name, value in part(BENCH).items()}
print(json.dumps(measured))
