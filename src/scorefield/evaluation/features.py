"""Networks whose features are compared: Inception, the digit classifier, none at all, or one of the user's own."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from scorefield.data.dataset import Dataset, to_range
from scorefield.errors import InputError, OutputError, cannot_read, closest
from scorefield.evaluation.digit_classifier import digit_classifier
from scorefield.files import atomic_file, cache_folder
from scorefield.model import weights_hash
from scorefield.progress import Bar

Network: TypeAlias = "Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]"
KNOWN = ("digits", "inception", "random", "raw")
INCEPTION_WEIGHTS = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)


@dataclass(frozen=True)
class FeatureNetwork:
    """What turns items into features.

    Main arguments:
        name: what reports call it.
        network: items (B, *shape) as float32, those of known bounds in [-1, 1], to features (B, D), or to the pair
            (features, logits), by which the Inception score is computed.

    Other arguments:
        fingerprint: a hash of all that decides the features; with it, those of reference data are cached.
        device: where the items are sent.
    """

    name: str
    network: Network
    fingerprint: str = ""
    device: str | torch.device = "cpu"


@dataclass(frozen=True)
class Features:
    """Features (n, D) of items, and logits (n, classes) where the network has them; float32 on the CPU."""

    values: Tensor
    logits: Tensor | None = None


def open_features(name: str, device: str | torch.device = "cpu") -> FeatureNetwork:
    """The network called `name`: "digits", "inception", "inception:WEIGHTS.pth", "random", "raw", or a TorchScript
    file.

    Weights are read without running pickled code. A TorchScript file is a program: name only one that you trust.

    Raises:
        InputError: there is no such network, or a file that cannot be read.
    """
    kind, _, path = name.partition(":")
    if name == "raw":
        return FeatureNetwork("raw", lambda x: x.flatten(1), "raw")
    if name == "random":
        return FeatureNetwork("random", _random, f"random {RANDOM_WIDTH}", device)
    if name == "digits":
        classifier = digit_classifier(device=device)

        def digits(x: Tensor) -> tuple[Tensor, Tensor]:
            features = classifier.features(x)
            return features, classifier.logits(features)

        return FeatureNetwork("digit classifier", digits, f"digits {weights_hash(classifier)}", device)
    if kind == "inception":
        return _inception(path or None, device)
    if not Path(name).exists():
        raise InputError(f"features {name!r} do not exist{closest(name, KNOWN)}, or give a TorchScript file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch has no other format that holds no pickled code
            script = torch.jit.load(name, map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"cannot read {name}: it is not a TorchScript file; save it with torch.jit.save") from error
    return FeatureNetwork(name, script, hashlib.sha256(Path(name).read_bytes()).hexdigest(), device)


def extract(network: FeatureNetwork, data: Dataset, batch_size: int = 100, progress: bool | None = None) -> Features:
    """Features of all items.

    Raises:
        InputError: the network does not take the items, or returns something else than features.
    """
    values, logits = [], []
    with Bar(f"features ({network.name})", progress) as bar, torch.inference_mode():
        for index in _batches(data.size, batch_size):
            x = to_range(data.read(index), data, (-1.0, 1.0)).to(network.device)
            try:
                found: Any = network.network(x)
            except RuntimeError as error:
                raise InputError(
                    f"{network.name} does not take items of shape {data.shape}: {str(error).splitlines()[-1]}; "
                    "choose other features"
                ) from error
            first, second = found if isinstance(found, tuple) else (found, None)
            if not isinstance(first, Tensor) or first.ndim != 2 or len(first) != len(index):
                shape = tuple(getattr(first, "shape", ()))
                raise InputError(f"{network.name} returned features of shape {shape}; expected ({len(index)}, D)")
            values.append(first.float().cpu())
            if second is not None:
                logits.append(second.float().cpu())
            bar(index.stop / data.size)
    return Features(torch.cat(values), torch.cat(logits) if logits else None)


def reference_features(
    network: FeatureNetwork,
    data: Dataset,
    *,
    cache: str | Path | None = None,
    batch_size: int = 100,
    progress: bool | None = None,
) -> Features:
    """Features of all items, kept under a hash of the items and the network in the cache folder.

    Raises:
        InputError: as for `extract`.
    """
    if not network.fingerprint:
        return extract(network, data, batch_size, progress)
    digest = hashlib.sha256(f"{network.fingerprint} {data.shape} {data.levels} {data.range}".encode())
    for index in _batches(data.size, batch_size):
        digest.update(data.read(index).contiguous().numpy().tobytes())
    folder = Path(cache) if cache is not None else cache_folder() / "features"
    path = folder / f"{digest.hexdigest()[:32]}.safetensors"
    try:
        kept = safetensors.torch.load(path.read_bytes())
        return Features(kept["features"], kept.get("logits"))
    except (OSError, SafetensorError, KeyError):
        found = extract(network, data, batch_size, progress)
    tensors = {"features": found.values.contiguous()}
    if found.logits is not None:
        tensors["logits"] = found.logits.contiguous()
    try:
        with atomic_file(path) as file:
            file.write(safetensors.torch.save(tensors))
    except OutputError as error:
        warnings.warn(f"features are not kept: {error}", RuntimeWarning, stacklevel=2)
    return found


RANDOM_WIDTH = 64
"""Channels of each of the three layers of random features."""


def _random(x: Tensor) -> Tensor:
    """Mean and deviation of the channels of three convolutions with fixed random weights, (B, 6 RANDOM_WIDTH).

    They tell textures and colours apart without a download; their distances are comparable only with each other.
    """
    if x.ndim != 4:
        raise RuntimeError(f"random features are of pictures (C, H, W), not of shape {tuple(x.shape[1:])}")
    draws, features = torch.Generator().manual_seed(0), []
    for layer in range(3):
        size = (RANDOM_WIDTH, x.shape[1], 3, 3)
        weight = torch.randn(size, generator=draws, device=draws.device) * (2 / (9 * x.shape[1])) ** 0.5
        x = torch.nn.functional.conv2d(x, weight.to(x.device), padding=1, stride=1 if layer == 0 else 2).relu()
        features += [x.mean((2, 3)), x.std((2, 3), correction=0)]
    return torch.cat(features, 1)


def _inception(path: str | None, device: str | torch.device) -> FeatureNetwork:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise InputError(f"features 'inception' need torch-fidelity ({error}); install scorefield[metrics]") from error
    if path is None:
        torch.hub.load_state_dict_from_url(INCEPTION_WEIGHTS, progress=False, check_hash=True, weights_only=True)
        path = str(Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_WEIGHTS.rpartition("/")[2])
    try:
        # torch-fidelity itself would unpickle whatever is in the file, so it is given only what passes here.
        torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise cannot_read(path, error) from error
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"cannot read {path}: it does not hold plain weights; give torch-fidelity's file") from error
    names = ["2048", "logits_unbiased"]
    network = FeatureExtractorInceptionV3("inception", names, feature_extractor_weights_path=path).to(device).eval()

    def inception(x: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features, logits = network(pixels.expand(-1, 3, -1, -1) if x.shape[1] == 1 else pixels)
        return features, logits

    return FeatureNetwork("Inception", inception, f"inception {weights_hash(network)}", device)


def _batches(n: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, n)) for start in range(0, n, size))
