"""What an error of the score, a step, and a prior cost in the samples: four tables and a figure, without a network.

    python benchmarks/convergence.py [--figure amplification.png] [--only bounds,amplification,steps,prior]

Everything is one-dimensional and known: N(0, v) data, for which the library's own drifts and steps are affine, so that means
and variances follow exactly, and a mixture whose reverse Fokker-Planck equation is solved on a grid. A distance W2 is that of
the laws of the samples and of the data; in d independent dimensions it is d^(1/2) times as large. The bounds are those of
Tang & Zhao 2024 (sec. 5) and of Chen et al. 2023, as printed and as they hold. A quarter of a minute of one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from scipy.linalg import solve_banded
from torch import Tensor

import scorefield as sf
from scorefield.evaluation.distances import tv_on_grid
from scorefield.guide.score_error import ScoreError
from scorefield.solve.integrate import Field

F64 = torch.float64
EPS = (0.05, 0.1, 0.2)
VARIANCES = (1.0, 4.0, 100.0)
MIXTURE = ((0.3, -1.2, 0.09), (0.7, 0.8, 0.25))
"""Weight, mean and variance of each part."""


def data(sde: sf.GaussianSDE, variances: Sequence[float], mean: float = 0.0) -> sf.ScoreModel:
    """The exact model of N(mean, v) data; rows come in pairs of v = variances[0], variances[1], ..., over and over."""
    spread = torch.tensor(variances, dtype=F64).repeat_interleave(2)[:, None]

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
        return -(x - alpha * mean) / (alpha**2 * spread.repeat(len(x) // len(spread), 1) + sigma**2)

    return sf.ScoreModel.from_score(score, sde, shape=(1,))


@dataclass(frozen=True)
class Start:
    """Means and variances, (n,), of the samples at `time`."""

    time: float
    mean: Tensor
    variance: Tensor


def exact_start(sde: sf.GaussianSDE, variances: Sequence[float], mean: float = 0.0, time: float | None = None) -> Start:
    """p_t itself."""
    t = sde.T if time is None else time
    alpha, spread = sde.alpha(t), torch.tensor(variances, dtype=F64)
    return Start(t, torch.full_like(spread, float(alpha) * mean), alpha**2 * spread + sde.sigma(t) ** 2)


def follow(model: sf.ScoreModel, start: Start, noise: float = 1.0, end: float = 0.0, steps: int = 300) -> Start:
    """Moments at `end` of the reverse process with that noise, by RK4 on their equations, which the drift closes."""
    sde: sf.GaussianSDE = model.sde
    # finer near the data, where the rates of small variances are largest
    grid = end + (start.time - end) * torch.linspace(1, 0, steps + 1, dtype=F64) ** 1.5
    times = torch.stack([grid[:-1], 0.5 * (grid[:-1] + grid[1:])], 1).flatten()
    times = torch.cat([times, grid[-1:]])
    n = len(start.mean)
    # the drift at 0 and 1, of every variance at every time
    unit = torch.tensor([0.0, 1.0], dtype=F64).repeat(n * len(times))[:, None]
    each = times.repeat_interleave(2 * n)
    drift = sde.reverse_drift(unit, each, model.score(unit, each), noise).reshape(len(times), n, 2)
    offset, rate, g2 = drift[..., 0], drift[..., 1] - drift[..., 0], noise**2 * sde.g2(times)

    def slope(k: int, m: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return offset[k] + rate[k] * m, 2 * rate[k] * v - g2[k]

    m, v = start.mean, start.variance
    for k, h in enumerate(grid.diff().tolist()):
        a, b = slope(2 * k, m, v)
        c, d = slope(2 * k + 1, m + h / 2 * a, v + h / 2 * b)
        e, f = slope(2 * k + 1, m + h / 2 * c, v + h / 2 * d)
        g, w = slope(2 * k + 2, m + h * e, v + h * f)
        m, v = m + h / 6 * (a + 2 * c + 2 * e + g), v + h / 6 * (b + 2 * d + 2 * f + w)
    return Start(end, m, v)


def amplification(
    sde: sf.GaussianSDE, variances: Sequence[float], time: float | None = None, noise: float = 1.0
) -> list[float]:
    """W2 of the samples for each unit of a constant error of the score, from the exact p_t: the shift of their mean."""
    wrong = data(sde, variances) | ScoreError(lambda x, t: torch.ones_like(x))
    return follow(wrong, exact_start(sde, variances, 0.0, time), noise).mean.tolist()


def noise_amplification(
    sde: sf.GaussianSDE, variances: Sequence[float], low: float, high: float, noise: float = 1.0
) -> list[float]:
    """The same for the noise prediction, between sigma / alpha = `high` and `low`, in x / alpha."""
    first, last = (float(sde.inverse_log_snr(-2 * math.log(r))) for r in (high, low))
    wrong = data(sde, variances) | ScoreError(lambda x, t: -1 / sde.sigma(t).reshape(-1, 1) * torch.ones_like(x))
    end = follow(wrong, exact_start(sde, variances, 0.0, first), noise, last, steps=200)
    return (-end.mean / sde.alpha(last)).tolist()


@cache
def spent(sde: sf.GaussianSDE) -> float:
    """The integral of g^2 over [0, T]."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    t = torch.tensor(0.5 * sde.T * (nodes + 1))
    return float(0.5 * sde.T * (torch.tensor(weights) * sde.g2(t)).sum())


