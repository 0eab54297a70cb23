"""What can go wrong, in words for the person who made it: every message names the input, its fault and the remedy."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence

MOST, FEW = 24, 8
"""More names than `MOST` are not listed in a message, but `FEW` of them."""
ITEMS = 5
"""Numbers of items that a message lists."""


class ScorefieldError(Exception):
    """An error whose one-line message is all that the reader needs; the command line prints it and exits."""


class InputError(ScorefieldError, ValueError):
    """An argument, option, file or folder that cannot be used as it is."""


class Answered(InputError):
    """What was asked in place of a value, such as which ones there are; the command line prints it and exits with 0."""


class CheckpointError(InputError):
    """A run folder or checkpoint that is missing, damaged, or belongs to something else."""


class OutputError(ScorefieldError, OSError):
    """A file that could not be written: a full disk, a missing permission."""


class DivergedError(ScorefieldError, ArithmeticError):
    """A training loss that is no longer a finite number."""


class ScorefieldWarning(UserWarning):
    """One line on something that was repaired or left out."""


def closest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: '; did you mean X?', or the names when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    shown = names if len(names) <= MOST else [*names[:FEW], f"{len(names) - FEW} others"]
    return f"; did you mean {near[0]}?" if near else f"; choose one of {', '.join(shown)}"


def named(numbers: Sequence[int]) -> str:
    """Numbers of items in words: '3, 10, 77', the first five of many."""
    rest = len(numbers) - ITEMS
    shown = ", ".join(str(i) for i in numbers[:ITEMS])
    return f"{shown} and {rest:,} more" if rest > 0 else shown


def cannot_write(what: object, error: OSError) -> OutputError:
    """The one-line form of an operating-system error met while writing `what`."""
    if isinstance(error, OutputError):
        return error
    remedies = {
        errno.ENOSPC: "the disk is full; free some space or choose another place",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another place",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another place",
        errno.EEXIST: "a part of the path is a file, not a folder; choose another place",
        errno.EACCES: "permission denied; choose a place you may write to",
        errno.EPERM: "permission denied; choose a place you may write to",
        errno.EROFS: "the file system is read-only; choose a place you may write to",
        errno.EISDIR: "it is a folder; name a file",
    }
    code = error.errno or 0
    reason = remedies.get(code) or (os.strerror(code) if code else str(error)) + "; choose another place"
    return OutputError(f"cannot write {what}: {reason}")


def cannot_read(what: object, error: OSError) -> InputError:
    """The one-line form of an operating-system error met while reading `what`."""
    remedies = {
        errno.ENOENT: "it does not exist; check the path",
        errno.ENOTDIR: "it does not exist (a part of the path is a file); check the path",
        errno.EACCES: "permission denied; make it readable",
        errno.EISDIR: "it is a folder; name a file",
    }
    reason = remedies.get(error.errno or 0) or (error.strerror or str(error)) + "; check the path"
    return InputError(f"cannot read {what}: {reason}")
