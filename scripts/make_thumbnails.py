"""Cut the template browser's thumbnails out of the documentation's pictures: `python -m scripts.make_thumbnails`."""

from __future__ import annotations

from PIL import Image

from scripts import bootstrap
from scripts.make_docs import LABEL, MARGIN, PICTURES, SIDE
from scripts.make_workflows import SD15_PREFIX

Box = tuple[int, int, int, int]

THUMBNAIL = 320


def cells(*places: tuple[int, int]) -> list[Box]:
    """The pictures at these columns and rows of a sheet by `make_docs.sheet`."""
    corners = [(MARGIN + x * (SIDE + MARGIN), LABEL + y * (SIDE + MARGIN)) for x, y in places]
    return [(x, y, x + SIDE, y + SIDE) for x, y in corners]


SQUARE = cells((0, 0), (1, 0), (0, 1), (1, 1))
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
    "share_a_workflow": ("contact_sheet", [(794, 213, 1050, 469)]),
    "train_a_concept": ("train_without_painting", cells((0, 0), (1, 0), (2, 0), (3, 0))),
    "train_without_painting": ("train_without_painting", SQUARE),
    "two_places": ("two_places", SQUARE),
    "use_concepts": ("contact_sheet", [(794, 213, 1050, 469)]),
}
"""Workflow -> the picture and what is shown of it: one square, or up to four in two rows."""


def main() -> None:
    """Cut them all."""
    for workflow, (name, boxes) in CUT.items():
        with Image.open(PICTURES / f"{name}.png") as picture:
            found = [picture.convert("RGB").crop(box) for box in boxes]
        for prefix in ("", SD15_PREFIX):
            tiled(found).save(bootstrap.ROOT / "workflows" / f"{prefix}{workflow}.jpg", quality=85, optimize=True)


def tiled(pictures: list[Image.Image]) -> Image.Image:
    """Squares as one square."""
    across = 1 if len(pictures) == 1 else 2
    side = THUMBNAIL // across
    drawn = Image.new("RGB", (THUMBNAIL, THUMBNAIL), "white")
    for i, each in enumerate(pictures):
        drawn.paste(each.resize((side, side), Image.Resampling.LANCZOS), (i % across * side, i // across * side))
    return drawn


if __name__ == "__main__":
    main()