def shifted_tv(shift: float, variance: float) -> float:
    """Total variation between N(0, v) and N(shift, v)."""
    return math.erf(shift / (2 * math.sqrt(2 * variance)))


def girsanov(sde: sf.GaussianSDE, eps: float) -> float:
    """(eps / 2) (int g^2)^(1/2): KL = 1/2 int g^2 E|ds|^2 of the paths, with Pinsker's inequality."""
    return 0.5 * eps * math.sqrt(spent(sde))


def printed_tv(sde: sf.GaussianSDE, eps: float) -> float:
    """eps (T / 2)^(1/2), as the theorem is often quoted; it is the other one only where int g^2 <= 2 T."""
    return eps * math.sqrt(sde.T / 2)


def gronwall(sde: sf.GaussianSDE, variance: float, lipschitz: bool = False, n: int = 4000) -> float:
    """Bound on W2 / eps, with the best h.

    W2^2 <= eps^2 / 2h int g^2 exp(int_0^t (-2 f - 2 g^2 / c + 2 h g^2)), by the concavity 1 / c(t) of log p_t; with
    `lipschitz` by + g^2 / v in its place, that is by no more than the size of the slope.
    """
    t = torch.linspace(0, sde.T, n + 1, dtype=F64)
    g2, f = sde.g2(t), sde.f(t)
    c = sde.alpha(t) ** 2 * variance + sde.sigma(t) ** 2
    rate = g2 / variance if lipschitz else -g2 / c
    step = sde.T / n

    def bound(h: float) -> float:
        growth = -2 * f + 2 * rate + 2 * h * g2
        exponent = torch.cat([torch.zeros(1, dtype=F64), torch.cumsum(0.5 * step * (growth[1:] + growth[:-1]), 0)])
        return float(torch.trapezoid(g2 * torch.exp(exponent), dx=step)) / (2 * h)

    return math.sqrt(min(bound(h) for h in np.exp(np.linspace(math.log(1e-4), math.log(2.0), 160)).tolist()))


def mixture_tv(errors: Sequence[Callable[[Tensor], Tensor]], cells: int = 3201, steps: int = 500) -> list[float]:
    """TV to the data of the reverse process under VP from the exact p_T, for each error of the score.

    A Scharfetter-Gummel scheme on [-8, 8], of second order in time; the last value is that without an error.
    """
    sde = sf.VP()
    weights, means, variances = (list(v) for v in zip(*MIXTURE, strict=True))
    gm = sf.GaussianMixture(
        torch.tensor(means, dtype=F64)[:, None], torch.tensor(variances, dtype=F64)[:, None], weights, sde
    )
    x = torch.linspace(-8, 8, cells, dtype=F64)
    width = float(x[1] - x[0])
    edges = 0.5 * (x[1:] + x[:-1])[:, None]
    wrong = [gm | ScoreError(lambda y, t, error=error: error(y)) for error in errors]
    shifts = [(model.score(edges, 1.0) - gm.score(edges, 1.0))[:, 0] for model in wrong]
    shifts.append(torch.zeros_like(shifts[0]))
    # quadratic, so that the last steps, where the data is sharp, are small
    grid = torch.linspace(1, 0, steps + 1, dtype=F64) ** 2
    densities = [torch.exp(gm.log_prob(x[:, None], 1.0)).numpy()] * len(shifts)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        middle, h = 0.5 * (t + s), t - s
        g2 = float(sde.g2(middle))
        exact = -sde.reverse_drift(edges, middle, gm.score(edges, middle))[:, 0]
        for k, shift in enumerate(shifts):
            bands = _implicit((exact + g2 * shift).numpy(), 0.5 * g2, width, 0.5 * h)
            densities[k] = solve_banded((1, 1), bands, 2 * densities[k] - _times(bands, densities[k]))
    target = torch.exp(gm.log_prob(x[:, None], 0.0))
    return [tv_on_grid(torch.from_numpy(p), target, width) for p in densities]


