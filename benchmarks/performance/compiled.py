"""Compile a concept's model with TorchCompileModel: `python -m benchmarks.performance.compiled [--backend NAME]`.

The tests only capture the model and run it uncompiled, because Inductor takes minutes. Here the base model, without and with a
concept, is compiled; each samples a prompt with the trigger word and one without, and the results are compared with the uncompiled
ones. Writes `results/compiled.md`.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.lab import RESULTS
from scripts.harness.differences import worst
from scripts.harness.graphs import Graph, Link, latents
from scripts.harness.server import Server
from scripts.setup import bootstrap, steps

CONCEPT = "demo-monster.safetensors"
PROMPTS = {"names the concept": "a photo of a <demo-monster> on the grass", "does not name it": "a photo of a monster on the grass"}
ROUNDING, SEEN = 1e-4, 0.01
"""The largest difference that compiling may make, and the smallest that counts as an effect, relative to the largest latent."""


def drawn(server: Server, backend: str | None, with_concept: bool) -> list[torch.Tensor]:
    """Sample the latents of each prompt; with a backend, the model is compiled."""
    graph = Graph()
    model, clip, _ = graph.checkpoint()
    with_model, with_clip = graph.apply(model, clip, graph.load(CONCEPT))
    used: Link = with_model if with_concept else model
    if backend is not None:
        used = [graph.add("TorchCompileModel", model=used, backend=backend), 0]
    asked = [(graph.text(with_clip, text), graph.text(clip, "")) for text in PROMPTS.values()]
    return latents(server, graph, *(graph.sample(used, *each, steps=4, seed=7) for each in asked))


def main() -> int:
    """Sample, compare and write the page; return 1 if compiling changed a result or the concept has no effect."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="inductor")
    backend = parser.parse_args().backend
    setup = bootstrap.locate()
    with Server(setup, base=bootstrap.fresh_base(setup, "compiled-base")) as server:
        base, plain = drawn(server, None, False), drawn(server, None, True)
        base_compiled = drawn(server, backend, False)
        compiled = drawn(server, backend, True)
    good, rows = True, []
    for i, name in enumerate(PROMPTS):
        changed, seen, noise = worst(compiled[i], plain[i]), worst(compiled[i], base_compiled[i]), worst(base_compiled[i], base[i])
        good = good and changed < ROUNDING and (seen > SEEN) == (i == 0)
        rows.append(f"| {name} | {noise:.1e} | {changed:.1e} | {seen:.1e} |")
    text = f"""# Compiled

Written by `python -m benchmarks.performance.compiled`: torch {torch.__version__}, backend {backend}; the demo model, 4 steps. \
Largest difference between latents, relative to the largest value.

| prompt | base model, compiled vs not | with the concept, compiled vs not | compiled, with vs without the concept |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""
    (RESULTS / "compiled.md").write_text(text, encoding="utf-8")
    steps.say(text)
    return not good


if __name__ == "__main__":
    steps.exit_with(main)
