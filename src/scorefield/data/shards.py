"""Tar shards in the layout of webdataset, on disk or at a web address, for data that does not fit a disk."""

from __future__ import annotations

import glob
import hashlib
import http.client
import io
import json
import re
import tarfile
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.data.dataset import Dataset
from scorefield.data.images import SUFFIXES
from scorefield.data.labels import class_labels
from scorefield.data.pixels import MODES, BrokenImage, image_tensor, quiet_pillow
from scorefield.errors import InputError, OutputError, cannot_read
from scorefield.files import atomic_file, cache_folder

REMOTE = ("http://", "https://")
CACHE_BYTES = 2**34
BLOCK = 2**20


@dataclass(frozen=True)
class Entry:
    """One sample of a shard: its key, the suffix of its data, where that lies in the file, and its class or None."""

    key: str
    suffix: str
    offset: int
    size: int
    label: int | None


def shards(
    pattern: str | Sequence[str],
    size: int | tuple[int, int] = 32,
    *,
    channels: int = 3,
    labels: bool = False,
    skip_broken: bool = False,
    convert: bool = True,
    cache: str | Path | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """Samples of tar files: an image (or a .npy array) and perhaps a class in a .cls file of the same name.

    A first pass reads where every sample lies, and keeps that in the cache folder; from then on items are read by index,
    so that a run resumes exactly. Training visits a few shards at a time (`Dataset.groups`). Shards at web addresses
    are fetched when they are needed, and the least recently used ones are removed beyond `cache_bytes`.

    Main arguments:
        pattern: paths or http(s) addresses; "{000..127}" and "{a,b}" are expanded, and "*" for paths.
        size, channels, skip_broken, convert: of images, as in `images`.
        labels: read the classes.

    Other arguments:
        cache: folder for fetched shards and indices; the user's cache folder unless given.
        cache_bytes: size of what is kept there.

    Raises:
        InputError: no such shard, one that is not a tar file, no samples in it, or a sample without a class (labels=True).
    """
    name = pattern if isinstance(pattern, str) else ", ".join(pattern)
    places = [place for one in ([pattern] if isinstance(pattern, str) else pattern) for place in expand(one)]
    if channels not in MODES:
        raise InputError(f"channels={channels} is unknown; choose 1 (grey), 3 (colour) or 4 (colour with opacity)")
    store = _Store(Path(cache) if cache is not None else cache_folder() / "shards", cache_bytes)
    indices = store.indices(places)
    where = [(s, entry) for s, found in enumerate(indices) for entry in found]

    def named(i: int) -> str:
        return f"{places[where[i][0]]}/{where[i][1].key}"

    height, width = (size, size) if isinstance(size, int) else size
    arrays = where[0][1].suffix == ".npy"
    decode = _array if arrays else _picture(channels, (height, width), convert)
    samples = _Samples(name, where, places, store, decode, skip_broken)
    first = samples.load(0)

    return Dataset(
        name=name,
        shape=tuple(first.shape),
        size=len(where),
        read=lambda wanted: samples.read(wanted, first),
        levels=256 if first.dtype == torch.uint8 else None,
        labels=_labels(where, named) if labels else None,
        names=named,
        slow=True,
        groups=tuple(len(found) for found in indices),
    )


@dataclass(frozen=True)
class _Samples:
    """Reads samples by index: where each lies (its shard, its entry), and how its bytes are decoded."""

    name: str
    where: list[tuple[int, Entry]]
    places: list[str]
    store: _Store
    decode: Callable[[bytes, str], Tensor]
    skip_broken: bool

    def load(self, i: int) -> Tensor:
        """One sample; where it is broken and may be skipped, the next that is not."""
        for attempt in range(len(self.where) if self.skip_broken else 1):
            s, entry = self.where[(i + attempt) % len(self.where)]
            try:
                return self.decode(self.store.read(self.places[s], entry), f"{self.places[s]}/{entry.key}")
            except BrokenImage:
                if not self.skip_broken:
                    raise
        raise BrokenImage(f"cannot read {self.name}: none of its {len(self.where)} samples is an image")

    def read(self, wanted: Sequence[int], first: Tensor) -> Tensor:
        """Several samples, of the shape of the first."""
        values = [self.load(i) for i in wanted]
        for i, value in zip(wanted, values, strict=True):
            if value.shape != first.shape or value.dtype != first.dtype:
                s, entry = self.where[i]
                raise InputError(
                    f"{self.places[s]}/{entry.key} has shape {tuple(value.shape)}; the first sample has {tuple(first.shape)}"
                )
        return torch.stack(values)


def expand(pattern: str) -> list[str]:
    """The paths or addresses that a pattern stands for.

    Raises:
        InputError: a range that counts down, or a pattern that no file fits.
    """
    if not pattern.startswith(REMOTE) and Path(pattern).exists():  # a name may hold braces and brackets of its own
        return [pattern]
    if match := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        low, high = int(match[1]), int(match[2])
        if high < low:
            raise InputError(f"{pattern} counts down from {low} to {high}; give {{first..last}} with first <= last")
        words = [f"{k:0{len(match[1])}d}" for k in range(low, high + 1)]
    elif match := re.search(r"\{([^{}]*,[^{}]*)\}", pattern):
        words = match[1].split(",")
    elif pattern.startswith(REMOTE) or not glob.has_magic(pattern):
        return [pattern]
    else:
        if not (found := sorted(glob.glob(pattern))):
            raise InputError(f"cannot read {pattern}: no file of such a name; check the path")
        return found
    return [place for word in words for place in expand(pattern[: match.start()] + word + pattern[match.end() :])]


class _Store:
    """Shards as local files, and their indices."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.lock = threading.Lock()
        self.versions: dict[str, str] = {}

    def indices(self, places: list[str]) -> list[list[Entry]]:
        """The samples of each shard.

        Raises:
            InputError: there are none in one.
        """
        with ThreadPoolExecutor(16) as pool:  # a question to the server for each
            list(pool.map(self.key, [place for place in places if place.startswith(REMOTE)]))
        found = [self.index(place) for place in places]
        if not all(found):
            place = places[[bool(entries) for entries in found].index(False)]
            raise InputError(f"cannot read {place}: no samples in it; looked for {', '.join(SUFFIXES)} and .npy")
        return found

    def index(self, place: str) -> list[Entry]:
        kept = self.folder / f"{self.key(place)}.json"
        with suppress(OSError, ValueError, TypeError):
            return [Entry(*row) for row in json.loads(kept.read_text("utf-8"))]
        found = list(_scan(self.local(place), place))
        with suppress(OutputError), atomic_file(kept, "w") as file:
            json.dump([[e.key, e.suffix, e.offset, e.size, e.label] for e in found], file)
        return found

    def key(self, place: str) -> str:
        """What a shard is kept under: its place and its version."""
        if place not in self.versions:
            if place.startswith(REMOTE):
                self.versions[place] = self._remote_version(place)
            else:
                try:
                    stat = Path(place).stat()
                except OSError as error:
                    raise cannot_read(place, error) from error
                self.versions[place] = f"{Path(place).resolve()} {stat.st_size} {stat.st_mtime_ns}"
        return _digest(f"{place} {self.versions[place]}")

    def _remote_version(self, place: str) -> str:
        """What the server says of the file behind an address; where it says nothing, what it said when last asked."""
        note = self.folder / f"{_digest(place)}.version"
        try:
            with urllib.request.urlopen(urllib.request.Request(place, method="HEAD"), timeout=60) as answer:
                found = " ".join(
                    str(answer.headers.get(name, "")) for name in ("ETag", "Last-Modified", "Content-Length")
                )
        except (OSError, http.client.HTTPException):
            with suppress(OSError):
                return note.read_text("utf-8")
            return ""
        with suppress(OutputError), atomic_file(note, "w") as file:
            file.write(found)
        return found

    def local(self, place: str) -> Path:
        """The shard as a file, fetched if need be."""
        if not place.startswith(REMOTE):
            return Path(place)
        path = self.folder / f"{self.key(place)}.tar"
        with self.lock:
            if path.exists():
                path.touch()
                return path
            with atomic_file(path) as file:
                for block in _fetch(place):
                    file.write(block)
            self._shrink(path)
        return path

    def read(self, place: str, entry: Entry) -> bytes:
        for attempt in range(3):
            try:
                with open(self.local(place), "rb") as file:
                    file.seek(entry.offset)
                    content = file.read(entry.size)
                break
            except OSError as error:
                if attempt == 2 or not place.startswith(REMOTE):  # a fetched one may have been removed in between
                    raise cannot_read(place, error) from error
        if len(content) < entry.size:
            raise InputError(f"cannot read {place}: it ends in the middle of {entry.key}; fetch or copy it again")
        return content

    def _shrink(self, newest: Path) -> None:
        files = sorted(self.folder.glob("*.tar"), key=lambda p: p.stat().st_mtime)
        total = sum(p.stat().st_size for p in files)
        for path in files:
            if total > self.limit and path != newest:
                total -= path.stat().st_size
                path.unlink(missing_ok=True)


def _fetch(place: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(place, timeout=60) as answer:
            size, got = answer.length, 0
            while block := answer.read(BLOCK):
                got += len(block)
                yield block
            if size is not None and got < size:
                raise ConnectionError(f"it ended after {got} of {size} bytes")
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(f"cannot read {place}: {reason}; check the address and the network") from error


def _scan(path: Path, place: str) -> Iterator[Entry]:
    """The samples of a tar file, in the order in which their data lies there."""
    data: dict[str, tuple[str, int, int]] = {}
    classes: dict[str, int] = {}
    opened = False
    try:
        with tarfile.open(path, "r:") as archive:
            opened = True
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, rest = base.partition(".")
                key, suffix = f"{folder}/{stem}".lstrip("/"), f".{rest}".lower()
                if not member.isfile() or not stem:
                    continue
                if suffix == ".cls":
                    text = archive.extractfile(member)
                    classes[key] = int(text.read()) if text is not None else -1
                elif suffix == ".npy" or suffix.endswith(SUFFIXES):
                    data.setdefault(key, (suffix, member.offset_data, member.size))
            archive.fileobj.seek(archive.offset)  # type: ignore[union-attr]
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # type: ignore[union-attr]
                raise EOFError
    except (tarfile.TarError, EOFError) as error:
        if opened:
            raise InputError(
                f"cannot read {place}: it is cut off or damaged after {len(data)} samples; fetch or copy it again"
            ) from error
        raise InputError(f"cannot read {place}: it is not an uncompressed tar file; unpack it to .tar first") from error
    except ValueError as error:
        raise InputError(f"cannot read {place}: a .cls file holds no integer ({error}); write class numbers") from error
    except OSError as error:
        raise cannot_read(place, error) from error
    for key, (suffix, offset, size) in data.items():
        yield Entry(key, suffix, offset, size, classes.get(key))


def _labels(where: Sequence[tuple[int, Entry]], named: Callable[[int], str]) -> Tensor:
    values = [entry.label for _, entry in where]
    missing = next((i for i, value in enumerate(values) if value is None), None)
    if missing is not None:
        raise InputError(f"{named(missing)} has no class; add a .cls file for it or drop labels")
    return class_labels(values, len(values), "the .cls files")[0]


def _picture(channels: int, size: tuple[int, int], convert: bool) -> Callable[[bytes, str], Tensor]:
    def decode(content: bytes, name: str) -> Tensor:
        try:
            with quiet_pillow(), Image.open(io.BytesIO(content)) as opened:
                return image_tensor(opened, channels, size, convert, name)
        except (BrokenImage, MemoryError):
            raise
        except Exception as error:  # a damaged file can raise anything from within a decoder
            fault = " ".join(str(error).split()) or type(error).__name__
            raise BrokenImage(f"{name} is damaged ({fault}); remove it or skip broken files (skip_broken)") from error

    return decode


def _array(content: bytes, name: str) -> Tensor:
    try:
        value: Any = np.load(io.BytesIO(content), allow_pickle=False)
        tensor = torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))
    except (ValueError, TypeError, EOFError) as error:
        raise BrokenImage(f"{name} is not an array of numbers; save it with numpy.save") from error
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise InputError(f"{name} holds {tensor.dtype}; store uint8 or floats")
    return tensor


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
