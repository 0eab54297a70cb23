"""Discrete flow matching: laws that tend to the data, the law of a step by enumeration, a recording of the authors' code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import scorefield as sf
from jump_oracles import joint, law_after, tv
from scorefield.coefficients import as_time
from scorefield.discrete import FlowMatching
from scorefield.solve.integrate import Field

F64 = torch.float64
J = joint()
RECORDING = Path(__file__).resolve().parents[3] / "shared" / "parity" / "41_cfm.safetensors"
recorded = pytest.mark.skipif(not RECORDING.exists(), reason="the recordings of the authors' code are not here")


@pytest.mark.parametrize("process", [sf.discrete.Uniform(4), sf.discrete.Absorbing(4)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("stochasticity", [0.0, 0.5])
def test_all_marginals_are_right_as_steps_grow(process, stochasticity):
    """The exact law of three coupled positions, by matrices: first order, whatever the further jumps."""
    model, errors = sf.discrete.Table(J, process), []
    start, end = (3.0, 0.05) if process.mask is None else (0.95, 0.05)
    for steps in (32, 64):
        grid = torch.linspace(start, end, steps + 1, dtype=F64)
        errors.append(tv(law_after(FlowMatching(stochasticity), model, grid, model.law(start)), model.law(end)))
    assert errors[1] < 0.07
    assert errors[1] < 0.62 * errors[0]


def conditional(x: int, x0: int, a: float, b: float, h: float, pi: Tensor) -> Tensor:
    """Law of one position at x whose draw of the data was x_0: rates a to it and b pi to anything, off x; at most one jump."""
    u = b * pi.clone()
    u[x0] += a
    u[x] = 0
    total = u.sum()
    law = -torch.expm1(-h * total) * u / total if total > 0 else u
    law[x] = torch.exp(-h * total)
    return law


@pytest.mark.parametrize("process", [sf.discrete.Uniform(4), sf.discrete.Absorbing(4)], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("e", [0.0, 0.7])
def test_the_law_of_a_step_is_that_of_draw_and_jump(process, e):
    """Every draw of x_0 followed by its own jump, summed by its chance."""
    model, (t, s) = sf.discrete.Table(J, process), torch.tensor([0.6, 0.35], dtype=F64)
    x = torch.cartesian_prod(*[torch.arange(process.S)] * 3)[::17]
    x = x[model.law(0.6)[tuple(x.T)] > 0]
    p, pi = model.posterior(x, 0.6), process.stationary
    alpha, rate = float(process.schedule.alpha(t)), float(process.schedule.rate(t))
    a, b = (1 + e) * rate * alpha / (1 - alpha), e * rate
    found = FlowMatching(e).law(Field(model), x, t, s)
    for row in range(len(x)):
        for d in range(3):
            expected = sum(
                float(p[row, d, k]) * conditional(int(x[row, d]), k, a, b, 0.25, pi) for k in range(process.S)
            )
            torch.testing.assert_close(found[row, d] / found[row, d].sum(), expected, rtol=1e-9, atol=1e-12)


class Square(sf.discrete.Schedule):
    """alpha = (1 - t)^2: kappa = t^2 in the authors' time, which runs the other way."""

    def total(self, t):
        return -2 * torch.log1p(-as_time(t))


@pytest.fixture(scope="module")
def recording() -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(RECORDING)


def toy(r: dict[str, Tensor]) -> sf.discrete.JumpModel:
    w = r["discrete/net_W"]

    def net(x, t):
        one = torch.nn.functional.one_hot(x, 5).to(w)
        return 2 * one @ w + 0.5 * (one.mean(1, keepdim=True) @ w)

    return sf.discrete.JumpModel(net, sf.discrete.Uniform(5, Square()), (3,), predict="data")


@recorded
def test_recording_of_the_path_and_its_velocity(recording):
    """x_t is x_1 where a uniform number is above 1 - kappa, and the velocity kappa' / (1 - kappa) (p(x_1 | x_t) - delta)."""
    r = recording
    t = 1 - r["t"]
    process = sf.discrete.Uniform(5, Square())
    kept = r["discrete/sample/draw000_rand"] >= process.schedule.jumped(t)[:, None]
    assert torch.equal(torch.where(kept, r["discrete/x_1"], r["discrete/x_0"]), r["discrete/x_t"])
    p = torch.softmax(r["discrete/logits"].double(), -1)
    model = sf.discrete.JumpModel(lambda x, t: r["discrete/logits"], process, (3,), predict="data")
    torch.testing.assert_close(model.posterior(r["discrete/x_t"], t).double(), p, rtol=1e-5, atol=1e-6)
    towards, anywhere = FlowMatching().rates(Field(model), t)
    off = r["discrete/velocity"].double().scatter(-1, r["discrete/x_t"].unsqueeze(-1), 0.0)
    ours = (towards[:, None, None] * p).scatter(-1, r["discrete/x_t"].unsqueeze(-1), 0.0)
    torch.testing.assert_close(ours, off, rtol=2e-6, atol=1e-6)
    assert not anywhere.any()


@recorded
@pytest.mark.parametrize("e", [0.0, 0.5])
def test_recording_of_the_chain(recording, e):
    """The recorded draws through `conditional` with the library's rates: as many jump at every step, and where to."""
    r, solver = recording, FlowMatching(e)
    model = toy(r)
    field, x = Field(model), r["discrete/x_0"]
    grid = 1 - torch.linspace(0.05, 1, 7, dtype=F64)
    names = iter(sorted(k for k in r if k.startswith(f"solver_div{e}/categorical")))
    pi = model.process.stationary
    for k in range(5):
        t, h = grid[k], float(grid[k] - grid[k + 1])
        a, b = (float(v) for v in solver.rates(field, t))
        drawn, u = r[next(names)], r[f"solver_div{e}/draw{k:03d}_rand"]
        laws = [conditional(int(i), int(j), a, b, h, pi) for i, j in zip(x.flatten(), drawn.flatten(), strict=True)]
        stay = torch.stack([law[i] for law, i in zip(laws, x.flatten(), strict=True)]).reshape(x.shape)
        jumps = u.double() < 1 - stay
        if jumps.any():
            new = r[next(names)]
            assert len(new) == int(jumps.sum())  # as many jump as in the recording
            if e == 0:
                assert torch.equal(new, drawn[jumps])
            x = x.clone()
            x[jumps] = new
    drawn = r[next(names)]
    assert torch.equal(drawn, r[f"solver_div{e}/x"])
    last = solver.law(field, x, grid[5], torch.zeros((), dtype=F64))
    torch.testing.assert_close(last / last.sum(-1, keepdim=True), model.posterior(x, grid[5]), rtol=1e-5, atol=1e-6)


def test_bad_input_is_one_line():
    with pytest.raises(ValueError, match=r"stochasticity=-1\.0: give 0 or a positive strength"):
        FlowMatching(-1.0)
