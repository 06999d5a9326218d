"""Compare settings of concepts side by side (the paper's Fig. 7)."""

import itertools
import re
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.sd import VAE
from comfy.utils import ProgressBar
from comfy_api.latest import io

from ..perfusion_core import PerfusionError
from . import host
from .io_types import CATEGORY, validation_result
from .picture_grid import labelled_grid

MOST = 100
"""Maximum number of pictures in a comparison."""

CHOICES = {
    "bias": ("biases", "between -10 and 10", lambda x: -10 <= x <= 10),
    "temperature": ("temperatures", "above 0 and at most 10", lambda x: 0 < x <= 10),
    "strength": ("strengths", "between 0 and 1", lambda x: 0 <= x <= 1),
}
"""Setting -> its plural, its valid range in words, and a predicate that tests a value."""
ACROSS = ("temperature", "strength")
"""Settings that the columns can vary."""


def numbers(text: str, setting: str) -> list[float]:
    """Parse the values of a setting from a text such as "0.3, 0.45, 0.6".

    Raises:
        PerfusionError: if there is no value, or one that is not a number or is out of the setting's range.
    """
    plural, bounds, fits = CHOICES[setting]
    words = re.findall(r"[^\s,;]+", text)
    if not words:
        raise PerfusionError(f"A comparison needs at least one {setting}; enter {plural} such as 0.3, 0.45, 0.6.")
    found = []
    for word in words:
        try:
            value = float(word)
        except ValueError:
            raise PerfusionError(f"{word[:80]!r} is not a number; enter {plural} such as 0.3, 0.45, 0.6.") from None
        if not fits(value):
            raise PerfusionError(f"A {setting} must be {bounds}, not {word[:80]}.")
        found.append(value)
    return found


class PerfusionSweep(io.ComfyNode):
    """Samples a model with concepts under several settings."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Return the node's schema."""
        samplers, schedulers = host.samplers()
        return io.Schema(
            node_id="PerfusionSweep",
            display_name="Compare Settings (Perfusion)",
            category=CATEGORY,
            description="Samples a prompt with several biases and several temperatures or strengths, and arranges the images in "
            "one labelled grid: the quickest way to find settings that suit a concept. Each image is exactly what KSampler "
            "returns with those settings.",
            search_aliases=["perfusion", "xy plot", "x/y plot", "grid", "sweep", "compare", "bias", "temperature", "strength"],
            inputs=[
                io.Model.Input("model", tooltip="The model from Apply Concept; LoRAs and other patches on it are kept."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt with the trigger word, encoded with the CLIP from Apply Concept."
                ),
                io.Conditioning.Input("negative", tooltip="The negative prompt."),
                io.Latent.Input("latent_image", tooltip="The latent to start from; only the first of a batch is used."),
                io.String.Input("biases", default="0.3, 0.45, 0.6", tooltip="One row for each value: numbers separated by commas."),
                io.Combo.Input(
                    "across",
                    options=list(ACROSS),
                    default="temperature",
                    tooltip="What varies from column to column. All other settings keep the concept's values.",
                ),
                io.String.Input(
                    "values",
                    default="0.05, 0.15, 0.3",
                    tooltip="One column for each value. Temperatures must be above 0. Strengths range from 0 to 1; at 0 the model "
                    "runs without the concept's edit, but the learned word is still used.",
                ),
                io.String.Input(
                    "trigger", default="", tooltip="Trigger word of the concept to vary, such as <my-teddy>. Empty: all concepts."
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=False,
                    tooltip="Seed of the noise; the same in all cells.",
                ),
                io.Int.Input(
                    "seeds",
                    default=1,
                    min=1,
                    max=MOST,
                    tooltip="Images in each cell, next to each other: seed, seed + 1, and so on.",
                ),
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="Sampling steps for each image."),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance: how much weight the prompt carries.",
                ),
                io.Combo.Input("sampler_name", options=samplers, default="ddim", tooltip="As in KSampler."),
                io.Combo.Input("scheduler", options=schedulers, default="normal", tooltip="As in KSampler."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1, part of the latent is kept, as in KSampler.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="All images in one labelled grid; small ones are enlarged."),
                io.Image.Output(display_name="images", tooltip="The separate images, row by row."),
            ],
        )

    @classmethod
    def validate_inputs(cls, biases: str | None, across: str | None, values: str | None) -> bool | str:
        """Reject texts that are not lists of valid numbers for their setting."""

        def check() -> None:
            if across not in (None, *ACROSS):
                raise PerfusionError(f"The columns of a comparison can vary {' or '.join(ACROSS)}, not {across!r}.")
            if biases is not None:
                numbers(biases, "bias")
            if None not in (across, values):
                numbers(values, across)

        return validation_result(check)

    @classmethod
    def execute(
        cls,
        model: ModelPatcher,
        vae: VAE,
        biases: str,
        across: str,
        values: str,
        trigger: str,
        seed: int,
        seeds: int,
        steps: int,
        **sampling: Any,
    ) -> io.NodeOutput:
        """Sample all cells, then decode them, so that a small graphics card loads each model once."""
        host.check_vae(vae)
        rows, columns = numbers(biases, "bias"), numbers(values, across)
        count = len(rows) * len(columns) * seeds
        if count > MOST:
            raise PerfusionError(
                f"{len(rows)} biases × {len(columns)} {CHOICES[across][0]} × {seeds} seeds make {count} images, but a comparison "
                f"can have at most {MOST}; use fewer values or seeds."
            )
        bar, latents = ProgressBar(count * steps), []

        def show(step: int, preview: host.Preview | None) -> None:
            bar.update_absolute(len(latents) * steps + min(step, steps), preview=preview)

        for bias, value in itertools.product(rows, columns):
            changed = host.model_with_settings(model, trigger.strip(), **{"bias": bias, across: value})
            for offset in range(seeds):
                latents.append(host.sample(changed, seed=(seed + offset) % 2**64, steps=steps, after_step=show, **sampling))
        pictures = []
        for latent in latents:
            host.check_interrupt()
            pictures.append(host.decoded(vae, latent))
        images = torch.cat(pictures)
        named = [f"bias {bias:g}" for bias in rows], [f"{across} {value:g}" for value in columns]
        return io.NodeOutput(labelled_grid(images, *named), images)


NODES = [PerfusionSweep]