def _implicit(drift: np.ndarray, half: float, width: float, h: float) -> np.ndarray:
    """Bands of 1 - h A, A the flux form of -(b p)' + half p'' with exponential weights at the edges."""
    peclet = drift * width / half
    up, down = (half / width**2 * _bernoulli(sign * peclet) for sign in (-1, 1))  # out of the left and the right cell
    bands = np.zeros((3, len(drift) + 1))
    bands[1] = 1.0
    bands[1, :-1] += h * up
    bands[1, 1:] += h * down
    bands[0, 1:] = -h * down
    bands[2, :-1] = -h * up
    return bands


def _times(bands: np.ndarray, p: np.ndarray) -> np.ndarray:
    out: np.ndarray = bands[1] * p
    out[:-1] += bands[0, 1:] * p[1:]
    out[1:] += bands[2, :-1] * p[:-1]
    return out


def _bernoulli(z: np.ndarray) -> np.ndarray:
    small = np.abs(z) < 1e-6
    safe = np.where(small, 1.0, z)
    return np.where(small, 1 - z / 2, safe / np.expm1(safe))


def euler_maruyama(sde: sf.GaussianSDE, variances: Sequence[float], grid: Tensor) -> list[float]:
    """Error of the standard deviation of x / alpha at the end of a grid, from the exact start, by the solver's own steps."""
    model = data(sde, variances)
    field, solver = Field(model), sf.EulerMaruyama()
    v = exact_start(sde, variances, 0.0, float(grid[0])).variance
    unit = torch.tensor([0.0, 1.0], dtype=F64).repeat(len(variances))[:, None]
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        mean, std = solver.kernel(field, unit, t, s)
        slope = mean.reshape(-1, 2).diff(dim=1)[:, 0]
        v = slope**2 * v + float(std) ** 2
    exact = exact_start(sde, variances, 0.0, float(grid[-1])).variance
    return ((torch.sqrt(v) - torch.sqrt(exact)) / sde.alpha(grid[-1])).tolist()


def even(sde: sf.GaussianSDE, steps: int) -> Tensor:
    """Steps of equal length from T to 0."""
    return torch.linspace(sde.T, 0, steps + 1, dtype=F64)


def prior_bias(
    sde: sf.GaussianSDE, variances: Sequence[float], noise: float, fitted: bool = False, steps: int = 400
) -> list[Start]:
    """Moments of the samples of N(1, v) data with the exact score, from the nominal prior or from p_T."""
    start = exact_start(sde, variances, 1.0)
    if not fitted:
        nominal = torch.full_like(start.mean, float(sde.sigma(sde.T)) ** 2)
        start = replace(start, mean=torch.zeros_like(start.mean), variance=nominal)
    end = follow(data(sde, variances, 1.0), start, noise, steps=steps)
    return [replace(end, mean=m, variance=v) for m, v in zip(end.mean, end.variance, strict=True)]


def row(*cells: object) -> None:
    """A line of a Markdown table."""
    print("| " + " | ".join(f"{c:.5g}" if isinstance(c, float) else str(c) for c in cells) + " |", flush=True)


def head(title: str, *cells: str) -> None:
    """A heading, and the head of a table."""
    print(f"\n## {title}\n")
    row(*cells)
    print("|" + "---|" * len(cells))


