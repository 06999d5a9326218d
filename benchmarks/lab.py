"""Shared parts of the benchmarks: a server that generates images, and the judges."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.world.judges import Judges
from demo.world import SIDE
from scripts.generate.make_workflows import SAMPLER
from scripts.harness.graphs import Graph, Link
from scripts.harness.server import Server
from scripts.setup import bootstrap

RESULTS = Path(__file__).with_name("results")
SAMPLING = {name: value for name, value in SAMPLER.items() if name != "seed"}
"""The sampler's settings of the demo."""


class Lab:
    """A running server and the judges of its images."""

    def __init__(self, server: Server) -> None:
        self.server, self.judges = server, Judges.load()

    def pictures(self, graph: Graph, *images: Link) -> list[Tensor]:
        """Run a graph and return each of these IMAGEs, as float [B, H, W, 3] in 0…1."""
        keys = [graph.add("PreviewImage", images=image) for image in images]
        history = self.server.run(graph.nodes)
        return [torch.stack([read(path) for path in self.server.outputs(history, key, "temp")]) for key in keys]


@contextlib.contextmanager
def open_labs(setup: bootstrap.Setup, base: Path, servers: int = 1) -> Iterator[list[Lab]]:
    """Start `servers` servers on a base directory, which share the CPU cores; they run within the context."""
    threads = max(1, (os.cpu_count() or 1) // servers) if servers > 1 else None
    with contextlib.ExitStack() as opened:
        yield [
            Lab(opened.enter_context(Server(setup, base=base, threads=threads, log_name=f"server-{i}.log"))) for i in range(servers)
        ]


def draw(
    graph: Graph,
    model: Link,
    positive: Link,
    negative: Link,
    vae: Link,
    seed: int,
    count: int,
    side: int = SIDE,
    wide: int = 0,
    cfg: float = SAMPLER["cfg"],
) -> tuple[Link, Link]:
    """Add the nodes that sample and decode `count` images, `side` pixels high and `wide` (by default `side`) pixels wide.

    Returns:
        The latents and the images.
    """
    empty = graph.add("EmptyLatentImage", width=wide or side, height=side, batch_size=count)
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": [empty, 0]}
    samples = [graph.add("KSampler", seed=seed, **links, **SAMPLING | {"cfg": cfg}), 0]
    return samples, [graph.add("VAEDecode", samples=samples, vae=vae), 0]


def part(graph: Graph, i: int, count: int = 2) -> Link:
    """Add a mask for an image of `count` characters, white where the i-th from the left is."""
    black, white = (graph.add("SolidMask", value=v, width=w, height=SIDE) for v, w in ((0.0, count * SIDE), (1.0, SIDE)))
    return [graph.add("MaskComposite", destination=[black, 0], source=[white, 0], x=SIDE * i, y=0, operation="add"), 0]


def read(path: Path) -> Tensor:
    """Read an image as float [H, W, 3] in 0…1."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255


def percent(values: list[bool]) -> str:
    """Format the share of true values."""
    return f"{100 * sum(values) / len(values):.0f} % ({sum(values)} of {len(values)})"
