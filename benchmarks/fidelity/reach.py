"""Measure how well a concept can be learned by changing only some layers: LoRAs of those layers, compared with Perfusion's edit.

    python -m benchmarks.fidelity.reach

Trains on the development concepts with the pictures, masks, noises and steps of Train Concept. Shows in which layers of this base
a character's appearance is stored, and thus what to expect of a method that may change only one kind of layer. Writes
`results/reach.md`; takes half an hour on two cores. It can be interrupted at any time and resumes where it was.
"""

from __future__ import annotations

import argparse
import importlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.fidelity import characters
from benchmarks.fidelity.bench import OURS, TUNED_ON, whole
from benchmarks.fidelity.concepts import Concept, check_packages
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.trials import SEEDS, Store, Trial
from benchmarks.lab import RESULTS, SAMPLING
from benchmarks.world.judges import Judges
from demo.base import PACKED
from perfusion_fleet import inside
from scripts.setup import bootstrap

SEED = 0
RATE = 3e-3
"""The learning rate that the host's LoRAs were tuned to, here at the first step; it falls as in Train Concept."""
HELD_OUT = 64
"""Number of noises with which a loss is measured: four times as many as in Train Concept."""


@dataclass(frozen=True)
class Change:
    """The UNet weights that may change, and the rank of the change."""

    chosen: Callable[[str], bool]
    """Predicate of a weight's name."""
    rank: int = 8


def of(*parts: str) -> Callable[[str], bool]:
    """Return a predicate: whether a weight's name contains any of `parts`."""
    return lambda name: any(part in name for part in parts)


CROSS, KEYS, VALUES = ".attn2.", ".attn2.to_k.", ".attn2.to_v."
CHANGES: dict[str, Change] = {
    "values of cross-attention, rank 1": Change(of(VALUES), 1),
    "values of cross-attention": Change(of(VALUES)),
    "keys and values of cross-attention": Change(of(KEYS, VALUES)),
    "keys and values of cross-attention, rank 64": Change(of(KEYS, VALUES), 64),
    "all of self-attention": Change(of(".attn1.")),
    "all but cross-attention": Change(lambda name: not of(CROSS)(name)),
    "everything": Change(of("")),
}
ITSELF: dict[str, dict[str, object]] = {
    "Perfusion: values at its own word": {},
    "Perfusion: and keys at its word in fine layers": {"lock": "fine"},
    "Perfusion: and keys at its word in all layers": {"lock": "word"},
}
"""Maps Perfusion's own edits to the widgets in which they differ from the tuned ones. Their keys are unlocked."""


