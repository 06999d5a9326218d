"""Opens pictures that may be broken or hostile: huge ones are not decoded, and all of Pillow's errors become one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from perfusion_core import PerfusionError

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP")
"""Formats that are read, whatever the file's name. Pillow supports others that start programs, such as PostScript."""
MAX_PIXELS = 64 * 2**20
"""Maximum width times height of a picture."""


@contextmanager
def opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open a picture for this context, with only its header read; `name` identifies it in errors.

    Raises:
        PerfusionError: it is not in one of `FORMATS`, has more than `MAX_PIXELS` pixels, or cannot be decoded in the context.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise PerfusionError(
                    f"{name} is {width} × {height} pixels, more than the limit of {MAX_PIXELS // 10**6} million; save it at a "
                    "smaller size."
                )
            yield image
    except PerfusionError:
        raise
    except Exception as error:  # for broken pictures Pillow raises about a dozen kinds of errors, few of them documented
        raise PerfusionError(f"{name} cannot be opened as an image; remove it, or save it again.") from error
