"""Chapters that were computed, kept on disk as they come, so that a diagnosis that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from scorefield.diagnose.chapter import Case, Chapter
from scorefield.dtypes import exact
from scorefield.errors import InputError
from scorefield.files import atomic_file
from scorefield.model import ScoreModel, model_hash

FORMAT = "scorefield diagnosis 1"


class Kept:
    """A JSON file of chapters, of one model, its data, a number of samples and a seed; those of another are forgotten.

    Main arguments:
        path: the file; none is read or written where it is None. overwrite: begin anew.

    Raises:
        InputError: a file that is something else.
    """

    def __init__(self, path: Path | None, case: Case, overwrite: bool = False) -> None:
        self.path, self.chapters = path, dict[str, Chapter]()
        if path is None:
            return
        self.of = fingerprint(case)
        if path.exists():
            found = _read(path)
            if found["of"] == self.of and not overwrite:
                self.chapters = _chapters(found, path)

    def add(self, chapter: Chapter) -> None:
        """Keep one more."""
        self.chapters[chapter.name] = chapter
        if self.path is not None:
            content = {name: asdict(value) for name, value in self.chapters.items()}
            with atomic_file(self.path, "w") as file:
                json.dump({"format": FORMAT, "of": self.of, "chapters": content}, file)


def fingerprint(case: Case) -> str:
    """A digest of everything that figures depend on: weights, what the model says, process, items, number of samples, seed."""
    digest = hashlib.sha256(f"{FORMAT} {_words(case.model)} {case.n} {case.seed}".encode())
    digest.update(model_hash(case.model).encode())
    tensors = [*case.model.state_dict().values(), case.data, case.train]
    for x in tensors:
        digest.update(b"-" if x is None else f"{x.dtype} {tuple(x.shape)}".encode() + exact(x).numpy().tobytes())
    return digest.hexdigest()


def _words(model: ScoreModel) -> str:
    return f"{type(model).__name__} {model.sde} {getattr(model, 'predict', '')} {model.shape} {model.device}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT or "of" not in found:
        raise InputError(f"{path} holds no chapters of a diagnosis; remove it, or give another --out")
    return found


def _chapters(found: dict[str, Any], path: Path) -> dict[str, Chapter]:
    try:
        return {name: _chapter(value) for name, value in found["chapters"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged, and holds no chapters of a diagnosis; remove it") from error


def _chapter(value: dict[str, Any]) -> Chapter:
    lines = {name: [tuple(point) for point in points] for name, points in value["lines"].items()}
    known = {field.name: value[field.name] for field in fields(Chapter)}
    return Chapter(**known | {"lines": lines, "labels": tuple(value["labels"])})
