"""Error against evaluations: our solvers and those of diffusers, k-diffusion and azula, on four problems with exact answers.

    python benchmarks/samplers.py [--out runs/benchmark] [--quick]     error against evaluations: a table and a figure
    python benchmarks/samplers.py --overhead                           time that the solvers themselves take

The peers need `pip install diffusers matplotlib`, and `pip install --no-deps k-diffusion azula einops`; see peers.py.

All start from the same draws at t = 1 of the VP SDE (beta from 0.1 to 20), know noise levels from t = 1 to t = 0.001, and end
at the data; the last evaluation counts. Deterministic solvers are measured by the root-mean-square distance from the exact
flow to t = 0.001 followed by E[x_0 | x], to which all of them converge. Stochastic ones are measured by the sliced W2 distance
from exact draws of the data, over four independent groups of samples; "exact draws" is what another draw of the data has.
A budget is never exceeded: methods with two evaluations a step take half the steps, and adaptive ones the tightest of a
ladder of tolerances whose mean number of evaluations fits.

A few samples lie so close to where two modes part that an error sends them to the other one, and these dominate a root mean
square. So the mixture of scales has thousands of samples, and up to 50 evaluations a standard error is given.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from peers import SDE, T_MIN, Peer, ode_peers, sde_peers
from torch import Tensor

import scorefield as sf
from scorefield.times import Restart

BUDGETS = (5, 10, 20, 50, 100, 200)
SHOWN = (5, 10, 20, 50)
LATE = 128
"""Samples beyond 50 evaluations, where errors are smooth."""
GROUPS = 4
TOLERANCES = [10 ** (-k / 2) for k in range(-1, 15)]
DEFAULT = "scorefield default, pilots"


@dataclass
class Problem:
    """A model whose data is known, and n samples to start from."""

    name: str
    model: sf.ScoreModel
    n: int
    draw: Callable[[int, int], Tensor]
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        own = torch.Generator().manual_seed(1)
        shape = self.model.shape or ()
        self.start = float(SDE.sigma(1.0)) * torch.randn(self.n, *shape, generator=own, dtype=torch.float64)

    def __call__(self, y: Tensor, rho: Tensor) -> Tensor:
        """E[x_0 | x_t = y / sqrt(1 + rho^2)], counted; rho is a number, or the same number for every sample."""
        self.calls += 1
        level = rho.double().flatten()[0]
        return self.model.denoise(y / torch.sqrt(1 + level**2), SDE.inverse_log_snr(-2 * torch.log(level)))

    def exact(self) -> Tensor:
        """Where the flow takes the starting points."""
        solver = sf.Dopri5(1e-8, 1e-8)
        return sf.sample(self.model, self.n, solver, x_init=self.start, t_min=T_MIN, denoise=True, progress=False)


class Softmax(torch.nn.Module):
    """E[x_0 | x_t] of a data set: the mean of its points, weighted by exp(-|x - alpha x_i|^2 / 2 sigma^2)."""

    def __init__(self, points: Tensor) -> None:
        super().__init__()
        self.register_buffer("points", points)
        self.squares = points.square().sum(1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = SDE.alpha(t).unsqueeze(1), SDE.sigma(t).unsqueeze(1)
        logits = (alpha * x @ self.points.T - 0.5 * alpha**2 * self.squares) / sigma**2
        return torch.softmax(logits, 1) @ self.points


def problems(scale: float = 1.0) -> list[Problem]:
    """The four problems; `scale` multiplies the numbers of samples."""
    own = torch.Generator().manual_seed(0)

    def rotated(std: Tensor) -> Tensor:
        basis, _ = torch.linalg.qr(torch.randn(len(std), len(std), generator=own, dtype=torch.float64))
        return basis @ torch.diag(std**2) @ basis.T

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=own, dtype=torch.float64)

    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    ring = sf.GaussianMixture(torch.stack([angle.cos(), angle.sin()], 1), 0.1**2, None, SDE)
    gauss = sf.GaussianMixture(
        normal(1, 64), rotated(torch.logspace(-1, 0.5, 64, dtype=torch.float64))[None], None, SDE
    )
    means, std = normal(4, 16), torch.logspace(-2, 1, 16, dtype=torch.float64)
    scales = sf.GaussianMixture(means, torch.stack([rotated(std) for _ in range(4)]), [0.1, 0.2, 0.3, 0.4], SDE)
    images = torch.stack([sf.digits()[i] for i in range(500)]).double() / 127.5 - 1
    points = torch.nn.functional.avg_pool2d(images, 2).flatten(1)
    digits = sf.ScoreModel(Softmax(points), SDE, "data", shape=points.shape[1:])

    def pick(n: int, seed: int) -> Tensor:
        return points[torch.randint(len(points), (n,), generator=torch.Generator().manual_seed(seed))]

    def mixture(gm: sf.GaussianMixture) -> Callable[[int, int], Tensor]:
        return lambda n, seed: gm.sample(n, seed=torch.Generator().manual_seed(seed))

    return [
        Problem("ring of 8, 2-D", ring, int(1024 * scale), mixture(ring)),
        Problem("Gaussian, 64-D", gauss, int(256 * scale), mixture(gauss)),
        Problem("scales 0.01 to 10, 16-D", scales, int(8192 * scale), mixture(scales)),
        Problem("500 digits, 196-D", digits, int(512 * scale), pick),
    ]


# Our solvers in the peers' interface


def ours(solver: sf.Solver | None, grid: object = None) -> Peer:
    """A solver of the library at the largest number of steps that the budget allows."""

    def run(problem: Problem, x: Tensor, budget: int) -> Tensor:
        keywords = {"x_init": x, "full": True, "progress": False, "seed": torch.Generator().manual_seed(2)}
        if solver is None:
            steps = budget if budget <= 64 else budget - 1  # beyond, it is a method that ends with one evaluation more
            pilots = granted(problem) if steps <= 64 else None
            result = sf.sample(problem.model, len(x), steps=steps, pilots=pilots, **keywords)
        elif isinstance(solver, sf.solve.AdaptiveSDE | sf.Dopri5 | sf.solve.Tsit5 | sf.solve.Bosh3):
            result = adaptive(problem, type(solver), x, budget)
        else:
            steps = fitting(solver, budget)
            result = sf.sample(problem.model, len(x), solver, steps=steps, grid=grid, denoise=True, **keywords)
        problem.calls += math.floor(float(result.nfe.double().mean()))
        return result.x

    return run


def granted(problem: Problem) -> int:
    """Pilots for the fit: 16,384 numbers, from 8 to 512 trajectories."""
    return max(8, min(512, 16_384 // math.prod(problem.model.shape or ())))


def adaptive(problem: Problem, kind: type, x: Tensor, budget: int) -> sf.solve.Solution:
    """The tightest tolerance of the ladder whose mean number of evaluations, on 64 samples, is within 95 % of the budget."""
    keywords = {"denoise": True, "full": True, "progress": False}
    key, tried = (problem.name, kind), _LADDER.setdefault((problem.name, kind), [])
    while len(tried) < len(TOLERANCES) and (not tried or tried[-1] <= 0.95 * budget):
        solver, own = kind(TOLERANCES[len(tried)], TOLERANCES[len(tried)]), torch.Generator().manual_seed(2)
        result = sf.sample(problem.model, 64, solver, x_init=problem.start[:64], seed=own, **keywords)
        tried.append(float(result.nfe.double().mean()))
    fitting = [k for k, calls in enumerate(_LADDER[key]) if calls <= 0.95 * budget]
    if not fitting:
        raise ValueError("no tolerance is loose enough")
    solver, own = kind(TOLERANCES[fitting[-1]], TOLERANCES[fitting[-1]]), torch.Generator().manual_seed(2)
    return sf.sample(problem.model, len(x), solver, x_init=x, seed=own, **keywords)


_LADDER: dict[tuple[str, type], list[float]] = {}


@cache
def fitting(solver: sf.Solver, budget: int) -> int:
    """The largest number of steps with at most `budget` evaluations, the last denoising included."""
    free = sf.ScoreModel.from_score(lambda x, t: -x, SDE, shape=(300,))
    for steps in range(budget, 0, -1):
        result = sf.sample(free, 1, solver, steps=steps, denoise=True, full=True, seed=0, progress=False)
        if int(result.nfe[0]) <= budget:
            return steps
    raise ValueError("one step takes more")


def our_ode() -> dict[str, Peer]:
    """Deterministic solvers of the library."""
    solvers: dict[str, sf.Solver | None] = {
        DEFAULT: None,
        "DDIM": sf.DDIM(),
        **{f"DPMSolver({k})": sf.DPMSolver(k) for k in (2, 3)},
        **{f"DPMSolverSingle({k})": sf.solve.DPMSolverSingle(k) for k in (2, 3)},
        **{f"UniPC({k})": sf.UniPC(k) for k in (2, 3)},
        **{f"DEIS({k})": sf.solve.DEIS(k) for k in (2, 3)},
        "ProbabilityFlow": sf.solve.ProbabilityFlow(),
        "Euler": sf.Euler(),
        "Heun": sf.Heun(),
        "KarrasHeun": sf.solve.KarrasHeun(),
        "RK4": sf.solve.RK4(),
        "Bosh3, adaptive": sf.solve.Bosh3(),
        "Dopri5, adaptive": sf.Dopri5(),
        "Tsit5, adaptive": sf.solve.Tsit5(),
    }
    return {name: ours(solver) for name, solver in solvers.items()}


def our_sde() -> dict[str, Peer]:
    """Stochastic solvers of the library, and its default for comparison."""
    solvers: dict[str, sf.Solver | None] = {
        DEFAULT: None,
        "EulerMaruyama": sf.EulerMaruyama(),
        "ReverseDiffusion": sf.ReverseDiffusion(),
        "Ancestral": sf.Ancestral(),
        "PC(ReverseDiffusion, Langevin(0.01))": sf.PC(sf.ReverseDiffusion(), sf.Langevin(snr=0.01)),
        "PC(Ancestral, AnnealedLangevin(0.16))": sf.PC(sf.Ancestral(), sf.solve.AnnealedLangevin(snr=0.16)),
        "DDIM(eta=1)": sf.DDIM(eta=1.0),
        "ExponentialSDE(1, order 1)": sf.solve.ExponentialSDE(1.0, 1),
        "ExponentialSDE(1, order 2)": sf.solve.ExponentialSDE(1.0, 2),
        "ExponentialSDE(0.3, order 2)": sf.solve.ExponentialSDE(0.3, 2),
        "Churn(0.2)": sf.solve.Churn(0.2),
        "AnalyticAncestral": sf.solve.AnalyticAncestral(),
        "AdaptiveSDE": sf.solve.AdaptiveSDE(),
    }
    found = {name: ours(solver) for name, solver in solvers.items()}
    found["Restart, UniPC(3)"] = restart
    return found


def restart(problem: Problem, x: Tensor, budget: int) -> Tensor:
    """A third of the steps goes through t = 0.1 to 0.4 once more."""
    down = max(1, (budget - 2) // 3)
    plan = Restart(low=0.1, high=0.4, repeats=1, steps=down, base="quadratic")
    steps = budget - 1 - down - 1
    if steps < 2:
        raise ValueError("too few")
    return ours(sf.UniPC(3), plan(SDE, steps, 1.0, T_MIN))(problem, x, budget)


# Measures


@dataclass(frozen=True)
class Cell:
    """An error, its standard error, and the evaluations it took."""

    error: float
    spread: float
    calls: int


def rmse(problem: Problem, run: Peer, truth: Tensor, budget: int) -> Cell:
    n = len(truth) if budget <= SHOWN[-1] else min(LATE, len(truth))
    problem.calls = 0
    squares = (run(problem, problem.start[:n], budget) - truth[:n]).square().flatten(1).mean(1)
    error = math.sqrt(float(squares.mean()))
    return Cell(error, float(squares.std()) / math.sqrt(n) / max(2 * error, 1e-300), problem.calls)


def sliced(problem: Problem, run: Peer, budget: int) -> Cell:
    problem.calls = 0
    torch.manual_seed(3)
    n = min(512, problem.n)
    return compare(run(problem, problem.start[:n], budget), problem.draw(n, 4), problem.calls)


def compare(x: Tensor, y: Tensor, calls: int = 0) -> Cell:
    """Sliced W2 along 64 directions, mean and standard error over groups."""
    directions = torch.randn(x.shape[1], 64, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    directions /= directions.norm(dim=0)
    pairs = zip((x @ directions).chunk(GROUPS), (y @ directions).chunk(GROUPS), strict=True)
    found = torch.stack([(a.sort(0).values - b.sort(0).values).square().mean().sqrt() for a, b in pairs])
    return Cell(float(found.mean()), float(found.std()) / math.sqrt(GROUPS), calls)


Table = dict[str, dict[str, dict[int, Cell]]]


def measure(
    runs: dict[str, Peer], cell: Callable[[Problem, Peer, int], Cell], over: Iterable[Problem], largest: int
) -> Table:
    """Every solver on every problem at every budget, where it can keep the budget."""
    table: Table = {}
    for problem in over:
        begin = time.monotonic()
        for name, run in runs.items():
            for budget in (b for b in BUDGETS if b <= largest):
                try:
                    found = cell(problem, run, budget)
                except (ValueError, IndexError, RuntimeError):
                    continue  # too few steps for this method
                if found.calls > budget:
                    raise AssertionError(f"{name} took {found.calls} evaluations of {budget}")
                table.setdefault(problem.name, {}).setdefault(name, {})[budget] = found
        print(f"{problem.name}: {time.monotonic() - begin:.0f} s", flush=True)
    return table


def is_ours(name: str) -> bool:
    return not name.startswith(("diffusers", "k-diffusion", "azula", "exact"))


def verdict(table: Table) -> str:
    """The default against the best peer of every cell."""
    lines = ["| problem | NFE | default | best peer | | ratio |", "|-|-|-|-|-|-|"]
    for problem, rows in table.items():
        for budget in [b for b in SHOWN if b in rows[DEFAULT]]:
            best = min((n for n in rows if not is_ours(n) and budget in rows[n]), key=lambda n: rows[n][budget].error)
            own, peer = rows[DEFAULT][budget], rows[best][budget]
            ratio = f"{peer.error / own.error:.2f}" if own.error > 0 else ("equal" if peer.error == 0 else "exact")
            lines.append(
                f"| {problem} | {budget} | {own.error:.2g} ± {own.spread:.1g} | {peer.error:.2g} ± {peer.spread:.1g} "
                f"| {best} | {ratio} |"
            )
    return "\n".join(lines)


def listing(table: Table) -> str:
    """Every error that was measured."""
    lines = ["| problem | solver | " + " | ".join(map(str, BUDGETS)) + " |", "|" + "-|" * (2 + len(BUDGETS))]
    for problem, rows in table.items():
        for name in sorted(rows, key=lambda n: rows[n].get(20, Cell(math.inf, 0, 0)).error):
            cells = [f"{rows[name][b].error:.2g}" if b in rows[name] else "" for b in BUDGETS]
            lines.append(f"| {problem} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(ode: Table, sde: Table, path: Path) -> None:
    """Errors against evaluations, ours in colour and peers in grey."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, axes = pyplot.subplots(2, len(ode), figsize=(4.2 * len(ode), 8), sharex=True)
    for row, table in zip(axes, (ode, sde), strict=True):
        for axis, (problem, rows) in zip(row, table.items(), strict=True):
            for name, cells in rows.items():
                own = is_ours(name)
                style = {
                    "color": "k" if name == DEFAULT else None if own else "0.8",
                    "lw": 3 if name == DEFAULT else 1,
                    "zorder": 2 if own else 1,
                }
                axis.loglog(
                    list(cells), [max(c.error, 1e-7) for c in cells.values()], label=name if own else None, **style
                )
            axis.set_title(problem)
            axis.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
            axis.set_xticks([], minor=True)
            axis.set_xlabel("evaluations")
        row[0].set_ylabel("RMSE to the exact flow" if table is ode else "sliced W2 to the data")
        row[-1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), title="grey: other packages")
    pyplot.tight_layout()
    pyplot.savefig(path, dpi=110)


