"""Safetensors files: atomic writes, and reads that treat every file as untrusted."""

import contextlib
import json
import os
import re
import secrets
import stat
import struct
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from . import PerfusionError
from .printable import printable

MAX_HEADER = 2**20
MAX_DIMENSIONS = 8
LONGEST_NAME = 100
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *([.:].*)?$", re.IGNORECASE)
"""Names that stand for devices on Windows, in every folder and with every extension."""
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def shown(path: Path) -> str:
    """Return a file's name for use in a message: one line, non-printable characters escaped, at most LONGEST_NAME characters."""
    name = printable(path.name)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def stays_inside(name: str, windows: bool = os.name == "nt") -> bool:
    """Return whether a relative path stays within its folder, judged only by its text, without calling the file system.

    On Windows, looking for a path such as //host/share connects to that host, and opening COM1 or NUL opens a device.
    """
    path = PureWindowsPath(name) if windows else PurePosixPath(name)
    return not (path.anchor or ".." in path.parts or "\0" in name or (windows and any(map(DEVICE.match, path.parts))))


def require(condition: bool, path: Path, wrong: str) -> None:
    """Raise PerfusionError about a file unless the condition holds."""
    if not condition:
        raise PerfusionError(f"{shown(path)} cannot be used: {wrong}.")


def read(path: Path, max_bytes: int, dtypes: tuple[torch.dtype, ...] = DTYPES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of a safetensors file of at most `max_bytes`; the tensors are finite and of `dtypes`.

    Raises:
        PerfusionError: the file is missing, too large or broken, or contains NaN, infinity, other dtypes or too many dimensions.
    """
    return parse(read_bytes(path, max_bytes), path, dtypes)


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """Return the content of a file; raise PerfusionError if it is missing, unreadable or larger than `max_bytes`."""
    try:
        require(path.is_file(), path, "there is no such file")
        size = path.stat().st_size
        require(size <= max_bytes, path, f"it is {size} bytes, more than the limit of {max_bytes} for such a file")
        return path.read_bytes()
    except OSError as error:
        raise PerfusionError(f"{shown(path)} cannot be read: {error.strerror or error}.") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors; empty if it has none or cannot be read."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            metadata = json.loads(file.read(length)).get("__metadata__") if length <= MAX_HEADER else None
    except (OSError, ValueError, AttributeError, RecursionError, struct.error):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def parse(content: bytes, path: Path, dtypes: tuple[torch.dtype, ...] = DTYPES) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors, finite and of `dtypes`, and the metadata of a safetensors file's bytes; `path` names it in errors.

    Raises:
        PerfusionError: the bytes are broken, or contain NaN, infinity, other dtypes or too many dimensions.
    """
    broken = "it is not a complete safetensors file; it may be truncated, or it may be another kind of file"
    require(len(content) >= 8, path, broken)
    (length,) = struct.unpack("<Q", content[:8])
    require(length <= min(MAX_HEADER, len(content) - 8), path, broken)
    try:
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        # Without its cause: the library quotes the file in its error, which the host prints unescaped.
        raise PerfusionError(f"{shown(path)} cannot be used: {broken}.") from None
    require(isinstance(metadata, dict), path, broken)
    for name, tensor in tensors.items():
        told = name if name.isprintable() and len(name) <= 80 else f"{name[:80]!r}"
        require(tensor.dtype in dtypes, path, f"{told} contains {tensor.dtype}, not floating-point numbers of 16 to 64 bits")
        require(
            tensor.ndim <= MAX_DIMENSIONS, path, f"{told} has {tensor.ndim} dimensions, more than the limit of {MAX_DIMENSIONS}"
        )
        require(bool(tensor.isfinite().all()), path, f"{told} contains NaN or infinity")
    return tensors, metadata


def write_all(files: Mapping[Path, tuple[Mapping[str, Tensor], Mapping[str, str]]]) -> None:
    """Write several new files, path -> tensors and metadata: either all of them or none.

    Raises:
        PerfusionError: as `write`; files that were already written are deleted.
    """
    written = []
    try:
        for path, (tensors, metadata) in files.items():
            write(path, tensors, metadata)
            written.append(path)
    except PerfusionError:
        for path in written:
            path.unlink(missing_ok=True)
        raise


class FileTakenError(Exception):
    """A file already exists where a new one was to be written."""


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], overwrite: bool = True) -> None:
    """Write a safetensors file under a temporary name beside `path`, then rename it. Equal content gives identical bytes.

    Raises:
        PerfusionError: the disk is full or not writable; nothing is left behind.
        FileTakenError: `overwrite` is False and a file exists at `path`, even if another process has only just created it.
    """
    content = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, dict(metadata))
    write_bytes(path, _in_order(content, metadata), overwrite)


def _in_order(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file's bytes with its metadata in the given order; the library writes it in random order."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length]) | {"__metadata__": dict(metadata)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensor data must start at a multiple of 8
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


def write_bytes(path: Path, content: bytes, overwrite: bool = True) -> None:
    """Write a file atomically; raise as `write` does.

    The user decides who may read it: a new file follows the umask, and a replaced file keeps the old one's permissions. A file that
    was made private stays private, as if it were written in place.
    """
    scratch = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The system applies the umask. Reading it would mean changing it, for all threads.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(descriptor, "wb") as file:
            if overwrite:
                _take_mode(scratch, path)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not (overwrite or linked(scratch, path)):
            raise FileTakenError(shown(path))
        os.replace(scratch, path)
    except OSError as error:
        raise PerfusionError(
            f"{shown(path)} was not saved: {error.strerror or error}; free some space there, or choose a folder that can be "
            "written to."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(scratch)


def _take_mode(scratch: Path, path: Path) -> None:
    """Give `scratch` the permissions of the file at `path`, if there is one; its owner may always read and write it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode) & 0o777 | 0o600
    except FileNotFoundError:
        return
    if mode != stat.S_IMODE(scratch.stat().st_mode):  # some file systems have only one mode, and refuse to set any
        os.chmod(scratch, mode)


def linked(scratch: Path, path: Path) -> bool:
    """Hard-link `scratch` to `path` and return True, or return False if `path` exists; both in one atomic step.

    On file systems without hard links (FAT), no link is made, and the result is whether `path` is free.
    """
    try:
        os.link(scratch, path)
    except FileExistsError:
        return False
    except OSError:
        return not os.path.lexists(path)
    return True
