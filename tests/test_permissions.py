"""Who may read what is saved: the umask says so of a new file, and the old file of one that is replaced."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from perfusion_core import PerfusionError, safe_files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")


@pytest.fixture
def umask() -> Callable[[int], int]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mask", "wanted"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_new_file_has_what_the_umask_allows(
    umask: Callable[[int], int], tmp_path: Path, mask: int, wanted: int, overwrite: bool
) -> None:
    umask(mask)
    safe_files.write_bytes(tmp_path / "new" / "file", b"x", overwrite)
    assert mode(tmp_path / "new" / "file") == wanted and mode(tmp_path / "new") == 0o777 & ~mask
    assert umask(mask) == mask  # it has not been touched


@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o664, 0o664), (0o644, 0o644), (0o444, 0o644), (0o4755, 0o755)])
@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_a_replaced_file_keeps_what_was_set_for_it(
    umask: Callable[[int], int], tmp_path: Path, mask: int, before: int, after: int
) -> None:
    umask(mask)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    safe_files.write_bytes(path, b"new")
    assert mode(path) == after and path.read_bytes() == b"new"


def test_a_private_file_is_never_readable_on_the_way(
    umask: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "file", []
    path.write_bytes(b"old")
    path.chmod(0o600)

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", look)
    safe_files.write_bytes(path, b"new")
    assert seen == [0o600]


def test_the_umask_is_never_changed_not_even_for_a_moment(
    umask: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is that of all threads."""
    umask(0o077)
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
    threads = [threading.Thread(target=safe_files.write_bytes, args=(tmp_path / str(i), b"x")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


def test_permissions_that_cannot_be_set_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refused)
    with pytest.raises(PerfusionError, match="file was not saved: Operation not permitted"):
        safe_files.write_bytes(path, b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
