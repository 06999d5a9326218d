"""Write a page with the judges' accuracy on characters that they were not trained on."""

from __future__ import annotations

import random
from itertools import compress
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.lab import RESULTS
from benchmarks.world import judge_training as training
from benchmarks.world.judges import QUESTIONS, Judges
from demo import world
from demo.individuals import STYLES

PAGE = RESULTS / "judges.md"
COLUMNS = ("as drawn", "after the autoencoder", "with noised latents")
EACH = 3

HEAD = f"""# What the judges can do

Written by `python -m benchmarks.world.train_judges train`. Tested on {EACH} scenes of each character in the test split: none of the
characters that the judges were trained on, and none of the scenes that define a character's position in their embedding. Figures
are shares of correct answers. *With noised latents*: the same as after the autoencoder, with noise of up to a quarter of the
latents' standard deviation added before decoding, as a sampler may leave behind.

"""


def share(right: list[bool] | Tensor) -> str:
    """Format the share of right answers in per cent."""
    values = torch.as_tensor(right).float()
    return f"{100 * values.mean().item():.1f} %"


def write(judges: Judges, cast: Path, comfyui: Path) -> None:
    """Measure the judges' accuracy and write the page."""
    answers: dict[str, list[list[bool]]] = {name: [[], [], []] for name in QUESTIONS}
    same: dict[str, list[Tensor]] = {}
    errors: list[list[Tensor]] = [[], [], []]
    for kind in STYLES:
        them = world.Cast(cast, kind, "test")
        which = list(range(len(them.individuals)))
        looks = training.scenes(them, which, EACH, random.Random(f"report {kind}"))
        versions = [looks.images, *(training.autoencoded(looks.images, comfyui, noise, 1) for noise in (0.0, 0.25))]
        own = torch.arange(len(which)).repeat_interleave(EACH)
        same[kind] = []
        for i, version in enumerate(versions):
            pictures = version / 255
            said = judges.say_all(pictures)
            for name in QUESTIONS:
                asked = looks.answers[name] != training.UNKNOWN
                if asked.any():
                    wanted = [QUESTIONS[name][n] for n in looks.answers[name][asked].tolist()]
                    answers[name][i] += [a == b for a, b in zip(compress(said[name].best(), asked), wanted, strict=True)]
            same[kind].append((judges.identity(pictures) @ judges.galleries[kind, "test"].T).argmax(1) == own)
            errors[i].append((judges.shades(pictures)[:, 0] - looks.shades[:, 0]).abs().mean(1))
    rows = [f"| {name} | {len(found)} | {' | '.join(share(each) for each in answers[name])} |" for name, found in QUESTIONS.items()]
    others = len(judges.galleries["monster", "test"]) - 1
    lines = [
        "| question | answers | " + " | ".join(COLUMNS) + " |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Which character it is, among {others} others of its kind:",
        "",
        "| kind | " + " | ".join(COLUMNS) + " |",
        "| --- | --- | --- | --- |",
        *(f"| {kind} | {' | '.join(share(each) for each in found)} |" for kind, found in same.items()),
        f"| **all** | {' | '.join(share(torch.cat(each)) for each in zip(*same.values(), strict=True))} |",
        "",
        "Mean error of the body's red, green and blue values: "
        + ", ".join(f"{255 * torch.cat(each).mean().item():.1f} {name}" for each, name in zip(errors, COLUMNS, strict=True))
        + " (out of 255).",
        "",
    ]
    PAGE.write_text(HEAD + "\n".join(lines), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))
