"""Trained runs of every forward process on one task: python benchmarks/processes.py which flow phase bridge well

which    all processes, same data, network, batch and steps: distance at 10 and 50 evaluations, time of training
flow     flow matching, read as a VP score too, and straightened
phase    position and velocity: Euler-Maruyama beside the symmetric splitting
bridge   the Schrodinger bridge of two Gaussians in five dimensions, by iterative Markovian fitting
well     a double well without a kernel: from data to samples

The data is four modes N(., 0.15^2 I) on a circle of radius 1.2, the network a perceptron of two layers of 128, the figure
sliced W1 to 10,000 fresh points ("floor": that of another 10,000). Every run has a seed and one thread.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import scorefield as sf
from scorefield.evaluation.distances import sliced_w2, tv_on_grid
from scorefield.flow import reflow, straightness
from scorefield.minimize import minimize
from scorefield.phase import SSCS, PhaseModel, hsm_loss
from scorefield.solve.integrate import Solver
from scorefield.times import LogitNormalTimes, LogNormalTimes

N = 10_000
STEPS, BATCH = 2000, 256
TIME_SCALE, RATE = 10.0, 2e-3
RADIUS, SPREAD = 1.2, 0.15


def modes(n: int, seed: int) -> Tensor:
    """n points, as many of each mode, (n, 2)."""
    draws = torch.Generator().manual_seed(seed)
    angle = 0.5 * math.pi * (torch.arange(n) % 4)
    centres = RADIUS * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    return centres + SPREAD * torch.randn(n, 2, generator=draws)


def far(x: Tensor) -> float:
    """Sliced W1 to fresh points."""
    return sliced_w2(x[:, :2], modes(N, 99), 50, p=1.0)


def fitted(net: nn.Module, loss: Callable[[int], Tensor], steps: int | None = None, lr: float | None = None) -> float:
    """Train in place; seconds of processor."""
    begin = time.process_time()
    minimize(loss, net.parameters(), steps or STEPS, lr=lr or RATE, average=0.995, progress=False)
    return time.process_time() - begin


def batch(step: int) -> Tensor:
    """The data of a step."""
    return modes(BATCH, 1000 + step)


class Wide(nn.Module):
    """A perceptron whose output has another width than its input."""

    def __init__(self, features: int, out: int, log_time: bool = False) -> None:
        super().__init__()
        self.net = sf.nn.MLP(max(features, out), width=128, depth=2, time_scale=TIME_SCALE)
        self.features, self.out, self.log_time = features, out, log_time

    def forward(self, x: Tensor, t: Tensor, x1: Tensor | None = None) -> Tensor:
        if x1 is not None:
            x = torch.cat([x, x1], 1)
        full = torch.nn.functional.pad(x, (0, self.net.features - x.shape[1]))
        y: Tensor = self.net(full, 0.25 * torch.log(t.clamp_min(1e-5)) if self.log_time else t)
        return y[:, : self.out]


def row(*cells: object) -> None:
    """A line of a Markdown table."""
    print("| " + " | ".join(f"{c:.4f}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def head(*cells: str) -> None:
    """The head of a table."""
    row(*cells)
    print("|" + "-|" * len(cells))


def held(name: str, value: float, bar: float) -> None:
    """A figure beside its bar."""
    print(f"{name}: {value:.4f}, bar {bar}: {'met' if value <= bar else 'NOT met'}", flush=True)


def gaussian_model(sde: sf.GaussianSDE, predict: Any, weighting: Any, **loss: Any) -> tuple[sf.ScoreModel, float]:
    """A network trained under an SDE, and the time that took."""
    torch.manual_seed(0)
    model = sf.ScoreModel(
        sf.nn.MLP(2, width=128, depth=2, time_scale=TIME_SCALE), sde, predict, shape=(2,), sigma_data=0.86
    )
    seconds = fitted(model, lambda k: sf.dsm_loss(model, batch(k), weighting, seed=k, **loss).mean() / 2)
    return model.eval(), seconds


def at(model: sf.ScoreModel, solver: Solver, steps: int, **rest: Any) -> float:
    """The distance of samples at so many evaluations."""
    return far(sf.sample(model, N, solver, steps=steps, seed=1, progress=False, **rest))


def which() -> None:
    """One table over all processes, each trained for a few seconds."""
    global N, STEPS, RATE
    N, STEPS, RATE = 4000, 600, 1e-2
    print(f"\nfloor {far(modes(N, 98)):.4f}; {STEPS} steps of {BATCH}, {N} samples\n")
    head("process", "flow, 10", "flow, 50", "with noise, 50", "training, s of processor")
    data = modes(N, 5)
    root = math.sqrt(2)
    cases: list[tuple[str, sf.GaussianSDE, bool]] = [
        ("VE(0.01, 10)", sf.VE(0.01, 10.0), False),
        ("VP()", sf.VP(), False),
        ("SubVP()", sf.SubVP(), False),
        ("OU(1, 2^½, T=3)", sf.OU(1.0, root, 3.0), True),
        ("COU: OU(-1, 2^½, T=2), fitted prior", sf.OU(-1.0, root, 2.0), True),
        ("CVP(), fitted prior", sf.CVP(), True),
        ("CSubVP()", sf.CSubVP(), False),
        ("RectifiedFlow()", sf.RectifiedFlow(), False),
        ("VPIDM() towards y = 0, fitted prior", sf.VPIDM(), True),
        ("OUVE() towards y = 0, fitted prior", sf.OUVE(), True),
    ]
    for name, sde, keeps in cases:
        straight = isinstance(sde, sf.RectifiedFlow)
        kind = "velocity" if straight else "edm"
        times = LogitNormalTimes() if straight else LogNormalTimes(-0.8, 1.2)
        model, seconds = gaussian_model(sde, kind, kind, times=times)
        rest: dict[str, Any] = {"prior": sf.diagnose.fit_prior(sde, data, sde.T, components=4)} if keeps else {}
        noisy: Solver = sf.EulerMaruyama() if straight else sf.solve.ExponentialSDE()
        grid = {} if straight else {"grid": "karras"}
        found = [at(model, sf.UniPC(), n, **rest) for n in (10, 50)]
        row(name, *found, at(model, noisy, 50, **rest, **grid), f"{seconds:.0f}")
    model, seconds = phase_model()
    row(
        "CLD()",
        *(far(_phase(model, sf.Heun(), n // 2)) for n in (10, 50)),
        far(_phase(model, SSCS(), 50)),
        f"{seconds:.0f}",
    )
    bridge, seconds = bridge_model()
    start = torch.randn(N, 2, generator=torch.Generator().manual_seed(7))
    noisy_end = _bridged(bridge, sf.bridge.BridgeAncestral(), start, 50)
    row("Bridge(1) from N(0, I), x_1 seen", "", "", far(noisy_end), f"{seconds:.0f}")
    between, seconds = interpolant_model()
    ends = [_bridged(between, solver, start, n) for solver, n in _interpolant_runs()]
    row("InterpolantModel from N(0, I)", *(far(x) for x in ends), f"{seconds:.0f}")


def _interpolant_runs() -> list[tuple[Solver, int]]:
    return [
        (sf.bridge.InterpolantSDE(noise=0.0), 10),
        (sf.bridge.InterpolantSDE(noise=0.0), 50),
        (sf.bridge.InterpolantSDE(), 50),
    ]


def _bridged(model: sf.ScoreModel, solver: Solver, start: Tensor, steps: int) -> Tensor:
    cond = {"x1": start} if getattr(model, "sees_end", False) else {}
    return sf.sample(model, len(start), solver, steps=steps, x_init=start, t_min=0.0, seed=1, progress=False, **cond)


def bridge_model() -> tuple[sf.bridge.BridgeModel, float]:
    """A bridge from noise to data whose network sees the noise that it came from."""
    torch.manual_seed(0)
    model = sf.bridge.BridgeModel(Wide(4, 2), sf.bridge.Bridge(1.0), shape=(2,))

    def loss(k: int) -> Tensor:
        end = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(k))
        return sf.bridge.bridge_loss(model, batch(k), end, seed=k).mean() / 2

    return model, fitted(model, loss)


def interpolant_model() -> tuple[sf.bridge.InterpolantModel, float]:
    """An interpolant between data and noise that have nothing to do with each other."""
    torch.manual_seed(0)
    model = sf.bridge.InterpolantModel(Wide(2, 4), sf.bridge.Bridge(0.5), shape=(2,))

    def loss(k: int) -> Tensor:
        end = torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(k))
        return sf.bridge.interpolant_loss(model, batch(k), end, seed=k).mean() / 4

    return model, fitted(model, loss)


def flow() -> None:
    """Flow matching and what becomes of it."""
    model, seconds = gaussian_model(sf.RectifiedFlow(), "velocity", "velocity")
    print(f"\nfloor {far(modes(N, 98)):.4f}; trained in {seconds:.0f} s of processor\n")
    head("solver", "10", "50")
    for name, solver in (
        ("Euler", sf.Euler()),
        ("DDIM", sf.DDIM()),
        ("DPMSolver", sf.DPMSolver()),
        ("UniPC", sf.UniPC()),
        ("Ancestral", sf.Ancestral()),
        ("EulerMaruyama", sf.EulerMaruyama()),
    ):
        row(name, *(at(model, solver, n) for n in (10, 50)))
    held("Euler, 50 steps", at(model, sf.Euler(), 50), 0.03)
    vp = model.under(sf.VP())
    held("the same network under VP, Euler-Maruyama, 100 steps", at(vp, sf.EulerMaruyama(), 100, t_min=1e-3), 0.03)
    held("and DPMSolver, 20 steps", at(vp, sf.DPMSolver(), 20, t_min=1e-3), 0.03)
    x = modes(200, 3)
    lp = sf.log_prob(model, x, trace="exact", t_min=1e-3)
    exact = _density(x)
    print(f"log-density of 200 points: error {float((lp.nats - exact).abs().mean()):.3f} nats on average")
    first = straightness(model, 2000)
    x0, z = reflow(model, 20_000, sf.Heun(), seed=2, steps=25, progress=False)
    again = sf.ScoreModel(
        sf.nn.MLP(2, width=128, depth=2, time_scale=TIME_SCALE), sf.RectifiedFlow(), "velocity", shape=(2,)
    )
    again.load_state_dict(model.state_dict())

    def loss(k: int) -> Tensor:
        pick = torch.randint(len(x0), (BATCH,), generator=torch.Generator().manual_seed(k))
        return sf.dsm_loss(again, x0[pick], "velocity", noise=z[pick], seed=k).mean() / 2

    seconds = fitted(again, loss, STEPS // 2, 1e-3)
    second = straightness(again, 2000)
    print(
        f"\nstraightness {first[0]:.3f} ± {first[1]:.3f}; after reflow ({seconds:.0f} s) {second[0]:.3f} ± {second[1]:.3f}\n"
    )
    head("Euler", "1", "2", "4", "10")
    for name, network in (("flow matching", model), ("reflow", again)):
        row(name, *(at(network, sf.Euler(), n) for n in (1, 2, 4, 10)))


def _density(x: Tensor) -> Tensor:
    angle = 0.5 * math.pi * torch.arange(4)
    means = RADIUS * torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    gm = sf.GaussianMixture(means, torch.full((4, 2), SPREAD**2), [0.25] * 4, sf.VP())
    return gm.log_prob(x, 0.0)


def phase_model(steps: int | None = None) -> tuple[PhaseModel, float]:
    """Hybrid score matching with the mixed score."""
    torch.manual_seed(0)
    model = PhaseModel(Wide(4, 2, log_time=True), sf.CLD(), shape=(2,))
    return model, fitted(model, lambda k: hsm_loss(model, batch(k), t=_phase_times(k), seed=k).mean() / 2, steps)


def _phase_times(step: int) -> Tensor:
    """Half uniform, half log-uniform in [1e-4, 1], a tenth of where sampling ends."""
    u = torch.rand(BATCH, generator=torch.Generator().manual_seed(10_000 + step), dtype=torch.float64)
    log_uniform = torch.exp(math.log(1e-4) * (1 - u))
    return torch.where(torch.arange(BATCH) % 2 == 0, log_uniform, 1e-4 + (1 - 1e-4) * u)


def _phase(model: PhaseModel, solver: Solver, steps: int, grid: str = "uniform") -> Tensor:
    return sf.sample(model, N, solver, steps=steps, seed=1, grid=grid, denoise=False, progress=False)


def phase() -> None:
    """Critically damped Langevin diffusion."""
    model, seconds = phase_model(2 * STEPS)
    print(f"\nfloor {far(modes(N, 98)):.4f}; trained in {seconds:.0f} s of processor\n")
    head("grid", "solver", "50 steps", "150 steps", "deviation of w at the end, 150")
    spread = math.sqrt(float(sf.CLD().kernel_matrices(1e-3)[1][1, 1]) / sf.CLD().mass)
    found: dict[str, float] = {}
    for grid in ("uniform", "quadratic"):
        for name, solver in (("EulerMaruyama", sf.EulerMaruyama()), ("SSCS", SSCS()), ("SSCS(order=2)", SSCS(order=2))):
            few, many = (_phase(model, solver, n, grid) for n in (50, 150))
            width = float(many[:, 2:].std()) / math.sqrt(sf.CLD().mass)
            found |= {f"{grid} {name}": far(few), f"{grid} {name} w": width}
            row(grid, name, far(few), far(many), width)
    held("SSCS, 50 steps", found["uniform SSCS"], 0.08)
    held("SSCS beside Euler-Maruyama, 50 steps", found["uniform SSCS"] - found["uniform EulerMaruyama"], 0.0)
    # The last steps of a uniform grid are too long for w to forget their noise, whatever the network.
    held(f"w after SSCS, exact {spread:.3f}, relative error", abs(found["quadratic SSCS w"] / spread - 1), 0.25)


def bridge() -> None:
    """Iterative Markovian fitting: N(-0.1, I) and N(0.1, I) in five dimensions, sigma = 1; exact covariance 0.6180."""
    torch.manual_seed(0)
    begin, seen = time.process_time(), []
    print()
    head("round", "covariance of the ends", "mean of the simulated end, x its sign", "its variance")

    def told(done: sf.bridge.SchrodingerBridge) -> None:
        x0, x1 = done.pairs
        covariance = float(((x0 - x0.mean(0)) * (x1 - x1.mean(0))).mean())
        back = done.history[-1][0] == "backward"
        end = x0 if back else x1
        seen.append((covariance, (-1 if back else 1) * float(end.mean()), float(end.var(0).mean())))
        row(len(seen), *seen[-1])

    sf.bridge.schrodinger_bridge(
        lambda n, g: -0.1 + torch.randn(n, 5, generator=g),
        lambda n, g: 0.1 + torch.randn(n, 5, generator=g),
        (_Drift(5), _Drift(5)),
        rounds=6,
        seed=0,
        progress=False,
        watch=told,
    )
    print(f"\n{time.process_time() - begin:.0f} s of processor")
    covariance, mean, variance = seen[-1]
    held("error of the covariance, exact 0.6180", abs(covariance - 0.618034), 0.02)
    held("error of the variance, exact 1", abs(variance - 1), 0.05)
    held("error of the mean, exact 0.1", abs(mean - 0.1), 0.02)


class _Drift(nn.Module):
    """A perceptron of two layers of 64 on x and t."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features + 1, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, features)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.net(torch.cat([x, t[:, None]], 1))
        return y


