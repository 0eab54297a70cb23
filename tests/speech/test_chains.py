"""The predictor-corrector chains of VPIDM and SGMSE+, with their recorded complex noise, by the library's own solvers.

The authors step in x = u + c(t) y, whose drift holds y; the library samples u. `in_x` is the SDE with that drift, so that every
other part (loop, predictor, correctors, real channels for complex numbers) is that of the library.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.coefficients import expand
from scorefield.solve import AnnealedLangevin, Identity
from speech_oracle import in_x

SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
SDES = {"vpidm": sf.VPIDM, "ouve": sf.OUVE}
PREDICTORS = {"reverse_diffusion": sf.EulerMaruyama(), "euler_maruyama": sf.EulerMaruyama(), "none": Identity()}
COMBINATIONS = [f"{p}__{c}" for p, c in itertools.product(PREDICTORS, ("none", "ald", "langevin"))]
COMBINATIONS = [name for name in COMBINATIONS if name != "none__none"] + ["reverse_diffusion__none__pf"]


def posterior(base, y, k, variance):
    """Real-channel score of x_t for x_0 ~ N(k y, variance) per complex number: half of the variance in each part."""
    sde = base(scale=2**-0.5)

    def score(x, t):
        a, c = (expand(v, x) for v in (sde.alpha(t), sde.shift(t)))
        spread = expand(sde.alpha(t) ** 2 * variance / 2 + sde.sigma(t) ** 2, x)
        return -(x - (a * k + c) * y) / spread

    return score


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("kind", SDES)
def test_chain_is_that_of_the_authors(kind, combination):
    name = f"31_{kind}_pc"
    if not (SHARED / f"{name}.json").exists():
        pytest.skip(f"the recording {name} is not in ../shared/parity")
    about = json.loads((SHARED / f"{name}.json").read_text())
    if "error" in about["combos"][combination]:
        pytest.skip("the authors' code crashes here")
    saved, base = load_file(SHARED / f"{name}.safetensors"), SDES[kind]
    y, steps = saved["y"], about["sde"]["N"]
    corrector = {"ald": AnnealedLangevin(about["snr"]), "langevin": sf.Langevin(about["snr"], norm="batch")}
    solver = PREDICTORS[combination.split("__")[0]]
    if (chosen := combination.split("__")[1]) != "none":
        solver = sf.PC(solver, corrector[chosen], correct_first=True)
    draws = iter([*(2**0.5 * saved["noise_bank"][1:]), torch.zeros_like(y)])
    plain = (
        about["combos"][combination]["noise_draws_consumed"] - 1
    )  # the last of a predictor is left out of the result
    silent = combination.split("__")[0] != "none"
    count = itertools.count(1)

    def noise():
        return torch.zeros_like(y) if silent and next(count) == plain else next(draws)

    sde = in_x(base, y)
    model = sf.ScoreModel.from_score(posterior(base, y, about["analytic"]["k"], about["analytic"]["P"]), sde)
    whole = base()
    start = float(whole.alpha(1.0) + whole.shift(1.0)) * y + float(whole.sigma(1.0)) * saved["noise_bank"][0]
    grid = torch.cat([torch.linspace(1, about["eps"], steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    done = sf.sample(model, len(y), solver, grid=grid, x_init=start, noise=noise, denoise=False, full=True)
    torch.testing.assert_close(done.path[1], saved[f"{combination}/snap0"], rtol=0, atol=1e-10)
    torch.testing.assert_close(done.path[steps // 2 + 1], saved[f"{combination}/snap_mid"], rtol=0, atol=1e-10)
    torch.testing.assert_close(done.x, saved[f"{combination}/x"], rtol=0, atol=1e-10)
