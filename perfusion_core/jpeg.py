"""The size of a JPEG picture, read only from its header, so that untrusted pictures are checked before anything decodes them."""

FRAMES = {0xC0, 0xC1, 0xC2}
"""Markers of the frames that every viewer knows: baseline, extended sequential and progressive."""
SCAN = 0xDA
BEFORE_SCAN = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}
"""Markers of the other segments that may come before the first scan: tables, application data, comments."""


def size_of(content: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels, or None unless this is a JPEG picture of 8 bits with one frame before its first scan.

    Decoders are lenient, each in its own way: they skip bytes between segments, or use the last of two frames. Only a header that
    all of them read alike is accepted. Whether the rest can be decoded is not checked.
    """
    if content[:2] != b"\xff\xd8":
        return None
    at, size = 2, None
    while at + 4 <= len(content) and content[at] == 0xFF:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        segment = content[at + 4 : at + 2 + length]
        if marker == SCAN:
            return size
        if marker in FRAMES and size is None and len(segment) >= 6 and segment[0] == 8:
            size = int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")
        elif marker not in BEFORE_SCAN or length < 2:
            return None
        at += 2 + length
    return None
