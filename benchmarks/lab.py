"""What the benchmarks share: a server that draws, and the judges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.world.judges import Judges
from demo.world import SIDE
from scripts.harness.graphs import Graph, Link
from scripts.harness.server import Server

RESULTS = Path(__file__).with_name("results")
SAMPLING = {"steps": 10, "cfg": 2.5, "sampler_name": "dpmpp_2m", "scheduler": "normal", "denoise": 1.0}


class Lab:
    """A running server, the judges, and what they say."""

    def __init__(self, server: Server) -> None:
        self.server, self.judges = server, Judges.load()

    def pictures(self, graph: Graph, *images: Link) -> list[Tensor]:
        """Run a graph; float [B, H, W, 3] in 0…1 of each of these IMAGEs."""
        keys = [graph.add("PreviewImage", images=image) for image in images]
        history = self.server.run(graph.nodes)
        return [torch.stack([read(path) for path in self.server.outputs(history, key, "temp")]) for key in keys]


def draw(
    graph: Graph, model: Link, positive: Link, negative: Link, vae: Link, seed: int, count: int, side: int = SIDE, wide: int = 0
) -> tuple[Link, Link]:
    """`count` pictures, `side` pixels each or as wide as that is said: their latents, and them."""
    empty = graph.add("EmptyLatentImage", width=wide or side, height=side, batch_size=count)
    links = {"model": model, "positive": positive, "negative": negative, "latent_image": [empty, 0]}
    samples = [graph.add("KSampler", seed=seed, **links, **SAMPLING), 0]
    return samples, [graph.add("VAEDecode", samples=samples, vae=vae), 0]


def half(graph: Graph, x: int) -> Link:
    """A mask of a picture of two, white from column x to x + SIDE."""
    black, white = (graph.add("SolidMask", value=v, width=w, height=SIDE) for v, w in ((0.0, 2 * SIDE), (1.0, SIDE)))
    return [graph.add("MaskComposite", destination=[black, 0], source=[white, 0], x=x, y=0, operation="add"), 0]


def read(path: Path) -> Tensor:
    """A picture as float [H, W, 3] in 0…1."""
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).float() / 255


def percent(values: list[bool]) -> str:
    """Share of what is true."""
    return f"{100 * sum(values) / len(values):.0f} % ({sum(values)} of {len(values)})"
