"""Flow matching: pairs of data and noise that make the flow straight, and how straight it is."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scorefield.coefficients import Time
from scorefield.dtypes import check_batch, check_finite, check_tensor
from scorefield.inputs import tensor_of
from scorefield.model import ScoreModel
from scorefield.objective import draw, dsm_loss
from scorefield.randomness import Noise, generator, source
from scorefield.sampling import sample
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Solver
from scorefield.solve.ode import RK4, Dopri5
from scorefield.times import Proposal, UniformTimes


def flow_matching_loss(
    model: ScoreModel,
    x0: Tensor,
    *,
    transport: bool = True,
    regularisation: float = 0.0,
    label: Tensor | None = None,
    seed: int | torch.Generator | None = None,
    t: Time | None = None,
    noise: Tensor | None = None,
    times: Proposal | None = None,
    **cond: Any,
) -> Tensor:
    r"""|| velocity(x_t, t) - (alpha' x_0 + sigma' eps) ||^2 with noise that is paired with the data (Tong et al. 2024), (B,).

    With `RectifiedFlow` the target is eps - x_0 (Lipman et al. 2023, eq. 23, in noise time). Paired noise makes straighter
    flows; **only the velocity, E[x_0 | x_t] and E[eps | x_t] are then what they are called**: the score is no longer
    -E[eps | x_t] / sigma, so that solvers with noise and posterior samplers ask for independent pairs. It has the signature
    that `train(loss=)` calls; use `dsm_loss(weighting="velocity")` for independent pairs.

    Main arguments:
        x0: data in the model's range, (B, *). transport: permute the noise of the batch, see `minibatch_ot`.
        regularisation: as there. label: condition, (B,): pairs are made within each of its values, without which a class would
            be sampled from noise that it never saw.

    Other arguments:
        seed, t, noise, times, cond: as in `dsm_loss`.
    """
    time, scale, eps = draw(model.sde, x0, times or UniformTimes(), seed, t, noise, True)
    if transport:
        eps = minibatch_ot(x0, eps, label, regularisation=regularisation)
    cond = cond if label is None else cond | {"label": label}
    each = dsm_loss(model, x0, "velocity", t=time, noise=eps, **cond)
    return each * scale.to(each)


def minibatch_ot(
    x0: Tensor,
    noise: Tensor,
    label: Tensor | None = None,
    *,
    regularisation: float = 0.0,
    seed: int | torch.Generator | None = None,
) -> Tensor:
    r"""The noise, permuted so that the squared distances to its partners in x0 have the least sum (Pooladian et al. 2023).

    Main arguments:
        x0: data (B, *). noise: like it. label: (B,); noise is exchanged within each value alone.
        regularisation: 0 for the assignment itself, which needs scipy; else of entropic transport with cost |x - y|^2: partners
            are drawn from its plan, with replacement. A Schrodinger bridge of diffusion sigma has 2 sigma^2 (Tong et al. 2024).
        seed: an int or a generator, for those draws.

    Returns:
        Noise like x0; the marginal law of its rows within a batch is as before where `regularisation` is 0.

    Raises:
        ValueError: other shapes, entries that are not finite, a negative regularisation, or no scipy.
    """
    check_batch(x0, "x0")
    check_tensor(noise, "noise")
    if noise.shape != x0.shape or (label is not None and label.shape != x0.shape[:1]):
        raise ValueError(
            f"x0 has shape {tuple(x0.shape)}, noise {tuple(noise.shape)}"
            + ("" if label is None else f", label {tuple(label.shape)}")
            + "; give noise like x0, and one label a row"
        )
    check_finite(x0, "x0")
    check_finite(noise, "noise")
    label = None if label is None else tensor_of(label, "label")
    if not 0 <= regularisation < math.inf:
        raise ValueError(f"regularisation={regularisation}: give 0 or a positive number, in units of squared distance")
    draws = generator(seed) if regularisation else None
    paired = noise.clone()
    for value in [None] if label is None else label.unique():
        rows = torch.arange(len(x0), device="cpu") if value is None else torch.nonzero(label == value).flatten().cpu()
        cost = torch.square(
            torch.cdist(x0[rows].detach().flatten(1).cpu().double(), noise[rows].flatten(1).cpu().double())
        )
        partner = _assigned(cost) if draws is None else _drawn(cost, regularisation, draws)
        paired[rows] = noise[rows[partner]]
    return paired


def _assigned(cost: Tensor) -> Tensor:
    try:
        from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError("exact pairs need scipy: pip install scipy, or give regularisation= above 0") from error
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def _drawn(cost: Tensor, regularisation: float, draws: torch.Generator, rounds: int = 50) -> Tensor:
    """A partner for each row, from the entropic plan, by Sinkhorn's iteration on logarithms (Cuturi 2013)."""
    log_kernel, f = -cost / regularisation, torch.zeros(len(cost), dtype=cost.dtype, device="cpu")
    for _ in range(rounds):
        g = -torch.logsumexp(log_kernel + f[:, None], 0)
        f = -torch.logsumexp(log_kernel + g[None, :], 1)
    plan = torch.exp(log_kernel + f[:, None] + g[None, :])
    return torch.multinomial(plan, 1, generator=draws).flatten()