class DoubleWell(sf.SDE):
    """A process without a kernel, forward from N(0, 1/4)."""

    T = 2.0

    def drift(self, x: Tensor, t: Any) -> Tensor:
        return x - x**3

    def diffusion(self, x: Tensor, t: Any) -> float:
        return math.sqrt(2.0)


def well() -> None:
    """Simulate, learn the score by sliced score matching, sample backward; with and without a base that pulls inward."""
    sde = DoubleWell()
    start = sde.simulate(_narrow(20_000, 1_000_000), steps=100, seed=0)
    print()
    head(
        "score",
        "steps of training",
        "solver",
        "TV to the data",
        "ran away (beyond 3)",
        "not finite or beyond 100",
        "deviation of those within 3",
        "s of processor",
    )
    row("exact draws", "", "", *_of_well(_narrow(20_000, 5)), "")
    for name in ("network", "drift + network"):
        for steps in (20, 500):
            torch.manual_seed(0)
            net = sf.nn.MLP(1, width=32, time_scale=30.0)
            model = sf.ScoreModel(net, sde, predict="score", shape=(1,))
            if name != "network":
                model = sf.ScoreModel.from_score(lambda x, t: sde.drift(x, t), sde, shape=(1,)) | sf.Residual(net)

            def loss(k: int, model: sf.ScoreModel = model) -> Tensor:
                return sf.ssm_loss(model, _narrow(512, k), steps=25, seed=k).mean()

            seconds = fitted(net, loss, steps, 3e-3)
            for solver in (sf.EulerMaruyama(), sf.solve.TamedEuler()):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of samples that ran away, which are counted here
                    x = sf.sample(model, 20_000, solver, steps=100, prior=start, seed=0, progress=False)
                row(name, steps, type(solver).__name__, *_of_well(x), f"{seconds:.0f}")


def _narrow(n: int, seed: int) -> Tensor:
    return 0.5 * torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))


def _of_well(x: Tensor) -> tuple[float, float, float, float]:
    """TV to N(0, 1/4) by a histogram of cells of 0.1, the shares beyond 3 and beyond 100, the deviation of those within 3."""
    inside = x.abs() < 3  # also false where it is not finite
    count = torch.histogram(x[inside].float(), torch.linspace(-3, 3, 61))[0]
    middle = torch.linspace(-2.95, 2.95, 60)
    density = torch.exp(-2 * middle**2) / math.sqrt(0.5 * math.pi)
    away = float((~inside).double().mean())
    lost = float((~(x.abs() < 100)).double().mean())
    return tv_on_grid(count / len(x) / 0.1, density, 0.1) + 0.5 * away, away, lost, float(x[inside].std())


RUNS: dict[str, Callable[[], None]] = {"which": which, "flow": flow, "phase": phase, "bridge": bridge, "well": well}


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", choices=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.runs:
        print(f"\n# {name}: {(RUNS[name].__doc__ or '').splitlines()[0]}", flush=True)
        RUNS[name]()


if __name__ == "__main__":
    main()
