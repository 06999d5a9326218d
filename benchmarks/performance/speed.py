"""Measure time and memory of this pack, compared with the unmodified model and with common alternatives.

    python -m benchmarks.performance.speed [PART ...] [--rounds N] [--size PIXELS]

Most figures are ratios of interleaved measurements in one run, medians over all rounds. The model is a checkpoint of SD1.5's
architecture with seeded weights, which this program creates (2 GB in the set-up) with the text encoder and VAE of the demo's base.
Writes `results/speed.md` part by part; parts that are not requested keep their last results, and an interrupted plot resumes where
it was.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import itertools
import platform
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.fidelity import plots
from benchmarks.fidelity.methods import LORA, Recipe, teach
from benchmarks.fidelity.trials import Store
from benchmarks.lab import RESULTS
from benchmarks.memory import resident
from benchmarks.performance import seeded
from perfusion_core.quantization import INT8, UINT4
from perfusion_fleet import inside
from scripts.harness.graphs import Graph
from scripts.harness.server import Server
from scripts.setup import bootstrap

COUNTS = (1, 8, 32)
WIDTHS = (320, 640, 1280)
AXES = {"concepts": (1, 2, 4, 8, 16, 32), "prompt": (77, 154, 231, 308), "size": (256, 512, 768, 1024), "batch": (1, 4, 16)}
TAUGHT_AT = 256
"""Side in pixels of the pictures with which training runs are timed."""
SHORT, LONG = 2, 8
BATCH, LESSON = 16, 400
"""Batch size and number of steps of a full training run on a GPU."""
SMALL_CARD = "8 GB"
ONE_PICTURE = Recipe(widgets={"batch": 1, "at_once": 1})
ONE_PICTURE_LORA = Recipe(LORA, {"grad_accumulation_steps": 1})
Rows = list[str]


def paired(ways: Mapping[str, Callable[[], float | None]], rounds: int) -> dict[str, list[float]]:
    """Time each way in turn, in each of the rounds; return the seconds that it reports, or else the elapsed seconds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            gc.collect()
            start = time.perf_counter()
            said = way()
            found[name].append(time.perf_counter() - start if said is None else said)
    return found


def ratios(found: Mapping[str, list[float]], to: str) -> dict[str, float]:
    """Return for each way the median over rounds of its time divided by that of the way `to` in the same round."""
    return {name: median(a / b for a, b in zip(times, found[to], strict=True)) for name, times in found.items()}


