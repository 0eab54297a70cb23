"""Real speech in coloured noise: scale-invariant SNR of VPIDM beside the same network as a regressor.

    python benchmarks/speech.py                       # fetches 18 MB of Debian; about two minutes of one core
    python benchmarks/speech.py --clips FOLDER        # wave files of your own, 8 kHz, one voice

Debian's asterisk-core-sounds-en-wav (CC-BY-SA-3.0, recorded by Allison Smith) is fetched with `apt-get download` and
unpacked, not installed: 100 clips of 1 to 3 s to train on, each in four noises of 0 to 10 dB, 12 others in noise of 5 dB
to judge by. Errors are standard errors over the twelve; the exit status is 1 if one of the three bars at the end is missed.
"""

from __future__ import annotations

import argparse
import math
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scorefield as sf
from scorefield.data import pairs, read_wave, si_sdr, write_wave
from scorefield.data.pairs import level
from scorefield.errors import InputError
from scorefield.files import cache_folder
from scorefield.speech import Enhancer
from scorefield.training.recipes import recipe

PACKAGE = "asterisk-core-sounds-en-wav"
TRAIN, TEST, NOISES, DECIBELS = 100, 12, 4, 5.0
REGRESSION = 600
"""Steps of the regressor."""
METHODS: dict[str, dict[str, Any]] = {
    "VPIDM, SDE in 25 steps": {"solver": sf.EulerMaruyama(), "steps": 25, "restart": False},
    "the same, restarted": {"solver": sf.EulerMaruyama(), "steps": 25},
    "VPIDM, DDIM in 25 steps": {"solver": sf.DDIM(), "steps": 25, "restart": False},
    "the same, restarted ": {"solver": sf.DDIM(), "steps": 25},
    "DDIM in 8 steps, restarted": {"solver": sf.DDIM(), "steps": 8},
    "DPM-Solver in 6, restarted": {},
}