def bounds() -> None:
    """Table 1: distances and the bounds on them."""
    head(
        "Total variation, samples from the exact p_T with a wrong score",
        *("SDE, data", "error", "eps", "TV", "(eps/2) (int g^2)^(1/2)", "as printed, eps (T/2)^(1/2)", "printed holds"),
    )
    for sde, name in ((sf.VP(), "VP"), (sf.VE(0.01, 50.0), "VE"), (sf.OU(1.0, math.sqrt(2), 1.0), "OU")):
        for variance in (0.25, 1.0, 4.0):
            unit = amplification(sde, [variance])[0]
            for eps in EPS:
                tv = shifted_tv(unit * eps, variance)
                _bound_row(f"{name}, N(0, {variance})", "constant", eps, tv, sde)
    errors: dict[str, Callable[[Tensor], Tensor]] = {
        "constant": torch.ones_like,
        "sign(sin 3x)": lambda x: torch.sign(torch.sin(3 * x)),
        "sign(x + 0.3)": lambda x: torch.sign(x + 0.3),
    }
    cases = [(name, eps) for name in errors for eps in EPS]
    found = mixture_tv([lambda x, name=name, eps=eps: eps * errors[name](x) for name, eps in cases])
    for (name, eps), tv in zip(cases, found, strict=False):
        _bound_row("VP, two Gaussians", name, eps, tv, sf.VP())
    head(
        "W2 / eps under VP by the concavity kappa = 1 / v of the data",
        *("kappa", "measured", "best one-sided bound", "2 / q, q = 2 min(kappa, 1) - 1", "as printed, times beta_max"),
    )
    for kappa in (0.6, 0.75, 1.0, 2.0, 4.0):
        simple = 2 / (2 * min(kappa, 1.0) - 1)
        measured = amplification(sf.VP(), [1 / kappa])[0]
        row(kappa, measured, gronwall(sf.VP(), 1 / kappa), simple, simple * sf.VP().beta_max)


def _bound_row(what: str, error: str, eps: float, tv: float, sde: sf.GaussianSDE) -> None:
    true, printed = girsanov(sde, eps), printed_tv(sde, eps)
    if tv > true:
        raise AssertionError(f"{what}, {error}, {eps}: {tv} exceeds {true}")
    row(what, error, eps, tv, true, printed, "yes" if tv <= printed else "NO")


def by_end_time() -> dict[str, Callable[[float], tuple[sf.GaussianSDE, float]]]:
    """SDEs and their end times; those with a schedule of beta are stopped at t <= 1, the others have constant rates."""
    root = math.sqrt(2)
    return {
        "OU": lambda T: (sf.OU(1.0, root, T), T),
        "Brownian (VE, g^2 = 2)": lambda T: (sf.OU(0.0, root, T), T),
        "COU": lambda T: (sf.OU(-1.0, root, T), T),
        "VP": lambda T: (sf.VP(), T / 8),
        "sub-VP": lambda T: (sf.SubVP(), T / 8),
        "CVP": lambda T: (sf.CVP(), T / 8),
        "CsubVP": lambda T: (sf.CSubVP(), T / 8),
    }


def amplifications(figure: Path | None) -> None:
    """Table 2: how much of a score's error arrives, and the figure."""
    times = (1.0, 2.0, 4.0, 8.0)
    head(
        "W2 for a unit constant error of the score, by the end time (T for the first three; t = T/8 of beta's schedule)",
        *("SDE", "v", *(f"T = {t:g}" for t in times), "flow, T = 8"),
    )
    curves = {}
    for name, make in by_end_time().items():
        found = [amplification(*_at(make(t))) for t in times]
        sde, end = make(times[-1])
        flow = amplification(sde, VARIANCES, end, 0.0)
        for k, variance in enumerate(VARIANCES):
            row(name, variance, *(values[k] for values in found), flow[k])
        curves[name] = [values[1] for values in found]
    head(
        "The same for a unit error of the noise prediction, sigma / alpha from 40 to 0.02 (CVP: 0.99)",
        *("SDE", "v = 0.25", "v = 1", "v = 4"),
    )
    for name, sde, high in (
        ("VE", sf.VE(0.01, 50.0, exact=True), 40.0),
        ("VP", sf.VP(), 40.0),
        ("sub-VP", sf.SubVP(), 40.0),
        ("CsubVP", sf.CSubVP(), 40.0),
        ("VP", sf.VP(), 0.99),
        ("CVP", sf.CVP(), 0.99),
    ):
        row(f"{name} from {high:g}", *noise_amplification(sde, (0.25, 1.0, 4.0), 0.02, high))
        if high == 40.0:
            row(f"{name} from {high:g}, flow", *noise_amplification(sde, (0.25, 1.0, 4.0), 0.02, high, 0.0))
    if figure is not None:
        draw(curves, times, figure)


