"""Crop the template browser's thumbnails from the documentation's pictures: `python -m scripts.generate.make_thumbnails`."""

from __future__ import annotations

from PIL import Image

from scripts.generate.make_docs import LABEL, MARGIN, PICTURES, SIDE
from scripts.generate.make_workflows import SD15_PREFIX, TRANSFORMERS
from scripts.harness import demo_job
from scripts.setup import bootstrap

Box = tuple[int, int, int, int]

THUMBNAIL = 320


def cells(*places: tuple[int, int], wide: int = SIDE) -> list[Box]:
    """Return the boxes of the pictures at these columns and rows of a sheet by `make_docs.sheet`, all of the same width."""
    corners = [(MARGIN + x * (wide + MARGIN), LABEL + y * (SIDE + MARGIN)) for x, y in places]
    return [(x, y, x + wide, y + SIDE) for x, y in corners]


SQUARE = cells((0, 0), (1, 0), (0, 1), (1, 1))


def on_contact_sheet(column: int, row: int) -> Box:
    """Return the box of the first picture of a group on the sheet by `demo_job.contact_sheet`."""
    group = demo_job.EACH * 2 * demo_job.TALL + 2 * demo_job.MARGIN
    x = demo_job.LABEL_WIDTH + column * group
    y = demo_job.TALL + 2 * demo_job.MARGIN + 2 * demo_job.HEADER + row * (demo_job.TALL + demo_job.MARGIN)
    return x, y, x + demo_job.TALL, y + demo_job.TALL


def on_grid(column: int, row: int) -> Box:
    """Return the box of a picture on the sheet of a training, which has no labels beside its rows (see `labelled_grid`)."""
    x, y = 19 + column * (SIDE + 9), 41 + row * (SIDE + 9)
    return x, y, x + SIDE, y + SIDE


PLACES = [on_contact_sheet(2, row) for row in range(4)]
"""The concept in four places."""
CUT: dict[str, tuple[str, list[Box]]] = {
    "compare_settings": ("compare_settings", [(0, 0, 644, 644)]),
    "export_a_concept": ("export_a_concept", SQUARE),
    "find_the_bias": ("find_the_bias", [(0, 0, 336, 336)]),
    "import_a_concept": ("import_a_concept", SQUARE),
    "inspect_gates": ("inspect_gates", [(0, 0, 310, 310)]),
    "keep_layout": ("keep_layout", SQUARE),
    "keep_layout_of_a_picture": ("keep_layout_of_a_picture", cells((0, 0), (1, 0), (2, 0))),
    "lock_keys_globally": ("lock_keys_globally", SQUARE),
    "measure_a_text_encoder": ("train_without_painting", cells((2, 0), (3, 0), (0, 0), (1, 0))),
    "see_attention": ("see_attention", [(90, 34, 282, 226)]),
    "teach_a_word_alone": ("teach_a_word_alone", SQUARE),
    "schedule_a_concept": ("schedule_a_concept", SQUARE),
    "share_a_workflow": ("contact_sheet", PLACES),
    "train_a_concept": ("train_without_painting", cells((0, 0), (1, 0), (2, 0), (3, 0))),
    "train_with_captions": ("train_with_captions", [on_grid(column, row) for row in (0, 1) for column in (0, 6)]),
    "train_without_painting": ("train_without_painting", SQUARE),
    "two_places": ("two_places", cells((0, 0), (1, 0), wide=2 * SIDE)),
    "use_concepts": ("contact_sheet", PLACES),
    "use_two_concepts": ("two_places", cells((0, 1), (1, 1), wide=2 * SIDE)),
}
"""Maps a workflow to its picture and the boxes shown: one square, up to four in two rows, or two that are twice as wide as high."""


def main() -> None:
    """Create all thumbnails."""
    for workflow, (name, boxes) in CUT.items():
        with Image.open(PICTURES / f"{name}.png") as picture:
            found = [picture.convert("RGB").crop(box) for box in boxes]
        others = tuple(f"{kind.name}_" for kind in TRANSFORMERS) if workflow in ("train_a_concept", "use_concepts") else ()
        for prefix in ("", SD15_PREFIX, *others):
            tiled(found).save(bootstrap.ROOT / "workflows" / f"{prefix}{workflow}.jpg", quality=85, optimize=True)


def tiled(pictures: list[Image.Image]) -> Image.Image:
    """Tile pictures into one square thumbnail."""
    square = pictures[0].width == pictures[0].height
    across, down = (1 if len(pictures) == 1 or not square else 2), (1 if len(pictures) == 1 else 2)
    wide, high = THUMBNAIL // across, THUMBNAIL // down
    drawn = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    for i, each in enumerate(pictures):
        drawn.paste(each.resize((wide, high), Image.Resampling.LANCZOS), (i % across * wide, i // across * high))
    return drawn


if __name__ == "__main__":
    main()