@torch.no_grad()
def reflow(
    model: ScoreModel, n: int, solver: Solver | None = None, *, seed: int | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """n pairs (x_0, noise) that the model's flow ties together, each (n, *) (Liu et al. 2023, sec. 3.2).

    A network trained on them, by `dsm_loss(model, x0, "velocity", noise=noise)`, has a straighter flow with the same ends, and
    needs fewer steps. As with every pairing, its velocity is exact and its score is not.

    Main arguments:
        n: number of pairs. solver: of the flow, Dopri5() by default. options: of `sample`; batch_size, say.

    Raises:
        ValueError: a solver with noise, or a process without alpha and sigma.
    """
    chosen = Dopri5() if solver is None else solver
    if not isinstance(model.sde, GaussianSDE) or not chosen.flow:
        raise ValueError(
            f"reflow along {type(model.sde).__name__} by {chosen!r}: give a GaussianSDE and a solver of the flow"
        )
    if model.shape is None:
        raise ValueError("reflow needs the event shape: give the model shape=")
    draws: Noise = source(seed, n)
    eps = draws.normal((n, *model.shape), model.dtype, model.device)
    start = float(model.sde.sigma(model.sde.T)) * eps
    return sample(model, n, chosen, x_init=start, denoise=True, **options), eps


@torch.no_grad()
def straightness(
    model: ScoreModel,
    n: int = 1000,
    *,
    steps: int = 100,
    seed: int | None = 0,
    t_min: float | None = None,
    **cond: Any,
) -> tuple[float, float]:
    r"""S = int E || (z_T - z_0) - dz/dt ||^2 dt along the flow, and its standard error (Liu et al. 2023, sec. 2.2).

    0 for a flow along straight lines, which one step of Euler follows exactly. For N(0, s^2) data and independent pairs it is
    (2 - pi/2) s in each dimension.

    Main arguments:
        n: paths. steps: of RK4, at most 100, at whose times the integral is taken. cond: passed to the network.
        t_min: where the paths end; 0 for a network that predicts the velocity, else the process's.

    Raises:
        ValueError: steps outside 1 .. 100.
    """
    if not 1 <= steps <= 100:
        raise ValueError(f"steps={steps}: give 1 to 100, one state of a path each")
    end = t_min if t_min is not None else 0.0 if model.predict == "velocity" else model.sde.t_min
    run = sample(model, n, RK4(), steps=steps, seed=seed, t_min=end, full=True, denoise=False, **cond)
    times = run.times
    chord = (run.path[0] - run.path[-1]) / (times[0] - times[-1])
    gaps = [
        torch.square(chord - model.velocity(x, t, **cond)).flatten(1).sum(1)
        for x, t in zip(run.path, times, strict=True)
    ]
    each = torch.trapezoid(torch.stack(gaps).cpu().double(), -times, dim=0)
    return float(each.mean()), float(each.std()) / math.sqrt(n)
