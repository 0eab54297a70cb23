"""SDEs that lead from clean data to a degraded version of it, against the recordings of their authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from oracles import name
from scorefield.coefficients import expand

BOTH = {"vpidm": sf.VPIDM(), "ouve": sf.OUVE()}
VALUES = {  # t: alpha, shift, sigma, g
    "vpidm": {
        0.04: (0.939169, 0.058075, 0.074194, 0.438765),
        0.2: (0.719643, 0.251773, 0.237382, 0.805636),
        0.5: (0.409119, 0.456986, 0.499863, 1.341488),
        1.0: (0.131994, 0.459562, 0.806264, 1.987508),
    },
    "ouve": {
        0.03: (0.955997, 0.044003, 0.018830, 0.114972),
        0.2: (0.740818, 0.259182, 0.054514, 0.170056),
        0.5: (0.472367, 0.527633, 0.121657, 0.339307),
        1.0: (0.223130, 0.776870, 0.388983, 1.072983),
    },
}


@pytest.mark.parametrize("kind", BOTH)
def test_coefficients(kind):
    sde = BOTH[kind]
    for t, expected in VALUES[kind].items():
        found = (sde.alpha(t), sde.shift(t), sde.sigma(t), torch.sqrt(sde.g2(t)))
        assert [float(v) for v in found] == pytest.approx(expected, abs=1e-6)
    half = type(sde)(scale=0.5)
    assert float(half.sigma(0.3) / sde.sigma(0.3)) == pytest.approx(0.5)
    assert float(half.g2(0.3) / sde.g2(0.3)) == pytest.approx(0.25)


@pytest.mark.parametrize("kind", BOTH)
def test_mean_drift_and_noise_are_those_of_the_authors(kind):
    """x = u + c y: mean alpha x_0 + c y, drift f u + c' y, in float64; complex numbers as pairs."""
    places = Path(__file__).parents[1] / "data" / "parity", Path(__file__).resolve().parents[3] / "shared" / "parity"
    recording = f"31_{kind}_sde.safetensors"
    path = next((place / recording for place in places if (place / recording).exists()), None)
    if path is None:
        pytest.skip(f"the recording {recording} is neither in tests/data/parity nor in ../shared/parity")
    saved, sde = load_file(path), BOTH[kind]
    t, x, x0, y = (saved[key] for key in ("t", "x", "x0", "y"))
    c = sde.shift(t)
    torch.testing.assert_close(sde.kernel(x0, t)[0] + expand(c, y) * y, saved["mean_f64"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(sde.sigma(t), saved["std_f64"], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(torch.sqrt(sde.g2(t)), saved["diffusion_f64"], rtol=1e-12, atol=1e-13)
    slope = torch.func.jvp(sde.shift, (t,), (torch.ones_like(t),))[1]
    drift = sde.drift(x - expand(c, y) * y, t) + expand(slope, y) * y
    torch.testing.assert_close(drift, saved["drift_f64"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", BOTH.values(), ids=name)
def test_the_shift_starts_at_nothing(sde):
    assert float(sde.shift(0.0)) == 0.0
    assert float(sde.shift(torch.tensor([0.5]))) > 0