def fetched() -> Path:
    """The folder of the package's clips.

    Raises:
        InputError: it cannot be fetched.
    """
    place = cache_folder() / PACKAGE
    found = place / "usr/share/asterisk/sounds/en_US_f_Allison"
    if found.is_dir():
        return found
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise InputError(f"{PACKAGE} is fetched with apt-get, which is not here; give --clips FOLDER of wave files")
    place.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", PACKAGE], cwd=place, check=True, capture_output=True, text=True)
        subprocess.run(["dpkg-deb", "-x", str(next(place.glob("*.deb"))), str(place)], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        told = " ".join(str(error.stderr).split())[-200:]
        raise InputError(f"{PACKAGE} could not be fetched ({told}); give --clips FOLDER of wave files") from error
    return found


def coloured(samples: int, draws: torch.Generator) -> Tensor:
    """Noise whose amplitude falls as frequency^-k, k uniform in [0, 1], from one clip to the next."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=draws))
    frequency = torch.arange(len(spectrum)).clamp_min(1) / len(spectrum)
    return torch.fft.irfft(spectrum * frequency ** -torch.rand(1, generator=draws), samples)


def write_pairs(clips: list[Tensor], place: Path, rate: int, decibels: float | None, seed: int) -> None:
    """clean/ and noisy/ of clips in one noise of so many dB, or in several of 0 to 10."""
    draws = torch.Generator().manual_seed(seed)
    for i, clean in enumerate(clips):
        for k in range(1 if decibels else NOISES):
            noise = coloured(len(clean), draws)
            snr = decibels or 10 * float(torch.rand(1, generator=draws))
            noisy = clean + noise * (clean.norm() / noise.norm() * 10 ** (-snr / 20))
            quiet = 0.9 / max(1.0, float(noisy.abs().max()))
            for kind, wave in (("clean", clean), ("noisy", noisy)):
                write_wave(place / kind / f"{i:03d}-{k}.wav", quiet * wave, rate)


def prepared(clips: Path, place: Path, seed: int) -> int:
    """Write the pairs of training and of the test; returns the rate of the clips."""
    found = []
    for path in sorted(clips.glob("*.wav")):
        try:
            wave, rate = read_wave(path, clipped=True)
        except InputError:
            continue  # the package has clips of silence
        if rate <= len(wave) <= 3 * rate:
            found.append(wave)
    if len(found) < TRAIN + TEST:
        raise InputError(f"{clips} has {len(found)} clips of 1 to 3 s; give {TRAIN + TEST} or more")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [found[i] for i in order[: TRAIN + TEST]]
    write_pairs(chosen[:TRAIN], place / "train", rate, None, seed)
    write_pairs(chosen[TRAIN:], place / "test", rate, DECIBELS, seed + 1)
    return rate


def regression(model: sf.ScoreModel, x0: Tensor, *, t: Tensor, noise: Tensor, y: Tensor) -> Tensor:
    """Squared error of the network on y alone."""
    return torch.square(regressed(model, y) - x0).flatten(1).sum(1)


def regressed(model: sf.ScoreModel, y: Tensor) -> Tensor:
    """The network without a state, at a time of 1."""
    net: Any = model.net
    found: Tensor = net.net(torch.cat([torch.zeros_like(y), y], 1), torch.ones(len(y)))
    return found


def trained(data: Any, out: Path, steps: int, seed: int, loss: Any = None) -> sf.ScoreModel:
    """The preset speech, with its own loss or another."""
    chosen = recipe("speech")
    begin = time.process_time()
    done = sf.train(
        chosen.build(data, seed),
        data,
        out=out,
        config=chosen.config.updated(steps=steps, seed=seed),
        loss=loss,
        device="cpu",
    )
    print(f"{out.name}: {done.step} steps in {time.process_time() - begin:.0f} s of processor", file=sys.stderr)
    return done.model


def masked(clean: Tensor, noisy: Tensor, spec: sf.data.Spectrogram) -> Tensor:
    """The best real mask from 0 to 1 on the noisy magnitudes, which needs the clean ones."""
    x, y = spec(clean[None]), spec(noisy[None])
    mask = torch.linalg.vector_norm(x, dim=1) / torch.linalg.vector_norm(y, dim=1).clamp_min(1e-9)
    return spec.inverse(mask.clamp(0, 1)[:, None] * y, len(clean))[0]


def judged(place: Path, enhancer: Enhancer, regressor: sf.ScoreModel) -> dict[str, Tensor]:
    """SI-SDR of every method on every test clip, (12,) each."""
    spec, found = enhancer.spectrogram, {}
    for path in sorted((place / "clean").iterdir()):
        clean, noisy = (read_wave(place / kind / path.name)[0] for kind in ("clean", "noisy"))
        loud = level(noisy)
        with torch.no_grad():
            plain = spec.inverse(regressed(regressor, spec(noisy[None] / loud)), len(noisy))[0]
        waves = {"noisy": noisy, "oracle mask": masked(clean, noisy, spec), "the network as a regressor": plain}
        for name, change in METHODS.items():
            waves[name] = replace(enhancer, **change)(noisy, seed=0, progress=False).wave
        for name, wave in waves.items():
            found.setdefault(name, []).append(float(si_sdr(clean, wave)))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def bars(found: dict[str, Tensor]) -> list[tuple[str, float, float]]:
    """(what, figure in dB, what it must reach) of each bar."""
    mean = {name: float(values.mean()) for name, values in found.items()}
    sde, few = mean["VPIDM, SDE in 25 steps"], mean["DDIM in 8 steps, restarted"]
    return [
        ("gain of the SDE over the noisy clips", sde - mean["noisy"], 4.0),
        ("the SDE, relative to the regressor", sde - mean["the network as a regressor"], -1.5),
        ("8 deterministic steps, relative to 25 of the SDE", few - sde, -0.3),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, help="folder of wave files, in place of the package")
    parser.add_argument("--out", type=Path, default=Path("runs/speech-benchmark"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        place = options.out / f"data-{options.seed}"
        shutil.rmtree(place, ignore_errors=True)
        prepared(options.clips or fetched(), place, options.seed)
        data = pairs(place / "train")
        model = trained(data, options.out / f"vpidm-{options.seed}", options.steps, options.seed)
        regressor = trained(data, options.out / f"regressor-{options.seed}", REGRESSION, options.seed, regression)
    except InputError as error:
        print(f"speech.py: {error}", file=sys.stderr)
        return 2
    found = judged(place / "test", Enhancer(model, data.codec), regressor)
    print(f"| SI-SDR in dB, {TEST} clips at {DECIBELS:.0f} dB | mean |\n|-|-|")
    for name, values in found.items():
        print(f"| {name.strip()} | {float(values.mean()):.2f} ± {float(values.std()) / math.sqrt(TEST):.2f} |")
    held = True
    for what, figure, least in bars(found):
        held = held and figure >= least
        print(f"{what}: {figure:+.2f} dB, at least {least:+.1f}: {'yes' if figure >= least else 'NO'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