class Bench:
    """The measurements, with the host, the pack and a checkpoint loaded into this process."""

    def __init__(self, setup: bootstrap.Setup) -> None:
        """Enter the host, which is possible only once in a process."""
        inside.enter_with_pack(setup.comfyui)
        self.sampling = importlib.import_module("comfy.sample")
        self.host, self.training = inside.part("nodes.host"), inside.part("perfusion_core.training.loop")
        self.train, self.ready = inside.part("nodes.training.train_concept"), inside.part("nodes.training.training_pictures")
        self.lessons = inside.part("perfusion_core.training.lesson")
        checkpoint = setup.base / "models" / "checkpoints" / bootstrap.CHECKPOINT
        self.model, self.clip, self.vae = importlib.import_module("comfy.sd").load_checkpoint_guess_config(str(checkpoint))[:3]
        self.bed = characters.CharacterBed(Judges.load())
        self.inverse = inside.part("nodes.measure_text_encoder").measure(self.clip, None).inverse()
        self.training.HELD_OUT = HELD_OUT
        self.recipe = whole().best(OURS)
        self.settings = self.settings_with({})
        precision = self.host.best_precision(self.model.load_device)
        self.student = self.host.TrainableModel(self.model, self.clip, precision, self.settings.min_snr)

    def settings_with(self, widgets: Mapping[str, object]) -> Any:
        """Return the settings of the tuned recipe with these widgets changed."""
        return self.train.settings_of({**self.recipe.all_widgets(), **widgets, "seed": SEED})

    @torch.no_grad()
    def lesson(self, concept: Concept) -> Any:
        """Return the Lesson of a concept's pictures, as in Train Concept."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in self.bed.pictures(Path(folder), concept, self.recipe)]
            rgba = torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGBA"))) for file in files]).float() / 255
        (group,) = self.ready.prepare([rgba[..., :3]], [1 - rgba[..., 3]], self.bed.side)
        latents, masks = self.ready.latent_forms(self.model, self.vae, group.images, group.masks, with_small=False)
        return self.lessons.Lesson((self.lessons.Bucket(latents, masks),), self.inverse)

    def ours(self, concept: Concept, widgets: Mapping[str, object]) -> dict[str, float]:
        """Measure Train Concept on a concept."""
        given, settings = self.lesson(concept), self.settings_with(widgets)
        with self.host.gradients_enabled():
            lesson, state = given.to(self.student.device), self.training.initial_state(self.student, concept[1], settings)
            list(self.training.train(self.student, state, lesson, settings))
            loss = self.training.held_out_loss(self.student, state, lesson, settings)
        made = replace(state.concept(self.inverse, "<it>", concept[1], "sd1", settings), key_lock=0.0)
        model, clip = self.host.model_with_edit(self.model, (made,), "exact"), self.host.clip_with_words(self.clip, (made,))
        count = sum(each.numel() for each in state.learned())
        return {"numbers": count, "loss": loss, **self.judged(concept, model, clip, "<it>")}

    def changed(self, concept: Concept, change: Change) -> dict[str, float]:
        """Measure a LoRA of some layers, trained like a concept but with the superclass, which is not changed."""
        given = self.lesson(concept)
        with self.host.gradients_enabled():
            lesson = given.to(self.student.device)
            settings = replace(self.settings, mode=self.training.NO_EDIT)
            state = self.training.initial_state(self.student, concept[1], settings)
            pairs = self.lora(change)
            own = self.student.unet_weights
            optimizer = torch.optim.AdamW([each for pair in pairs.values() for each in pair], RATE, weight_decay=0)
            try:
                for step in range(settings.steps):
                    share = self.training.rates(settings, step)[1] / settings.output_rate
                    optimizer.param_groups[0]["lr"] = share * RATE
                    self.student.unet_weights = own | moved(own, pairs)
                    optimizer.zero_grad()
                    self.loss(state, step, lesson, settings).backward()
                    optimizer.step()
                found = {name: weight.detach() for name, weight in moved(own, pairs).items()}
                self.student.unet_weights = own | found
                loss = self.training.held_out_loss(self.student, state, lesson, settings)
            finally:
                self.student.unet_weights = own
        model = self.model.clone()
        model.add_patches({f"diffusion_model.{name}": (weight - own[name],) for name, weight in found.items()})
        count = sum(each.numel() for pair in pairs.values() for each in pair)
        return {"numbers": count, "loss": loss, **self.judged(concept, model, self.clip, concept[1])}

    def lora(self, change: Change) -> dict[str, tuple[Tensor, Tensor]]:
        """Return by weight's name the factors B, initially 0, and A of its change B A."""
        torch.manual_seed(SEED)
        pairs = {}
        for name, weight in self.student.unet_weights.items():
            if weight.ndim >= 2 and change.chosen(name):
                rows, columns = len(weight), weight[0].numel()
                down = torch.randn(change.rank, columns) / math.sqrt(columns)
                pairs[name] = torch.zeros(rows, change.rank).requires_grad_(), down.requires_grad_()
        return pairs

    def loss(self, state: Any, step: int, lesson: Any, settings: Any) -> Tensor:
        """Return the loss of a step's draw, as `train` computes it."""
        (bucket,) = lesson.buckets
        draw = self.training.BatchSample.of(settings, step, bucket.latents[:, 0])
        distinct, which = draw.prompts.unique(return_inverse=True)
        with torch.no_grad():
            encoded = self.student.encode([draw.texts[i] for i in distinct], state.word)
        shown = draw.pictures, draw.forms()
        prediction, target = self.student.objective(bucket.latents[shown], draw.noise, draw.time, encoded.of_prompts(which), None)
        return self.training.masked_error(prediction, target, bucket.masks[shown])

    @torch.inference_mode()
    def judged(self, concept: Concept, model: Any, clip: Any, word: str) -> dict[str, float]:
        """Generate images with a MODEL and a CLIP, from the noises of all trials, and return their text and likeness scores."""
        prompts, drawn, side = characters.prompts(concept), [], self.bed.side // 8
        how = (SAMPLING["steps"], SAMPLING["cfg"], SAMPLING["sampler_name"], SAMPLING["scheduler"])
        for i, prompt in enumerate(prompts):
            seed, latent = 7000 + 100 * i, torch.zeros(SEEDS, 4, side, side * (1 + prompt.wide))
            noise = self.sampling.prepare_noise(latent, seed)
            both = [clip.encode_from_tokens_scheduled(clip.tokenize(text)) for text in (prompt.text.format(word), "")]
            found = self.sampling.sample(model, noise, *how, *both, latent, disable_pbar=True, seed=seed)
            drawn.append(self.vae.decode(found).clamp(0, 1).float().cpu())
        scores = self.bed.judge(Trial(concept, None, METHODS[OURS].use, (), prompts), drawn)
        return {"text": float(scores.text.mean()), "likeness": float(scores.likeness.mean())}