def _at(made: tuple[sf.GaussianSDE, float]) -> tuple[sf.GaussianSDE, Sequence[float], float]:
    return made[0], VARIANCES, made[1]


def steps() -> None:
    """Table 3: Euler-Maruyama on the reverse SDE."""
    head(
        "Error of the standard deviation (W2) of Euler-Maruyama with the exact score from p_T, by steps per unit of time",
        *("SDE", "v", "T", "20", "40", "80", "160"),
    )
    for theta, name in ((1.0, "OU"), (-1.0, "COU")):
        for T in (1.0, 2.0, 4.0, 8.0):
            sde = sf.OU(theta, math.sqrt(2), T)
            found = [euler_maruyama(sde, (4.0, 100.0), even(sde, int(n * T))) for n in (20, 40, 80, 160)]
            for k, variance in enumerate((4.0, 100.0)):
                row(name, variance, T, *(values[k] for values in found))
    head(
        "One network under two SDEs, v = 0.25, sigma / alpha from 50 to 0.01, steps even in the SDE's own time",
        *("SDE", *(str(n) for n in (25, 50, 100, 200, 400, 800))),
    )
    for name, sde in (("VE", sf.VE(0.01, 50.0, exact=True)), ("CsubVP", sf.CSubVP()), ("VP", sf.VP())):
        first, last = (float(sde.inverse_log_snr(-2 * math.log(r))) for r in (50.0, 0.01))
        grids = [torch.linspace(first, last, n + 1, dtype=F64) for n in (25, 50, 100, 200, 400, 800)]
        row(name, *(euler_maruyama(sde, (0.25,), grid)[0] for grid in grids))


def priors() -> None:
    """Table 4: what the nominal prior costs where x_T remembers x_0."""
    head(
        "Mean and variance of the samples of N(1, v) data: exact score, prior N(0, sigma(T)^2) or p_T",
        *("SDE", "v", "reverse SDE", "flow", "flow from p_T"),
    )
    root = math.sqrt
    for name, sde in (
        ("VP", sf.VP()),
        ("CVP", sf.CVP()),
        ("CsubVP", sf.CSubVP()),
        ("COU T = 4, g^2 = 2", sf.OU(-1.0, root(2), 4.0)),
        ("COU T = 4, g^2 = 20", sf.OU(-1.0, root(20), 4.0)),
        ("COU T = 4, g^2 = 200", sf.OU(-1.0, root(200), 4.0)),
    ):
        variances = (0.25, 1.0, 4.0)
        three = [
            prior_bias(sde, variances, 1.0),
            prior_bias(sde, variances, 0.0),
            prior_bias(sde, variances, 0.0, True),
        ]
        for k, variance in enumerate(variances):
            row(name, variance, *(f"{float(e[k].mean):.6f}, {float(e[k].variance):.6f}" for e in three))


def draw(curves: dict[str, list[float]], times: Sequence[float], path: Path) -> None:
    """The figure: amplification against the end time, v = 4."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for name, values in curves.items():
        axes.plot(times, values, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xticks=list(times), xlabel="end time T (8 t for schedules of beta)")
    axes.set(ylabel="W2 for a unit error of the score", title="N(0, 4) data")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"\nwrote {path}")


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="where to write the figure, a .png")
    parser.add_argument("--only", default="bounds,amplification,steps,prior", help="tables, by commas")
    options = parser.parse_args()
    tables: dict[str, Callable[[], None]] = {
        "bounds": bounds,
        "amplification": lambda: amplifications(options.figure),
        "steps": steps,
        "prior": priors,
    }
    wanted = options.only.split(",")
    unknown = [name for name in wanted if name not in tables]
    if unknown:
        parser.error(f"--only {unknown[0]}: choose from {', '.join(tables)}")
    for name in wanted:
        tables[name]()


if __name__ == "__main__":
    main()
