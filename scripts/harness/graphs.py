"""Graphs in API form for tests and benchmarks, and access to their results."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import load_file

from scripts.harness.server import Server
from scripts.setup.bootstrap import CHECKPOINT

TRIGGER = "<my-monster>"
FEW_STEPS = 2
"""Steps of a preview that nobody looks at."""
Link = list


class Graph:
    """A graph under construction. `add` returns the id of a node, whose outputs are `[id, number]`."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict] = {}

    def add(self, class_type: str, **inputs: object) -> str:
        """Add a node and return its id; the keyword `a__b` sets the nested input `a.b`."""
        key = str(len(self.nodes) + 1)
        named = {name.replace("__", "."): value for name, value in inputs.items()}
        self.nodes[key] = {"class_type": class_type, "inputs": named}
        return key

    def checkpoint(self, name: str = CHECKPOINT) -> tuple[Link, Link, Link]:
        """Load a checkpoint, by default the demo's base; return its MODEL, CLIP and VAE."""
        key = self.add("CheckpointLoaderSimple", ckpt_name=name)
        return [key, 0], [key, 1], [key, 2]

    def pictures(self, count: int = 4) -> tuple[Link, Link]:
        """Load the demo's pictures and masks as batches; a single one is not batched, because older hosts need at least two."""
        keys = [self.add("LoadImage", image=f"monster-{i}.png") for i in range(count)]
        if count == 1:
            return [keys[0], 0], [keys[0], 1]
        images = self.add("BatchImagesNode", **{f"images.image{i}": [key, 0] for i, key in enumerate(keys)})
        masks = self.add("BatchMasksNode", **{f"masks.mask{i}": [key, 1] for i, key in enumerate(keys)})
        return [images, 0], [masks, 0]

    def train(self, model: Link, clip: Link, vae: Link, images: Link, masks: Link | None = None, **widgets: object) -> str:
        """Add a short training of the demo's monster.

        Its previews take `FEW_STEPS`, because 20 would take longer than such a training; with `options=None`, it has no options.
        """
        inputs = {
            "superclass": "monster", "trigger": TRIGGER, "steps": 4, "batch": 2, "size": 64, "seed": 0, "word_rate": 3e-4,
            "output_rate": 0.03, "train_bias": 0.75, "train_temperature": 0.1, "lock": "local", "edit_mode": "exact", "flip": 0.5,
            "at_once": 4, "precision": "auto", "preview_every": 0, "min_snr": 0.0,
        }  # fmt: skip
        if masks is not None:
            inputs["masks"] = masks
        if "options" not in widgets:
            inputs["options"] = self.options(preview_steps=FEW_STEPS)
        given = {name: value for name, value in (inputs | widgets).items() if name != "options" or value is not None}
        return self.add("PerfusionTrain", model=model, clip=clip, vae=vae, images=images, **given)

    def options(self, **widgets: object) -> Link:
        """Add further options of a training; the others keep the node's defaults."""
        usual = {
            "captions": "", "captioned": 1.0, "templates": "", "shape": "square", "invert_masks": False, "preview_prompts": "",
            "preview_negative": "", "preview_steps": 20, "preview_cfg": 3.0, "preview_sampler": "ddim",
            "preview_scheduler": "normal", "preset": "as set",
        }  # fmt: skip
        return [self.add("PerfusionTrainingOptions", **usual | widgets), 0]

    def save(self, concept: Link, prefix: str, **widgets: object) -> str:
        """Save a concept."""
        return self.add(
            "PerfusionSaveConcept",
            **{"concept": concept, "filename_prefix": prefix, "overwrite": False, "precision": "float32"} | widgets,
        )

    def load(self, name: str, **settings: object) -> Link:
        """Load a concept, and apply settings to it if any are given."""
        concept = [self.add("PerfusionLoadConcept", concept_name=name), 0]
        if settings:
            given = {"bias": 0.6, "temperature": 0.15, "strength": 1.0, "trigger": ""} | settings
            concept = [self.add("PerfusionConceptSettings", concept=concept, **given), 0]
        return concept

    def combine(self, *concepts: Link) -> Link:
        """Combine several concepts."""
        return [self.add("PerfusionCombineConcepts", **{f"concepts__concept{i}": each for i, each in enumerate(concepts)}), 0]

    def apply(self, model: Link, clip: Link, concept: Link, mode: str = "exact") -> tuple[Link, Link]:
        """Apply concepts."""
        key = self.add("PerfusionApply", model=model, clip=clip, concept=concept, edit_mode=mode)
        return [key, 0], [key, 1]

    def text(self, clip: Link, text: str) -> Link:
        """Encode a prompt with the host's own node."""
        return [self.add("CLIPTextEncode", clip=clip, text=text), 0]

    def sample(
        self,
        model: Link,
        positive: Link,
        negative: Link,
        steps: int = 3,
        cfg: float = 3.0,
        seed: int = 1,
        width: int = 64,
        denoise: float = 1.0,
    ) -> Link:
        """Sample a latent 64 pixels high and `width` pixels wide with the host's KSampler; an image of two things takes 128."""
        empty = self.add("EmptyLatentImage", width=width, height=64, batch_size=1)
        key = self.add(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=[empty, 0], seed=seed, steps=steps, cfg=cfg,
            sampler_name="euler", scheduler="normal", denoise=denoise,
        )  # fmt: skip
        return [key, 0]

    def guided(self, guider: Link, sigmas: str = "14.6, 2.0, 0.0") -> Link:
        """Sample a latent of 64 pixels a side with a guider, at these noise levels."""
        parts = {
            "noise": self.add("RandomNoise", noise_seed=1),
            "sampler": self.add("KSamplerSelect", sampler_name="euler"),
            "latent_image": self.add("EmptyLatentImage", width=64, height=64, batch_size=1),
            "sigmas": self.add("ManualSigmas", sigmas=sigmas),
        }
        return [self.add("SamplerCustomAdvanced", guider=guider, **{name: [key, 0] for name, key in parts.items()}), 0]


_counter = itertools.count()


def latents(server: Server, graph: Graph, *samples: Link) -> list[torch.Tensor]:
    """Run the graph and return these latents as sampled, each float32 [1, 4, 8, width / 8]."""
    prefixes = [f"latents/{next(_counter)}" for _ in samples]
    for prefix, sample in zip(prefixes, samples, strict=True):
        graph.add("SaveLatent", samples=sample, filename_prefix=prefix)
    server.run(graph.nodes)
    return [load_file(next((server.base / "output").glob(f"{prefix}_*.latent")))["latent_tensor"] for prefix in prefixes]


def concepts(server: Server) -> set[Path]:
    """Return the concept files in the server's base directory."""
    return set((server.base / "models" / "perfusion").glob("*.safetensors"))