@dataclass
class Bench:
    """The measurements, with the host in this process and a checkpoint of SD1.5's size."""

    rounds: int
    size: int
    store: Store
    """Maps a part to the machine and its rows, or to the points of an interrupted part."""

    def __post_init__(self) -> None:
        """Enter the host, which is possible only once in a process."""
        self.setup = bootstrap.locate()
        inside.enter_with_pack(self.setup.comfyui, cpu=not torch.cuda.is_available())
        self.host = inside.part("nodes.host")
        self.sample = importlib.import_module("comfy.sample")
        self.management = importlib.import_module("comfy.model_management")
        self.device = self.management.get_torch_device()
        self.precision = self.host.best_precision(self.device)

    @functools.cached_property
    def loaded(self) -> tuple[Any, Any]:
        """MODEL and CLIP in the fastest precision of this machine."""
        return self.load(self.precision)

    def load(self, precision: torch.dtype) -> tuple[Any, Any]:
        """Load the MODEL, in this precision, and the CLIP."""
        path = seeded.checkpoint(self.setup)
        read = importlib.import_module("comfy.sd").load_checkpoint_guess_config
        return read(str(path), output_vae=False, model_options={"dtype": precision})[:2]

    @torch.inference_mode()
    def steps(self, model: Any, positive: list, negative: list, size: int, count: int = 1, steps: int = 3) -> list[float]:
        """Return the seconds of each step of a sampling run with guidance; the first one includes everything before it."""
        latents = torch.zeros(count, 4, size // 8, size // 8)
        noise, marks = self.sample.prepare_noise(latents, 0), [time.perf_counter()]
        how = {"disable_pbar": True, "seed": 0, "callback": lambda *_: marks.append(self.now())}
        self.sample.sample(model, noise, steps, 7.0, "euler", "normal", positive, negative, latents, **how)
        return [after - before for before, after in itertools.pairwise(marks)]

    def now(self) -> float:
        """Return the time after the device has finished all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def lora(self, model: Any, folder: Path, rank: int = 4) -> Path:
        """Write a random LoRA of all attention layers and return its file."""
        made = {}
        for name, weight in model.model.diffusion_model.state_dict().items():
            if ".attn" in name and weight.ndim == 2:
                stem = f"diffusion_model.{name.removesuffix('.weight')}"
                made[f"{stem}.lora_up.weight"] = torch.randn(len(weight), rank) / 100
                made[f"{stem}.lora_down.weight"] = torch.randn(rank, weight.shape[1]) / 100
        importlib.import_module("safetensors.torch").save_file(made, folder / "lora.safetensors")
        return folder / "lora.safetensors"

    # ---- parts -----------------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def projection(self) -> Rows:
        """Compare one projection of two prompts: the host's Linear, this pack's edit, and perfusion-pytorch's."""
        rows = []
        for width in WIDTHS:
            x = torch.randn(2, 77, 768, device=self.device)
            ways = {name: functools.partial(repeated, way, x, self.now) for name, way in self.projections(width, x).items()}
            found = ratios(paired(ways, max(self.rounds, 5)), "plain")
            shown = ("made", "input", "rest", "kept", "theirs")
            rows.append(f"| {width} | ≤ 1.10 | {' | '.join(f'{found[name]:.2f}' for name in shown)} |")
        return [
            "Values for two prompts of 77 tokens, relative to the time of the plain Linear. In a sampling run, a layer's values "
            "are computed in the first step (*made*) and cached for all others (*kept*). *Input* and *rest* are the two parts of "
            "*made*: the projection of the target input, and what is computed and added at every token.",
            "",
            "| width | goal | made | of it: input | of it: rest | kept | perfusion-pytorch |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *rows,
        ]

    def projections(self, width: int, x: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return a Linear of this width, this pack's edit of it, the parts of that, and perfusion-pytorch's edit."""
        made = inside.part("nodes.host.unet.edited_projections").Projections
        edits = inside.part("perfusion_core.gated_edit")
        plain = nn.Linear(768, width, bias=False).to(self.device)
        theirs = importlib.import_module("perfusion_pytorch").Rank1EditModule(plain, C=torch.eye(768, device=self.device))
        theirs = theirs.to(self.device).eval()
        theirs.initted.fill_(True)
        theirs.ema_concept_text_encs.normal_()
        one, ones = torch.randn(1, 768), torch.ones(1)
        edit = edits.Edit("exact", one, one / one.square().sum(), one, ones * 0.4, ones * 0.15, ones, {"l": torch.randn(1, width)})
        edit = edit.to(self.device)
        new, kept = (made([edit], x) for _ in range(2))
        kept.kept = {}
        output, projected = plain(x), plain(edit.target_inputs)
        return {
            "plain": plain,
            "made": new._forward(plain.forward, "l", False, False),
            "input": lambda _: plain(edit.target_inputs),
            "rest": lambda _: output + edit.value_correction("l", new.by[0], lambda _: projected),
            "kept": kept._forward(plain.forward, "l", False, False),
            "theirs": theirs,
        }

    def step(self) -> Rows:
        """Compare a sampler step of the full UNet, with guidance."""
        runs = self.runs()
        firsts: dict[str, list[float]] = {name: [] for name in runs}

        def run(name: str) -> float:
            first, *later = self.steps(*runs[name], self.size)
            firsts[name].append(first)
            return median(later)

        times = paired({name: functools.partial(run, name) for name in runs}, self.rounds)
        found, first = ratios(times, "unpatched"), ratios(firsts, "unpatched")
        goals = dict(zip(map(str, COUNTS), ("≤ 1.00", "≤ 1.01", "≤ 1.03"), strict=True))
        named = {name: f"{counted(name)}, all in the prompt" if name in goals else name for name in runs}
        return [
            f"A step at {self.size} px with guidance, {str(self.precision).removeprefix('torch.')}; unpatched it took "
            f"{median(times['unpatched']):.2f} s. *Again* shows the measurement noise. *First* is the first step, including "
            "everything before it.",
            "",
            "| | goal | step | first |",
            "| --- | --- | --- | --- |",
            *(f"| {named[name]} | {goals.get(name, '')} | {found[name]:.3f} | {first[name]:.3f} |" for name in runs),
        ]

    def overhead(self) -> Rows:
        """Measure the time that a step adds to the unmodified model's. It does not depend on image size, so images are small."""
        runs = self.runs()

        def run(name: str) -> float:
            return median(self.steps(*runs[name], 64, steps=11)[1:])

        times = paired({name: functools.partial(run, name) for name in runs}, max(self.rounds, 15))
        plain = times["unpatched"]
        beyond = {name: 1000 * median(a - b for a, b in zip(each, plain, strict=True)) for name, each in times.items()}
        return [
            f"How many milliseconds a step takes beyond the unmodified model's {1000 * median(plain):.0f} ms at 64 px. The extra "
            "work does not grow with image size.",
            "",
            "| | ms more |",
            "| --- | --- |",
            *(f"| {counted(name) if name.isdigit() else name} | {beyond[name]:+.1f} |" for name in list(runs)[1:]),
        ]

    def runs(self) -> dict[str, tuple[Any, list, list]]:
        """Return MODEL and both conditionings of each run: plain, with a LoRA, and with each of COUNTS concepts."""
        model, clip = self.loaded
        bypass = importlib.import_module("comfy.sd").load_bypass_lora_for_models
        with tempfile.TemporaryDirectory() as folder:
            lora = importlib.import_module("comfy.utils").load_torch_file(str(self.lora(model, Path(folder))))
        empty, prompt = self.host.conditionings(clip, ("", "a photo of a monster on the grass"))
        plain = (model, prompt, empty)
        runs = {"unpatched": plain, "unpatched again": plain, "LoRA": (bypass(model, clip, lora, 1.0, 0.0)[0], prompt, empty)}
        return runs | {str(count): self.with_concepts(count, empty) for count in COUNTS}

    def with_concepts(self, count: int, empty: list, more: str = "") -> tuple[Any, list, list]:
        """Return MODEL and both conditionings of a run whose prompt names `count` concepts."""
        model, clip = self.loaded
        stack = seeded.concepts(self.host, model, clip, count)
        knowing = self.host.clip_with_words(clip, stack)
        (named,) = self.host.conditionings(knowing, ("a photo of " + ", ".join(each.trigger for each in stack) + more,))
        return self.host.model_with_edit(model, stack, "exact"), named, empty

    @torch.inference_mode()
    def applying(self) -> Rows:
        """Measure the time from the nodes to the end of the first step, beyond that of the unmodified model."""
        # float32 on a CPU: images are small, and repacking bfloat16 weights would take ten times as long as everything else.
        model, clip = self.load(torch.float32) if self.device.type == "cpu" else self.loaded
        nodes = importlib.import_module("nodes")
        apply = inside.part("nodes.apply_concept").PerfusionApply.execute
        stack = seeded.concepts(self.host, model, clip, 8)
        named = ("a photo of " + ", ".join(each.trigger for each in stack), "")
        plain = ("a photo of " + ", ".join(["monster"] * len(stack)), "")
        with tempfile.TemporaryDirectory() as folder:
            file = self.lora(model, Path(folder))
            importlib.import_module("folder_paths").add_model_folder_path("loras", folder)
            loader = nodes.LoraLoader()

            def lora() -> tuple[Any, Any]:
                return loader.load_lora(model, clip, file.name, 1.0, 1.0)

            ways = {
                "unpatched": lambda: (model, clip),
                "Apply Concept": lambda: apply(model, clip, stack, "exact").args,
                "LoRA": lora,
            }

            def run(way: Callable[[], tuple[Any, Any]]) -> float:
                start = time.perf_counter()
                patched, knowing = way()
                both = self.host.conditionings(knowing, named if getattr(knowing, "stack", ()) else plain)
                middle = time.perf_counter()
                first, *later = self.steps(patched, *both, 64, steps=4)
                return middle - start + first - median(later)

            lora()  # reads the file, which the loader then caches
            times = paired({name: functools.partial(run, way) for name, way in ways.items()}, max(self.rounds, 7))
        beyond = {
            n: median(a - b for a, b in zip(times[n], times["unpatched"], strict=True)) * 1000 for n in ("Apply Concept", "LoRA")
        }
        return [
            "Time from the node to the end of the first step, minus a later step, and minus the same difference for the unmodified "
            "model.",
            "",
            "| | goal | took |",
            "| --- | --- | --- |",
            f"| 8 concepts | ≤ 50 ms | {beyond['Apply Concept']:.0f} ms |",
            f"| a LoRA of rank 4 on all attention | | {beyond['LoRA']:.0f} ms |",
        ]

    @torch.inference_mode()
    def covariance(self) -> Rows:
        """Measure a text encoder over many captions: time, and whether memory grows with their number."""
        _, clip = self.loaded
        estimate_of = inside.part("perfusion_core.covariance").Estimate
        count = 100_000 if self.device.type == "cuda" else 4_000
        texts = sorted(inside.part("perfusion_core.captions").captions(count), key=len)
        at_once = inside.part("nodes.measure_text_encoder").CAPTIONS_AT_ONCE
        self.host.prepare_clip(clip)
        estimate, marks, start = estimate_of(self.host.encoding_width(clip)), [], time.perf_counter()
        for i in range(0, count, at_once):
            estimate.add(self.host.caption_encodings(clip, texts[i : i + at_once], self.precision, self.host.UNPADDED))
            marks.append(resident())
        took = time.perf_counter() - start
        goal = "< 60 s on an H100" if self.device.type == "cuda" else "(for a GPU)"
        grown = marks[-1] - marks[len(marks) // 4]
        return [
            "Captions are processed from shortest to longest, so the growth in memory shows what the longest ones need.",
            "",
            "| captions | goal | took | memory grown since the first quarter |",
            "| --- | --- | --- | --- |",
            f"| {count} | {goal} | {took:.0f} s | {grown:+.0f} MB |",
        ]

    def training(self) -> Rows:
        """Compare time and memory of a training step with the host's Train LoRA, both as nodes of a real server."""
        seeded.checkpoint(self.setup)
        found, peaks = {}, {}
        for name, recipe in (("Train Concept", ONE_PICTURE), ("Train LoRA", ONE_PICTURE_LORA)):
            with Server(self.setup) as server:
                found[name] = self.seconds_a_step(server, recipe, TAUGHT_AT)
                peaks[name] = resident(server.process.pid, "VmHWM") if server.process else 0
        (ours, theirs), (mine, other) = found.values(), peaks.values()
        return [
            f"One picture of {TAUGHT_AT} px per step, the same checkpoint and precision; memory is the server's peak.",
            "",
            "| | goal | Train Concept | Train LoRA | ratio |",
            "| --- | --- | --- | --- | --- |",
            f"| a step | ≤ 0.75 | {ours:.2f} s | {theirs:.2f} s | {ours / theirs:.2f} |",
            f"| memory | ≤ 0.6 | {mine / 1024:.1f} GB | {other / 1024:.1f} GB | {mine / other:.2f} |",
        ]

    def card(self) -> Rows:
        """Measure a full training run on a GPU, if there is one, and how a step would be fitted to a small GPU."""
        seeded.checkpoint(self.setup)
        took = self.lesson() if self.device.type == "cuda" else "not measured: this machine has no GPU"
        return [
            f"SD1.5's architecture at {self.size} px, {BATCH} pictures per step.",
            "",
            "| | goal | found |",
            "| --- | --- | --- |",
            f"| {LESSON} steps | < 60 s on an H100 | {took} |",
            f"| a step on a GPU of {SMALL_CARD} | fits | computes {self.fitted()} |",
        ]

    def lesson(self) -> str:
        """Return the extrapolated duration of a full training."""
        with Server(self.setup) as server:
            step = self.seconds_a_step(server, Recipe(widgets={"batch": BATCH, "at_once": BATCH}), self.size)
        return f"{LESSON * step:.0f} s, extrapolated from {LONG - SHORT} steps"

    def fitted(self) -> str:
        """Return how Train Concept fits a step to a small card, as logged before the first step; then the server is stopped."""
        fits = Recipe(widgets={"batch": BATCH, "at_once": BATCH, "memory": SMALL_CARD})
        with Server(self.setup) as server:
            server.queue(self.course(fits, 1, 6, self.size))
            for _ in range(600):
                if said := re.search(r"Training processes (.*), and [0-9.]+ GB is free", server.log()):
                    return said[1]
                time.sleep(1)
        raise SystemExit(f"expected Train Concept to say how much it computes at once, but it did not; see {server.log_file}.")

    def seconds_a_step(self, server: Server, recipe: Recipe, side: int) -> float:
        """Return the seconds of a training step, from the difference between a long and a short training."""

        def run(steps: int, seed: int) -> None:
            server.run(self.course(recipe, steps, seed, side), timeout=36000)

        run(SHORT, 0)  # loads the model, measures the text encoder
        seconds = paired({"long": functools.partial(run, LONG, 1), "short": functools.partial(run, SHORT, 2)}, 1)
        return (seconds["long"][0] - seconds["short"][0]) / (LONG - SHORT)

    def course(self, recipe: Recipe, steps: int, seed: int, side: int) -> dict[str, dict]:
        """Return a graph that trains from the demo's pictures."""
        graph, names = Graph(), [f"monster-{i}.png" for i in range(4)]
        lasting = replace(recipe, widgets={**recipe.widgets, "steps": steps})
        teach(graph, graph.checkpoint(seeded.NAME), lasting, "monster", names, side, seed, f"speed-{recipe.teacher}-{seed}")
        return graph.nodes

    def scale(self) -> Rows:
        """Measure the cost of a step relative to the unmodified model, along four axes."""
        model, clip = self.loaded
        (empty,) = self.host.conditionings(clip, ("",))
        points = self.store.kept.get("scale", {}).get("points", {})  # of an interrupted run
        for axis, values in AXES.items():
            for value in values:
                if f"{axis} {value}" in points:
                    continue
                case = {"concepts": 1, "prompt": 77, "size": self.size // 2, "batch": 1} | {axis: value}
                more = ", red" * (38 * (case["prompt"] // 77 - 1))
                (prompt,) = self.host.conditionings(clip, ("a photo of a monster" + more,))
                runs = {
                    "plain": (model, prompt, empty),
                    "ours": self.with_concepts(case["concepts"], empty, more),
                }
                ways = {
                    name: functools.partial(lambda run, c: self.steps(*run, c["size"], c["batch"], steps=2)[1], run, case)
                    for name, run in runs.items()
                }
                points[f"{axis} {value}"] = ratios(paired(ways, self.rounds), "plain")["ours"]
                self.store.keep({"scale": {"points": points}})
        found = {axis: [(value, points[f"{axis} {value}"]) for value in values] for axis, values in AXES.items()}
        plots.costs(found, RESULTS / "scale.png")
        return ["![The cost of a step along four axes](scale.png)", "", "| axis | value | step |", "| --- | --- | --- |"] + [
            f"| {axis} | {value} | {ratio:.3f} |" for axis, each in found.items() for value, ratio in each
        ]

    def files(self) -> Rows:
        """Measure the sizes of concept files."""
        kind = inside.part("perfusion_core.concept").Concept
        shapes = {
            "SD1.5": ("≤ 32 KB, compact ≤ 16 KB", [320] * 5 + [640] * 5 + [1280] * 6, {"clip_l": 768}, 768),
            "SDXL": ("≤ 64 KB", [640] * 10 + [1280] * 60, {"clip_l": 768, "clip_g": 1280}, 2048),
        }
        rows = []
        for name, (goals, widths, words, width) in shapes.items():
            layers = {f"input_blocks.{i}.1.transformer_blocks.0.attn2": torch.randn(m) for i, m in enumerate(widths)}
            vectors = {encoder: torch.randn(1, size) for encoder, size in words.items()}
            concept = kind("<it>", "monster", "sd1", vectors, *(torch.randn(width) for _ in range(3)), layers)
            with tempfile.TemporaryDirectory() as folder:
                file, sizes = Path(folder) / "it.safetensors", []
                for dtype in (torch.float16, INT8, UINT4):
                    concept.save(file, dtype)
                    sizes.append(f"{file.stat().st_size / 1024:.1f} KB")
            rows.append(f"| {name} | {goals} | {' | '.join(sizes)} | {4 * sum(widths) / 1024:.0f} KB |")
        return [
            "Size of a concept file without its preview; the last column is the size of the learned outputs alone, in float32.",
            "",
            "| | goals | half | 8 bit | 4 bit | outputs in float32 |",
            "| --- | --- | --- | --- | --- | --- |",
            *rows,
        ]


def repeated(way: Callable[[Tensor], Tensor], x: Tensor, now: Callable[[], float], times: int = 200) -> float:
    """Return the seconds of many calls, after one to warm up."""
    way(x)
    start = now()
    for _ in range(times):
        way(x)
    return now() - start


def counted(number: str) -> str:
    """Return the name of a row for this number of concepts."""
    return f"{number} concept{'s'[: number != '1']}"


PARTS = ("projection", "step", "overhead", "applying", "training", "card", "covariance", "files", "scale")


def machine() -> str:
    """Return a description of this machine."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
    card, cores = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", torch.get_num_threads()
    return f"{processor}, {cores} core{'s'[: cores > 1]}; {card}; torch {torch.__version__}"


def main() -> None:
    """Measure the requested parts and write the page after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="parts to measure; by default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=512, help="side of the pictures, in pixels")
    arguments = parser.parse_args()
    store = Store(RESULTS / "speed.json")
    bench = Bench(arguments.rounds, arguments.size, store)
    for part in arguments.parts or PARTS:
        rows = getattr(bench, part)()
        print("\n".join(rows), flush=True)
        store.keep({part: {"machine": machine(), "rows": rows}})
        (RESULTS / "speed.md").write_text(page(store.kept), encoding="utf-8")


def page(told: Mapping[str, dict]) -> str:
    """Return the page with all parts measured so far."""
    lines = [
        "# Speed, memory and file size",
        "",
        "Written by `python -m benchmarks.performance.speed`. Ratios are medians of interleaved measurements.",
        "",
    ]
    for part in PARTS:
        if "rows" in told.get(part, {}):
            lines += [f"## {part.capitalize()}", "", *told[part]["rows"], "", f"On {told[part]['machine']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
