"""Consistency models against recordings of the authors' code: grids, weights, losses with gradients, samplers, editing."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import scorefield as sf
from map_oracles import EDM
from scorefield.consistency import Karras, Progressive, consistency_loss, weigh
from scorefield.solve import KarrasHeun

F64 = torch.float64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
SHAPE = (3, 8, 8)
ROUNDING = math.sqrt(0.002000000000000003**2 - 0.002**2)
LUMA = torch.tensor([0.2989, 0.5870, 0.1140], dtype=F64)


class Toy(nn.Module):
    """The network of the recordings, at t = 1/4 log(sigma): p_0 tanh(p_1 x) + p_2 sin(3 t)."""

    def __init__(self, *p: float) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=F64))

    def forward(self, x, t):
        return self.p[0] * torch.tanh(self.p[1] * x) + self.p[2] * torch.sin(3 * t.reshape(-1, *[1] * (x.ndim - 1)))


def student() -> sf.FlowMap:
    return sf.FlowMap(Toy(0.7, 0.9, 0.2), EDM(), shape=SHAPE)


def teacher() -> sf.ScoreModel:
    return sf.ScoreModel(Toy(0.5, 0.8, -0.1), EDM(), "edm", shape=SHAPE, sigma_data=0.5)


def recorded(name: str) -> dict[str, Tensor]:
    path = SHARED / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"the recording {name} is not in ../shared/parity")
    return load_file(path)


def close(found: Tensor, expected: Tensor, bar: float) -> None:
    scale = float(expected.abs().max())
    assert float((found.detach() - expected).abs().max()) <= bar * max(scale, 1.0)


def test_grids():
    r = recorded("25_cm_schedules")
    for n in (2, 3, 18, 40, 151, 1281):
        falling = Karras(n).levels(EDM(), 0.002).flip(0)
        close(falling, r[f"consistency_grid_{n}"], 1e-12)
        close(falling, r[f"get_sigmas_karras_{n}"][:-1], 1e-12)


def test_weights():
    r = recorded("25_cm_schedules")
    for name in ("uniform", "snr", "snr+1", "truncated-snr", "karras"):
        assert torch.allclose(weigh(r["sigma"], name), r[f"weight_{name}"], rtol=1e-12)
    with pytest.raises(ValueError, match="'snr2' is unknown"):
        Karras(18, weighting="snr2")


@pytest.mark.parametrize("run", ["ct_imagenet64", "ct_lsun"])
def test_numbers_of_levels_and_rates_of_the_target(run):
    """N(k) and mu(k) as the code has them, which divides by one less than the paper."""
    r = recorded("25_cm_schedules")
    told = json.loads((SHARED / "25_cm_schedules.json").read_text())["schedules"][run]
    pairs = Progressive(told["start_scales"], told["end_scales"], told["total_steps"], told["start_ema"])
    steps = r["steps"].tolist()
    assert [pairs.count(k) for k in steps] == r[f"{run}_num_scales"].tolist()
    close(torch.tensor([pairs.target_decay(k) for k in steps], dtype=F64), r[f"{run}_target_ema"], 1e-12)
    u = torch.linspace(0.01, 0.99, 20, dtype=F64)
    early, late, _ = pairs(u, EDM(), 0.002, steps[5])
    grid = Karras(pairs.count(steps[5])).levels(EDM(), 0.002)
    assert torch.equal(torch.searchsorted(grid, early) + 1, torch.searchsorted(grid, late))


def test_scalings_and_clock():
    """c_skip and c_out as a network of zeros and one of ones show them, c_in and the clock as the network sees them."""
    r = recorded("25_cm_schedules")
    seen = []

    def answer(value):
        def net(x, t):
            seen.append((x, t))
            return torch.full_like(x, value)

        return net

    t, x = r["sigma"], torch.full((8, 1), 0.7, dtype=F64)
    maps = [sf.FlowMap(answer(v), EDM(), shape=(1,)) for v in (0.0, 1.0)]
    models = [sf.ScoreModel(answer(v), EDM(), "edm", shape=(1,), sigma_data=0.5) for v in (0.0, 1.0)]
    for kind, (zero, one) in (
        ("boundary", [m.jump(x, t)[:, 0] for m in maps]),
        ("edm", [m.denoise(x, t)[:, 0] for m in models]),
    ):
        close(zero / 0.7, r[f"{kind}_c_skip"], 1e-12)
        close(one - zero, r[f"{kind}_c_out"], 1e-12)
    for state, clock in seen:
        close(state[:, 0] / 0.7, r["boundary_c_in"], 1e-12)
        close(1000 * clock, r["clock"], 1e-12)


@pytest.mark.parametrize("n", [18, 40])
@pytest.mark.parametrize("kind", ["ct", "cd"])
def test_losses_and_gradients(kind, n):
    """The recorded ones are means over the event; distillation takes Heun's step of the teacher."""
    r = recorded("25_cm_losses")
    fm, target = student(), sf.FlowMap(Toy(0.65, 1.0, 0.15), EDM(), shape=SHAPE)
    rho = Karras(n).levels(EDM(), 0.002)
    late = n - 1 - r[f"index_N{n}"]
    close(rho[late], r[f"t_N{n}"], 1e-12)
    x_late = EDM().perturb(r["x0"], rho[late], r["noise"])
    close(fm.jump(x_late, rho[late]), r[f"student_N{n}"], 1e-12)
    for key in (k for k in r if k.startswith(f"{kind}_N{n}_") and not k.endswith("_grad")):
        distance, weighting = key.split("_")[2:]
        each = consistency_loss(
            fm,
            r["x0"],
            teacher=teacher() if kind == "cd" else None,
            target=target,
            distance=distance,
            t=(rho[late - 1], rho[late]),
            noise=r["noise"],
        )
        each = weigh(rho[late], weighting) * each / r["x0"][0].numel()
        assert torch.allclose(each, r[key], rtol=1e-12, atol=0)
        (grad,) = torch.autograd.grad(each.mean(), fm.net.p)
        assert torch.allclose(grad, r[f"{key}_grad"], rtol=1e-11, atol=1e-14)