def pilots(over: Iterable[Problem]) -> str:
    """What the default's fit costs, which is paid once and not part of the evaluations above."""
    from scorefield.solve.fitted import _KEPT

    lines = ["| problem | pilots | evaluations of each, 20 steps | seconds |", "|-|-|-|-|"]
    for problem in over:
        _KEPT.clear()
        counted, begin = [0], time.monotonic()
        inside = problem.model.denoise

        def count(
            x: Tensor, t: object, inside: object = inside, counted: list[int] = counted, **cond: object
        ) -> Tensor:
            counted[0] += len(x)
            return inside(x, t, **cond)  # type: ignore[operator]

        problem.model.denoise = count  # type: ignore[method-assign]
        sf.sample(problem.model, 1, steps=20, x_init=problem.start[:1], pilots=granted(problem))
        del problem.model.denoise
        number = granted(problem)
        spent = time.monotonic() - begin
        lines.append(f"| {problem.name} | {number} | {(counted[0] - 20) / number:.0f} | {spent:.1f} |")
    return "\n".join(lines)


def overhead() -> str:
    """CPU time of the solvers themselves at shape (256, 3, 32, 32), with a score that costs next to nothing."""
    model = sf.ScoreModel.from_score(lambda x, t: -x, SDE, shape=(3, 32, 32))
    x = torch.randn(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lines = ["| solver | evaluations | ms per evaluation |", "|-|-|-|"]
    cases: dict[str, tuple[sf.Solver, dict[str, object]]] = {
        "Dopri5(1e-5, 1e-5)": (sf.Dopri5(), {}),
        "DDIM": (sf.DDIM(), {"steps": 50}),
        "DPMSolver(2)": (sf.DPMSolver(), {"steps": 50}),
        "UniPC(3)": (sf.UniPC(), {"steps": 50}),
        "Heun": (sf.Heun(), {"steps": 25}),
    }
    for name, (solver, keywords) in cases.items():
        best = math.inf
        for _ in range(3):
            begin = time.process_time()
            sf.sample(model, 256, solver, x_init=x, progress=False, **keywords)
            best = min(best, time.process_time() - begin)
        result = sf.sample(model, 256, solver, x_init=x, full=True, progress=False, **keywords)
        calls = float(result.nfe.double().mean())
        lines.append(f"| {name} | {calls:.0f} | {1e3 * best / calls:.2f} |")
    begin = time.process_time()
    for _ in range(50):
        torch.neg(x)
    lines.append(f"| the score alone | 50 | {1e3 * (time.process_time() - begin) / 50:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--quick", action="store_true", help="a sixteenth of the samples")
    parser.add_argument("--up-to", type=int, default=BUDGETS[-1], help="largest number of evaluations")
    parser.add_argument("--overhead", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if arguments.overhead:
        print(overhead())
        return
    over = problems(1 / 16 if arguments.quick else 1.0)
    truths = {problem.name: problem.exact() for problem in over}
    print("references are ready", flush=True)
    ode = measure(
        our_ode() | ode_peers(), lambda p, run, budget: rmse(p, run, truths[p.name], budget), over, arguments.up_to
    )
    print(verdict(ode), flush=True)
    sde = measure(our_sde() | sde_peers(), sliced, over, arguments.up_to)
    for problem in over:
        n = min(512, problem.n)
        sde[problem.name]["exact draws"] = dict.fromkeys(BUDGETS, compare(problem.draw(n, 6), problem.draw(n, 4)))
    text = (
        f"# The default against the best peer\n\n{verdict(ode)}\n\n# What its fit costs, once\n\n{pilots(over)}\n\n"
        f"# Deterministic: RMSE to the exact flow\n\n{listing(ode)}\n\n# Stochastic: sliced W2 to the data\n\n{listing(sde)}\n"
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "samplers.md").write_text(text)
    figure(ode, sde, arguments.out / "samplers.png")
    print(
        text.split("# Deterministic")[0].split("# What")[1]
        + f"Everything: {arguments.out}/samplers.md and samplers.png"
    )


if __name__ == "__main__":
    main()
