"""Concepts that act in a part of a run, and whose bias changes: in the core, in graphs, and step by step inside the host."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from perfusion_core import PerfusionError
from perfusion_core.concept import Concept
from perfusion_core.schedule import ALWAYS, Schedule, percent_at
from scripts.harness.graphs import Graph, Link, latents
from scripts.harness.server import GraphError, Server
from scripts.setup.bootstrap import CHECKPOINT, Setup
from tests.measuring import measure

MONSTER, ROBOT = "demo-monster.safetensors", "demo-robot.safetensors"
PROMPT = "a photo of a <demo-monster> on the grass"
ROUNDING = 5e-6
NONE, ONE, OTHER, BOTH = range(4)

# ---- in the core


def level(percent: float) -> float:
    """A noise level that falls from 10 to 0.1."""
    return math.exp(math.log(10) * (1 - 2 * percent))


def test_the_bias_changes_evenly_within_the_part() -> None:
    schedule = Schedule(0.2, 0.6, -0.5)
    assert [schedule.bias(0.4, percent) for percent in (0, 0.2, 0.3, 0.5, 0.6, 1)] == pytest.approx(
        [0.4, 0.4, 0.275, 0.025, -0.1, -0.1]
    )


def test_a_part_holds_its_start_and_not_its_end() -> None:
    schedule = Schedule(0.2, 0.6)
    held = [schedule.holds(level(percent), level) for percent in (0.1, 0.2, 0.5999, 0.6, 0.9)]
    assert held == [False, True, True, False, False]
    assert all(ALWAYS.holds(sigma, level) for sigma in (1e9, 10, 0.1, 0))


def test_a_percent_is_found_again() -> None:
    assert [percent_at(level(percent), level) for percent in (0.001, 0.25, 0.999)] == pytest.approx([0.001, 0.25, 0.999], abs=1e-11)
    assert percent_at(11, level) == 0 and percent_at(0.09, level) == pytest.approx(1)


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.6, 0.5), (-0.1, 1), (0, 1.1), (math.nan, 1), (0, math.nan)])
def test_what_is_no_part_is_refused(part: tuple[float, float]) -> None:
    with pytest.raises(PerfusionError, match="start_percent must be at least 0 and below end_percent"):
        Schedule(*part)


# ---- in graphs


def scheduled(graph: Graph, concept: Link, start: float = 0.0, end: float = 1.0, change: float = 0.0) -> Link:
    given = {"start_percent": start, "end_percent": end, "bias_change": change}
    return [graph.add("PerfusionConceptSchedule", concept=concept, **given), 0]


def advanced(graph: Graph, model: Link, positive: Link, negative: Link, latent: Link, first: int, last: int) -> Link:
    """Some of four steps, as KSamplerAdvanced draws them."""
    key = graph.add(
        "KSamplerAdvanced", model=model, positive=positive, negative=negative, latent_image=latent, noise_seed=1, steps=4, cfg=3.0,
        sampler_name="euler", scheduler="normal", start_at_step=first, end_at_step=last,
        add_noise="disable" if first else "enable", return_with_leftover_noise="disable" if last == 4 else "enable",
    )  # fmt: skip
    return [key, 0]


def test_a_scheduled_run_is_a_run_with_the_concept_and_one_without(server: Server) -> None:
    """Of four steps two are before a half; and of two steps none is between 0.85 and 0.95."""
    graph, start = Graph(), len(server.log())
    model, clip, _ = graph.checkpoint()
    concept = graph.load(MONSTER, bias=0.4)
    always, words = graph.apply(model, clip, concept)
    half, never, whole = (
        graph.apply(model, clip, scheduled(graph, concept, *part))[0] for part in ((0, 0.5), (0.85, 0.95), (0, 1))
    )
    prompts = graph.text(words, PROMPT), graph.text(words, "")
    empty = [graph.add("EmptyLatentImage", width=64, height=64, batch_size=1), 0]
    halves = [
        advanced(graph, second, *prompts, advanced(graph, first, *prompts, empty, 0, 2), 2, 4)
        for first, second in ((always, model), (half, half))
    ]
    at_once = [advanced(graph, m, *prompts, empty, 0, 4) for m in (half, always, model)]
    quick = [graph.sample(m, *prompts, steps=2) for m in (always, whole, model, never)]
    found = latents(server, graph, *halves, *at_once, *quick)
    by_hand, in_halves, once, with_it, without, *quick = found
    assert torch.equal(by_hand, in_halves)
    # Between two samplers the host scales latents out and in again.
    size = float(without.abs().max())
    assert torch.allclose(once, by_hand, rtol=0, atol=2e-5 * size)
    assert min((once - each).abs().max() for each in (with_it, without)) > 0.02 * size
    assert torch.equal(quick[0], quick[1]) and torch.equal(quick[2], quick[3]) and not torch.equal(quick[0], quick[2])
    assert server.log()[start:].count("its part of the run (0.85 to 0.95) contains no step") == 1


def test_a_schedule_goes_through_settings_and_combining_and_not_into_the_file(server: Server) -> None:
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    robot = graph.load(ROBOT, bias=0.4)
    before, after, part = graph.load(MONSTER), graph.load(MONSTER, bias=0.4), (0.0, 0.7, 0.2)
    settings = {"bias": 0.4, "temperature": 0.15, "strength": 1.0, "trigger": ""}
    first = [graph.add("PerfusionConceptSettings", concept=scheduled(graph, before, *part), **settings), 0]
    last = scheduled(graph, after, *part)
    both = scheduled(graph, graph.combine(after, robot), *part)
    ways = [
        graph.combine(first, robot),
        graph.combine(last, robot),
        graph.combine(last, scheduled(graph, robot, *part)),
        both,
    ]
    applied = [graph.apply(model, clip, way) for way in ways]
    samples = [graph.sample(m, graph.text(c, f"{PROMPT}, a <demo-robot>"), graph.text(c, "")) for m, c in applied]
    graph.save(last, "scheduled")
    found = latents(server, graph, *samples)
    assert torch.equal(found[0], found[1]) and torch.equal(found[2], found[3]) and not torch.equal(found[1], found[2])
    saved = Concept.load(server.base / "models" / "perfusion" / "scheduled_00001.safetensors")
    assert saved.schedule == ALWAYS and saved.bias == 0.4


def test_a_part_that_is_none_is_refused_before_the_graph_runs(server: Server) -> None:
    for linked in (False, True):
        graph = Graph()
        end = [graph.add("PrimitiveFloat", value=0.3), 0] if linked else 0.3
        graph.save(scheduled(graph, graph.load(MONSTER), 0.5, end), "refused")
        with pytest.raises(GraphError, match=r"A schedule from 0\.5 to 0\.3 is not possible; start_percent must be") as failure:
            server.run(graph.nodes)
        assert "Traceback" not in str(failure.value)


# ---- step by step


@pytest.fixture(scope="module")
def measured(setup: Setup, base_dir: Path) -> dict:
    files = [base_dir / "models" / "perfusion" / name for name in (MONSTER, ROBOT)]
    return measure(setup.python, "inside_schedule", setup.comfyui, base_dir / "models" / "checkpoints" / CHECKPOINT, *files)


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_at_each_step_keys_and_values_are_those_of_the_concepts_that_act_alone(measured: dict, mode: str) -> None:
    """To the bit; of four steps, one until 0.5 of the run and the other from 0.3 to 0.9."""
    alone, both = measured["parts"][mode]
    assert alone == [ONE, ONE, NONE, NONE] and both == [ONE, BOTH, OTHER, NONE]


def test_a_rising_bias_gives_the_keys_and_values_of_the_formula_at_each_step(measured: dict) -> None:
    assert measured["rising"] < ROUNDING and measured["percents"] == [0, 0.333, 0.667, 1]


def test_what_is_kept_from_step_to_step_is_never_that_of_another_bias(measured: dict) -> None:
    """And a concept without a schedule is asked for once a run, as ever; where none acts, nothing is asked for."""
    assert all(measured["kept"].values())
    assert measured["times made"] == {"no schedule": 1, "two schedules": 4, "a region": 3, "locked keys": 3}


def test_in_its_region_a_concept_acts_in_its_part_of_the_run(measured: dict) -> None:
    assert measured["regions"] == ["+-", "++", "-+", "--"]


def test_encodings_that_a_patch_brings_are_edited_in_the_part_alone(measured: dict) -> None:
    assert measured["brought by a patch"] == [ONE, BOTH, OTHER, NONE] and measured["bare"]


def test_a_concept_whose_part_holds_no_step_is_named_with_the_reason(measured: dict) -> None:
    said = measured["said"]
    (line,) = said["no step"]
    assert line.startswith(
        "The concept <demo-monster> is applied but did not act: its part of the run (0.9 to 0.95) contains no step"
    )
    assert said["some steps"] == [] and "its gate stayed closed" in said["bias too high"][0]


def test_settings_keep_a_schedule_and_the_inspector_looks_past_it(measured: dict) -> None:
    assert measured["kept by settings"] == [True, False] and measured["inspected"]
