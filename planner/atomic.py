"""Files that are whole or absent: written beside their place, then moved over it."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from planner.errors import InputError


def make_folder(folder: Path) -> None:
    """Create a folder, with its parents, and make sure that files can be made in it.

    Raises InputError naming the folder and the reason when they cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = _beside(folder / "probe")
        os.close(_create(probe))
        probe.unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot write here: {_reason(error)}") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, line ends as they are; readers see the old file or the new, never a part.

    Raises InputError naming the file and the reason when it cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes as `write_text` does text."""
    target = path.resolve()  # a link stays, what it points to changes
    if target.exists() and not target.is_file():
        raise InputError(f"{path}: cannot be written: it is not a file")
    temporary = _beside(target)
    try:
        handle = _create(temporary)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {_reason(error)}") from error


def _beside(path: Path) -> Path:
    # In the same folder, because a move is only atomic within one file system.
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _create(path: Path) -> int:
    # Not tempfile: its files are private, and a plan should get the permissions that umask gives.
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    return os.open(path, flags, 0o666)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
