"""Files that are either whole or absent: written beside their place, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from scorefield.errors import InputError, cannot_write

TEMPORARY = ".tmp-"
REFUSED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES, errno.EPERM, errno.ENOSYS)
"""How file systems say that they do not synchronise folders (CIFS, FUSE); the content of the files is flushed all the same."""


def cache_folder() -> Path:
    """Where what can be made again is kept: $SCOREFIELD_CACHE, else scorefield in the user's cache folder."""
    if own := os.environ.get("SCOREFIELD_CACHE"):
        return Path(own)
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "scorefield"
    try:
        return Path.home() / ".cache" / "scorefield"
    except RuntimeError:  # a user without a home, as in some containers and services
        return Path(tempfile.gettempdir()) / f"scorefield-{os.getuid()}"


@contextmanager
def atomic_file(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """A file object whose content appears under `path` when the block ends well, and not at all otherwise.

    What a link names is replaced, not the link; a device or a pipe is written to.

    Raises:
        OutputError: the folder cannot be created or written to, or the disk is full.
    """
    if is_special(path):
        with _opened(path, mode) as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    part = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
        with _open(part, mode) as file:
            yield file
            flush(file)
        os.replace(part, target)
        sync_folder(target.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def is_special(path: str | Path) -> bool:
    """Whether a path names a device, a pipe or a socket, which is written to and never replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _open(path: str | Path, mode: str) -> IO:
    text = None if "b" in mode else "utf-8"
    return open(path, mode, encoding=text, newline="" if text else None)


@contextmanager
def _opened(path: str | Path, mode: str) -> Iterator[IO]:
    try:
        with _open(path, mode) as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` when the block ends well, and is removed otherwise.

    The files written into it must be flushed by the caller (`flush`). An older folder of that name is replaced.

    Raises:
        OutputError: the folder cannot be created or written to, or the disk is full.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
        part.chmod(0o755)  # mkdtemp makes private folders, which a colleague could not read
        yield part
        sync_folder(part)
        if path.exists():
            remove_folder(path)
        os.rename(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that a process killed half-way leaves no part of it under its own name."""
    grave = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    os.rename(path, grave / path.name)
    shutil.rmtree(grave, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed while writing left in `folder`."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def flush(file: IO) -> None:
    """Bring the content of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; not every system lets a folder be opened for that."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in REFUSED:
            raise


def finite(value: Any) -> Any:
    """What JSON can hold: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(name): finite(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_folder(path: str | Path) -> None:
    """Refuse a folder that cannot be made, before anything is worked out that is to be kept there.

    Raises:
        InputError: it, or what it is to be in, is a file.
    """
    try:
        whole = Path(path)
    except TypeError:
        raise InputError(f"out={path!r}: give the folder in which everything is kept") from None
    for part in (whole, *whole.parents):
        if part.exists():
            if not part.is_dir():
                raise InputError(f"cannot write {path}: {part} is not a folder; choose another place")
            return
