"""The display of a running training: pictures of the concept so far, the loss, and the remaining time."""

import time
from collections.abc import Sequence

import torch
from comfy.utils import ProgressBar
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..charts import loss_image, to_pil
from ..picture_grid import labelled_grid
from .training_pictures import Sized

SIDE, LINE = 288, 26
"""Side of each half of the preview, and height of its heading, in pixels."""
REDRAWN = 2.0
"""Seconds between redraws of the loss."""
IN_A_ROW, TILE = 5, 128
"""Maximum number of training pictures shown before training, and the side of each in pixels."""
ON_SHEET = 12
"""Maximum number of pictures on the sheet of a training."""


def format_duration(seconds: float) -> str:
    """Format a duration for display: 40 s, 3 min, 1 h 20 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def add_heading(parts: list[Image.Image], heading: str) -> Image.Image:
    """Arrange pictures of one height side by side under a heading."""
    whole, x = Image.new("RGB", (sum(part.width for part in parts), parts[0].height + LINE), "white"), 0
    for part in parts:
        whole.paste(part, (x, LINE))
        x += part.width
    size = next((size for size in range(16, 8, -1) if ImageFont.load_default(size).getlength(heading) <= whole.width - 12), 8)
    ImageDraw.Draw(whole).text((6, 3), heading, "black", ImageFont.load_default(size))
    return whole


def tile(picture: Tensor, high: int) -> Image.Image:
    """Return a picture [h, w, 3] in 0…1 scaled to a height of `high` pixels."""
    height, width = picture.shape[:2]
    return to_pil(picture).resize((max(1, round(high * width / height)), high), Image.Resampling.BICUBIC)


def show_lesson(pictures: Sequence[Sized], plain: Tensor | None = None) -> None:
    """Show on the node what is about to be learned: the training pictures, darkened outside of their masks.

    `plain` [K, h, w, 3], the model's pictures of the superclass, are shown beside them once they have been generated.
    """
    seen = [each for group in pictures for each in group.images * (0.25 + 0.75 * group.masks[..., None])]
    parts = [tile(each, TILE) for each in [*seen[:IN_A_ROW], *([] if plain is None else plain[:1])]]
    heading = "Preparing: training pictures" + (f" (+{len(seen) - IN_A_ROW} more)" if len(seen) > IN_A_ROW else "")
    heading += "" if plain is None else ", with an image of the plain word"
    ProgressBar(1).update_absolute(0, 1, ("JPEG", add_heading(parts, heading), None))


class Progress:
    """Progress of one run of a training, shown on the node, from the step that it starts or resumes at to the last."""

    def __init__(self, step: int, steps: int) -> None:
        """Start the display at `step` completed steps of `steps`."""
        self.first, self.steps, self.began, self.drawn = step, steps, time.monotonic(), 0.0
        self.portraits: list[tuple[int, Tensor]] = []
        self.bar = ProgressBar(steps)
        self.bar.update_absolute(step, steps)

    def portrait(self, step: int, pictures: Tensor) -> None:
        """Add pictures [K, h, w, 3] in 0…1 of the concept after a step; they are shown with the next update.

        Of many, every second one is dropped: the sheet shows few, and they take memory.
        """
        self.portraits.append((step, pictures.cpu()))
        if len(self.portraits) > 2 * ON_SHEET:
            self.portraits = [*self.portraits[:-1:2], self.portraits[-1]]
        self.drawn = 0.0

    def update(self, losses: list[float]) -> None:
        """Report a completed step; `losses` has one value per completed step."""
        now, preview = time.monotonic(), None
        if now - self.drawn >= REDRAWN or len(losses) == self.steps:
            preview, self.drawn = ("JPEG", self._drawn(losses), None), now
        self.bar.update_absolute(len(losses), self.steps, preview)

    def _drawn(self, losses: list[float]) -> Image.Image:
        step = len(losses)
        left = (time.monotonic() - self.began) / max(1, step - self.first) * (self.steps - step)
        halves = [loss_image(losses, SIDE, SIDE, self.steps)]
        if self.portraits:
            halves = [*(tile(picture, SIDE) for picture in self.portraits[-1][1]), *halves]
        return add_heading(
            halves, f"step {step} of {self.steps}" + (f", about {format_duration(left)} left" if step < self.steps else "")
        )

    def sheet(self, last: Tensor) -> Tensor:
        """Arrange the pictures of up to ON_SHEET steps, [1, H, W, 3]: a column for each step, a row for each preview.

        `last` [K, h, w, 3] are those of the training's result.
        """
        shown = [*self.portraits, (self.steps, last.cpu())]
        if len(shown) > ON_SHEET:
            shown = [shown[round(i * (len(shown) - 1) / (ON_SHEET - 1))] for i in range(ON_SHEET)]
        columns = [*(f"step {step}" for step, _ in shown[:-1]), "the concept"]
        return labelled_grid(torch.stack([pictures for _, pictures in shown], 1).flatten(0, 1), [""] * len(last), columns)
