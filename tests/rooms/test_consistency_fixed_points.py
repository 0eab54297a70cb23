"""What consistency training converges to on Gaussian data, by training one number a level with the library's own loss.

With data of standard deviation s, training and distillation by Euler's rule of an exact teacher agree on the slope
prod (s^2 + t_n t_{n+1}) / (s^2 + t_{n+1}^2); a stop-gradient that is lost shows as a map that is 70 % too narrow.
"""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch import Tensor

import scorefield as sf
from map_oracles import EDM, Scalars, quadrature
from scorefield.consistency import Easy, Karras, consistency_loss
from scorefield.flowmap import FlowMap, fixed_point_bias

F64 = torch.float64
END, S = 0.002, 0.5


class Levels:
    """One slope for each level of noise, and the library's loss on pairs of neighbours, by quadrature over data and noise."""

    def __init__(self, rho: Tensor, s: float = S) -> None:
        self.rho, self.s = rho, s
        self.net = Scalars(rho, torch.ones(len(rho), dtype=F64), 0.5)
        self.fm = FlowMap(self.net, EDM(), shape=(1,), sigma_data=0.5)
        self.teacher = sf.ScoreModel(lambda x, t: s**2 / (s**2 + t[:, None] ** 2) * x, EDM(), "data", shape=(1,))
        x, self.z, self.w = quadrature(2)  # two nodes integrate a square of a linear map exactly
        self.x = s * x

    def loss(self, levels: slice, teacher: bool = False, solver: str = "euler") -> Tensor:
        """Summed over the pairs whose lower levels are given."""
        early, late = (r.repeat_interleave(len(self.w)) for r in (self.rho[:-1][levels], self.rho[1:][levels]))
        pairs = len(late) // len(self.w)
        x, z, w = (v.repeat(pairs, *[1] * (v.ndim - 1)) for v in (self.x, self.z, self.w))
        options = {"teacher": self.teacher if teacher else None, "solver": solver, "seed": 0}
        each = consistency_loss(self.fm, x, distance="l2", t=(early, late), noise=z, **options)
        return (w * each).sum()

    def gradient(self, levels: slice = slice(None), **options) -> Tensor:
        return torch.autograd.grad(self.loss(levels, **options), self.net.slopes)[0]

    def bias(self) -> float:
        exact = math.sqrt((self.s**2 + float(self.rho[0]) ** 2) / (self.s**2 + float(self.rho[-1]) ** 2))
        return float(self.net.slopes.detach()[-1]) / exact - 1

    def train(self, **options) -> float:
        """Gradient descent with the inverse curvature as its rate, one level after the other from below."""
        for i in range(len(self.rho) - 1):
            step = self.gradient(slice(i, i + 1), **options) / (2 * (self.s**2 + self.rho[i + 1] ** 2))
            self.net.slopes.data -= step
        return self.bias()


@pytest.mark.parametrize(
    ("n", "s", "bias", "heun"),
    [
        (18, 0.5, -0.15391, 0.055278),
        (40, 0.5, -0.07027, 0.009782),
        (151, 0.5, -0.01877, 0.000635),
        (18, 1.0, -0.14048, None),
        (40, 0.2, -0.07969, None),
    ],
)
def test_training_and_distillation_reach_their_fixed_point(n, s, bias, heun):
    rho = Karras(n).levels(EDM(), END)
    levels = Levels(rho, s)
    found = levels.train()
    factors = (s**2 + rho[:-1] * rho[1:]) / (s**2 + rho[1:] ** 2)
    expected = torch.cat([torch.ones(1, dtype=F64), torch.cumprod(factors, 0)])
    assert torch.allclose(levels.net.slopes, expected, rtol=1e-9)  # no lower level moved: the target has no gradient
    assert found == pytest.approx(bias, abs=1e-5)
    assert found == pytest.approx(fixed_point_bias(rho, s), abs=1e-9)
    assert Levels(rho, s).train(teacher=True) == pytest.approx(bias, abs=1e-5)
    if heun is not None:
        assert Levels(rho, s).train(teacher=True, solver="heun") == pytest.approx(heun, abs=1e-6)
        assert fixed_point_bias(rho, s, "heun") == pytest.approx(heun, abs=1e-6)


NUMBERS = (10, 18, 40, 80, 151, 641, 1281)
TABLE = [
    ("euler", 0.5, (-0.26955, -0.15391, -0.07027, -0.03533, -0.01877, -0.00443, -0.00222)),
    ("euler", 1.0, (-0.24914, -0.14048, -0.06386, -0.03205, -0.01701, -0.00401, -0.00201)),
    ("euler", 0.2, (-0.30207, -0.17343, -0.07969, -0.04017, -0.02136, -0.00505, -0.00253)),
    ("heun", 0.5, (0.219630, 0.055278, 0.009782, 0.002318, 0.000635, 0.000034, 0.000009)),
]


@pytest.mark.parametrize(("solver", "s", "known"), TABLE)
def test_the_bias_of_every_number_of_levels(solver, s, known):
    found = [fixed_point_bias(Karras(n).levels(EDM(), END), s, solver) for n in NUMBERS]
    assert found == pytest.approx(known, abs=6e-6 if solver == "euler" else 6e-7)


def chain(stage: int, end: float) -> Tensor:
    """The levels that `Easy` meets on its way from 80 down, rising."""
    pairs, t = Easy(q=2.0, stage=1), [80.0]
    while t[-1] > max(end, 1e-6):
        u = torch.special.ndtr(torch.tensor([(math.log(t[-1]) - pairs.mean) / pairs.std], dtype=F64))
        t.append(float(pairs(u, EDM(), end, stage)[0]))
    return torch.tensor(t[::-1], dtype=F64)


EASY = (-0.4030, -0.3220, -0.1385, -0.0635, -0.0305, -0.0150, -0.0074, -0.0037)


@pytest.mark.parametrize("stage", range(8))
def test_stages_of_easy_consistency_tuning(stage):
    assert fixed_point_bias(chain(stage, 0.0), S) == pytest.approx(EASY[stage], abs=1e-4)
    if stage < 3:
        assert Levels(chain(stage, END)).train() == pytest.approx(EASY[stage], abs=2e-3)  # which ends at .002


@pytest.mark.parametrize(("n", "bias"), [(18, -0.6988), (151, -0.6977)])
def test_a_lost_stop_gradient_is_seen(n, bias, monkeypatch):
    """With gradients through the target, least squares over all levels make the map 70 % too narrow at any N."""
    monkeypatch.setattr(torch, "no_grad", contextlib.nullcontext)
    levels = Levels(Karras(n).levels(EDM(), END))
    scale = torch.sqrt(levels.s**2 + levels.rho**2)

    def gradient(k: Tensor) -> Tensor:
        levels.net.slopes.data = torch.cat([torch.ones(1, dtype=F64), (k / scale[1:])])
        return levels.gradient()[1:] / scale[1:]

    # The loss is quadratic and ties neighbours alone: three gradients tell its whole Hessian.
    zero = torch.zeros(n - 1, dtype=F64)
    start, hessian = gradient(zero), torch.zeros(n - 1, n - 1, dtype=F64)
    for colour in range(3):
        at = torch.arange(n - 1) % 3 == colour
        change = gradient(at.double()) - start
        for j in torch.nonzero(at).flatten().tolist():
            near = slice(max(j - 1, 0), j + 2)
            hessian[near, j] = change[near]
    gradient(-torch.linalg.solve(hessian, start))
    assert levels.bias() == pytest.approx(bias, abs=1e-4)