def drawn(bank: Tensor):
    """The recorded normal tensors in their order."""
    tensors = iter(bank.double())
    return lambda shape: next(tensors)


def falling(n: int) -> Tensor:
    return Karras(n).levels(EDM(), 0.002).flip(0)


def test_one_step_and_multistep():
    r = recorded("25_cm_samplers")
    fm = student()
    close(sf.sample(fm, 4, sf.Jump(), x_init=r["x_T"], steps=1), r["onestep"], 1e-12)
    for name, n, at in (
        ("multistep_0_22_39", 40, [0, 22, 39]),
        ("multistep_0_10_20_30_39", 40, [0, 10, 20, 30, 39]),
        ("multistep_0_106_200_steps201", 201, [0, 106, 200]),
        (
            "multistep_0_10_25_unfinished",
            40,
            [0, 10, 25],
        ),  # ends at a noisy time, as asked: it is times that are given here
    ):
        solution = sf.sample(fm, 4, sf.Jump(), x_init=r["x_T"], grid=falling(n)[at], noise=drawn(r["bank"]), full=True)
        expected = r[name]
        if "unfinished" not in name:
            # The reference's last time is 3e-18 above t_min, for which it adds sqrt(t^2 - t_min^2) z of noise.
            expected = expected - ROUNDING * r["bank"][len(at) - 2]
        close(solution.x, expected, 1e-12)
        assert solution.nfe.tolist() == [len(at) - 1] * 4


@dataclass(frozen=True)
class CubeRootMidpoint(sf.Solver):
    """A user's solver: the midpoint rule with the midpoint of t^{1/3}, as the authors' `sample_dpm`."""

    order = 2

    def step(self, field, x, t, s, state, noise):
        middle = (0.5 * (t ** (1 / 3) + s ** (1 / 3))) ** 3
        ahead = x + (middle - t) * field.velocity(x, t)
        return x + (s - t) * field.velocity(ahead, middle), None


def test_samplers_of_the_teacher():
    r = recorded("25_cm_samplers")
    grid = recorded("25_cm_schedules")["get_sigmas_karras_18"]
    for name, solver in (
        ("euler", sf.Euler()),
        ("heun", KarrasHeun()),
        ("ancestral", sf.Ancestral()),
        ("dpm", CubeRootMidpoint()),
    ):
        options = {"x_init": r["x_T"], "grid": grid, "noise": drawn(r["bank"]), "denoise": False}
        close(sf.sample(teacher(), 4, solver, **options), r[f"edm_{name}_18"], 1e-12)
    fm = student()
    read = sf.ScoreModel(lambda x, t: fm.jump(x, t), EDM(), "data", shape=SHAPE)
    found = sf.sample(read, 4, sf.Euler(), x_init=r["x_T"], grid=falling(19), denoise=False)
    close(found, r["progdist_18"], 1e-12)


def edited(r: dict[str, Tensor], operator, solver: sf.Jump) -> Tensor:
    """Zero-shot editing by the hook that imputes, on the noise of the recording.

    The reference puts the known part into the map's answer and then adds sqrt(t^2 - e^2) z to the whole; the hook makes the
    known part y + t z' afterwards, which is the same with z' = z sqrt(1 - e^2 / t^2). It starts from x_T as it is.
    """
    grid, y = falling(40)[[0, 10, 20, 30, 39]], operator(r["image"])
    draws = [(r["x_T"] - r["image"]) / grid[0]]
    for z, t in zip(r["bank"].double(), grid[1:], strict=False):
        kept = torch.sqrt((1 - (0.002 / t) ** 2).clamp_min(0))
        draws += [z, kept * z] if float(kept) > 1e-6 else [0 * z]  # no noise after the last jump
    return sf.sample(
        student(),
        4,
        solver,
        x_init=r["x_T"],
        grid=grid,
        noise=drawn(torch.stack(draws)),
        hooks=[sf.Replace(operator, y)],
    )


@pytest.mark.parametrize("name", ["colorized", "superres"])
def test_zero_shot_editing(name):
    """The reference ran in float32; colours are rotated so that one axis is luminance, resolution is that of 8 x 8 means."""
    r = recorded("25_cm_samplers")
    luma = tuple((LUMA / LUMA.norm()).tolist())
    operator = sf.Grayscale(luma) if name == "colorized" else sf.Downsample(8)
    found = edited(r, operator, sf.Jump(low=-1.0, high=1.0))
    close(found, r[name].double(), 1e-5)
    assert torch.allclose(operator(found), operator(r["image"]), atol=1e-9)
    assert torch.allclose(operator(r[f"{name}_known"].double()), operator(r["image"]), atol=1e-6)