def moved(own: Mapping[str, Tensor], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return the weights that a LoRA changes, with the change applied."""
    return {name: own[name] + (up @ down).reshape(own[name].shape) for name, (up, down) in pairs.items()}


def page(kept: Mapping[str, dict]) -> list[str]:
    """Return the page with everything measured so far."""
    lines = []
    for name in (*ITSELF, *CHANGES):
        found = [kept[key] for key in (f"{name}/{concept}" for concept in TUNED_ON) if key in kept]
        if len(found) == len(TUNED_ON):
            means = {key: float(np.mean([each[key] for each in found])) for key in ("numbers", "loss", "text", "likeness")}
            lines.append(
                f"| {name} | {means['numbers']:.0f} | {means['loss']:.3f} | {means['text']:.2f} | {means['likeness']:.2f} |"
            )
    return [
        "# How well a concept can be learned by changing only some layers",
        "",
        "Written by `python -m benchmarks.fidelity.reach`.",
        "",
        f"{len(TUNED_ON)} development concepts, trained on the same pictures, masks, noises and number of steps. The other rows "
        "than Perfusion's are LoRAs of rank 8 unless stated otherwise. They change only the layers named, at all words, and learn "
        f"no word; their learning rate is {RATE:g}, to which LoRA is tuned, and falls as Perfusion's do. The loss is measured on "
        "noise samples that training never uses.",
        "",
        "| what may change | numbers learned | loss | text | likeness |",
        "| --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]


def main() -> None:
    """Measure what is missing and write the page after each measurement."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    check_packages()
    store = Store(RESULTS / "reach.json")
    setup = bootstrap.locate()
    store.belongs_to(PACKED)
    bench = Bench(setup)
    for name in (*ITSELF, *CHANGES):
        for concept in TUNED_ON:
            key = f"{name}/{concept}"
            if key not in store.kept:
                found = bench.changed(concept, CHANGES[name]) if name in CHANGES else bench.ours(concept, ITSELF[name])
                store.keep({key: {what: round(value, 4) for what, value in found.items()}})
                print(key, store.kept[key], flush=True)
                (RESULTS / "reach.md").write_text("\n".join(page(store.kept)), encoding="utf-8")


if __name__ == "__main__":
    main()
