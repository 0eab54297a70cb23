"""Whether a score is right at each noise level: identities that an exact one obeys, whatever the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.differentiate import differentiation, differentiation_twice
from scorefield.dtypes import exact
from scorefield.evaluation.metrics import Estimate, mean_of
from scorefield.inputs import as_tensor, whole
from scorefield.model import ScoreModel

BATCH = 256
"""Items that go through the network at a time."""


@dataclass(frozen=True)
class Level:
    """What a model's E[eps | x_t] is at one noise level, on noised data.

    An exact one leaves a residual eps - E[eps | x_t] that is orthogonal to every function of x_t.

    Attributes:
        t: time. log_snr: of it.
        loss: E|eps - model|^2 per entry.
        factor: E<eps, model> / E|model|^2, which an exact score has at 1: multiplied by it, the model would be best.
        pairing: E<s, x> / -D, at 1 for every exact score (integration by parts); the noise that was drawn is its control.
        bias: |E[model - eps]|^2 per entry, at 0; the standard error is that of an exact score.
        plain: the loss above that of the best multiple of x_t, which knows nothing of the data but its size: below 0 for a
            model that has learned something, 0 for the exact score of isotropic Gaussian data.
        trace: E|eps - model|^2 / D + sigma E[div model] / D, at 1: the variance of eps that the Jacobian claims,
            Cov[eps | x_t] = 1 - sigma grad E[eps | x_t] (Tweedie's formula of second order; Efron 2011), is the one that is
            left over. None of a model that cannot be differentiated, or where it was not asked for.
        excess: E|model - oracle|^2 per entry, where an oracle is given: the loss above the least possible.
        gap: held-out loss minus that of training data, where these are given.
    """

    t: float
    log_snr: float
    loss: Estimate
    factor: Estimate
    pairing: Estimate
    bias: Estimate
    plain: Estimate
    trace: Estimate | None = None
    excess: Estimate | None = None
    gap: Estimate | None = None


@torch.no_grad()
def calibration(
    model: ScoreModel,
    data: Tensor,
    train: Tensor | None = None,
    oracle: ScoreModel | None = None,
    *,
    levels: int = 8,
    seed: int = 0,
    trace: bool = True,
) -> list[Level]:
    """The model at noise levels that are even in log-SNR, from noise to data.

    Main arguments:
        data: held-out items (N, *), in the model's range. train: items it was trained on, (M, *).
        oracle: an exact model of the data. levels: how many. seed: of the noise.
        trace: whether to differentiate the model, once for each item and level.

    Raises:
        ValueError: fewer than 16 items, or shapes that differ.
    """
    levels = whole(levels, "levels", "the number of noise levels")
    held_out = _items(data, "data")
    seen = None if train is None else _items(train, "train")
    if seen is not None and seen.shape[1:] != held_out.shape[1:]:
        raise ValueError(f"train has event shape {tuple(seen.shape[1:])} and data {tuple(held_out.shape[1:])}")
    draws, signs = (torch.Generator().manual_seed(k) for k in (seed, seed + 1))
    found = []
    for t in noise_levels(model, levels):
        x, noise, own = noised(model, held_out, t, draws)
        sigma = float(model.sde.sigma(t))
        rest = noise - own
        loss = mean_of(torch.square(rest).mean(1))
        plain = mean_of((torch.square(rest) - torch.square(noise - sigma / torch.square(x).mean() * x)).mean(1))
        slope = _divergence(model, x.reshape(held_out.shape).to(held_out), t, signs) if trace else None
        claimed = None if slope is None else mean_of(torch.square(rest).mean(1) + sigma * slope)
        # E<eps, x_t> = sigma D without chance: subtracting the drawn one leaves the chance of the residual alone.
        pairing = mean_of(1 - (rest * x).mean(1) / sigma)
        excess = gap = None
        if oracle is not None:
            best = _in_parts(oracle.noise, x.reshape(held_out.shape).to(held_out), t)
            excess = mean_of(torch.square(own - best).mean(1))
        if seen is not None:
            _, other, known = noised(model, seen, t, draws)
            of_train = mean_of(torch.square(other - known).mean(1))
            spread = math.hypot(loss.stderr, of_train.stderr)
            gap = Estimate(loss.value - of_train.value, spread, len(held_out), "standard errors of two means")
        at, factor = (float(t), float(model.sde.log_snr(t))), _ratio(noise * own, own * own)
        found.append(Level(*at, loss, factor, pairing, _bias(-rest), plain, claimed, excess, gap))
    return found


@dataclass(frozen=True)
class Memory:
    """Distances to the nearest training item, in units of the data.

    Attributes:
        samples, held_out: of samples of the model and of held-out items, (n,) and (m,).
        index: the training item nearest to each sample, (n,).
    """

    samples: Tensor
    held_out: Tensor
    index: Tensor

    @property
    def ratio(self) -> float:
        """Median distance of samples over that of held-out items: 1 where samples are as new as new data, 0 for copies."""
        return float(self.samples.median() / self.held_out.median().clamp_min(1e-300))


def memory(samples: Tensor, train: Tensor, held_out: Tensor) -> Memory:
    """How near samples are to training items, beside how near data that the model has not seen is to them.

    Raises:
        ValueError: shapes that differ.
    """
    sets = [as_tensor(x, name) for x, name in ((samples, "samples"), (train, "train"), (held_out, "held_out"))]
    if len({tuple(x.shape[1:]) for x in sets}) > 1:
        raise ValueError(
            f"event shapes {[tuple(x.shape[1:]) for x in sets]} of samples, train and held_out must be equal"
        )
    own, seen, new = (exact(x).flatten(1) for x in sets)
    nearest, index = torch.cdist(own, seen, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    return Memory(nearest, torch.cdist(new, seen, compute_mode="donot_use_mm_for_euclid_dist").amin(1), index)


def curl(model: ScoreModel, data: Tensor, t: float, probes: int = 4, seed: int = 0) -> Estimate:
    r"""How far a score is from a gradient at x_t: E|J v - J^T v|^2 / E|J v + J^T v|^2, J its Jacobian, v random signs.

    It is 0 for the score of any density, whose Jacobian is symmetric; 1 where J is as much a rotation as a stretching.

    Main arguments:
        data: (N, *), in the model's range. t: time. probes: v for each item. seed: of noise and probes.
    """
    x0, draws = as_tensor(data, "data"), torch.Generator().manual_seed(seed)
    apart, together = [], []
    for part in x0.split(64):
        x = model.sde.perturb(
            part, t, torch.randn(part.shape, generator=draws, dtype=torch.float64, device=draws.device).to(part)
        )
        for _ in range(whole(probes, "probes", "the number of random vectors")):
            v = (torch.randint(0, 2, x.shape, generator=draws, device=draws.device) * 2 - 1).to(x)
            forward, backward = _both_products(lambda y: model.noise(y, t), x, v)
            apart.append(torch.square(exact(forward - backward)).flatten(1).sum(1))
            together.append(torch.square(exact(forward + backward)).flatten(1).sum(1))
    return _ratio(torch.cat(apart)[:, None], torch.cat(together)[:, None])


def _both_products(function: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """J v and J^T v, by reverse differentiation twice, which every network has."""
    with differentiation_twice():
        point, weight = x.detach().requires_grad_(), torch.zeros_like(v).requires_grad_()
        y = function(point)
        (back,) = torch.autograd.grad(y, point, weight, create_graph=True)
        (forward,) = torch.autograd.grad(back, weight, v, retain_graph=True)
        (backward,) = torch.autograd.grad(y, point, v)
    return forward.detach(), backward.detach()


def _divergence(model: ScoreModel, x: Tensor, t: Tensor, draws: torch.Generator) -> Tensor | None:
    """div E[eps | x_t] / D of each item by one vector of random signs, (N,) float64; None without a graph."""
    found = []
    with differentiation():
        for part in x.split(BATCH // 4):
            v = (torch.randint(0, 2, part.shape, generator=draws, device=draws.device) * 2 - 1).to(part)
            point = part.detach().clone().requires_grad_()
            y = model.noise(point, t)
            if not y.requires_grad:
                return None
            (back,) = torch.autograd.grad((y * v).sum(), point, materialize_grads=True)
            found.append(exact(back * v).flatten(1).mean(1))
    return torch.cat(found)


def noise_levels(model: ScoreModel, levels: int) -> list[Tensor]:
    """Times that are even in log-SNR, from noise to data."""
    sde = model.sde
    ends = [0.99 * sde.T if float(sde.alpha(sde.T)) == 0 else sde.T, max(sde.t_min, 1e-3 * sde.T)]
    low, high = (float(sde.log_snr(t)) for t in ends)
    u = (torch.arange(levels, dtype=torch.float64, device="cpu") + 0.5) / levels
    return list(sde.inverse_log_snr(low + u * (high - low)))


def _items(data: Tensor, name: str) -> Tensor:
    items = as_tensor(data, name)
    if items.ndim < 2 or len(items) < 16 or not items.is_floating_point():
        raise ValueError(
            f"{name} has shape {tuple(items.shape)} and dtype {items.dtype}; give 16 or more items of floats"
        )
    return items


def noised(model: ScoreModel, x0: Tensor, t: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """x_t, eps and the model's E[eps | x_t], all (N, D) float64."""
    noise = torch.randn(x0.shape, generator=draws, dtype=torch.float64, device=draws.device).to(x0)
    x = model.sde.perturb(x0, t, noise)
    return exact(x).flatten(1), exact(noise).flatten(1), _in_parts(model.noise, x, t)


def _in_parts(view: Callable[..., Tensor], x: Tensor, t: Tensor) -> Tensor:
    return torch.cat([exact(view(part, t)).flatten(1) for part in x.split(BATCH)])


def _ratio(above: Tensor, below: Tensor) -> Estimate:
    """E of one over E of the other, with the standard error to first order, of rows (N, D)."""
    a, b = above.mean(1), below.mean(1)
    value = float(a.mean() / b.mean().clamp_min(1e-300))
    spread = float((a - value * b).std() / b.mean().clamp_min(1e-300)) / math.sqrt(len(a))
    return Estimate(value, spread, len(a))


def _bias(rest: Tensor) -> Estimate:
    """|E r|^2 / D of rows (N, D) without bias; the standard error where E r = 0."""
    n, d = rest.shape
    pairs = rest @ rest.T
    pairs.fill_diagonal_(0.0)
    spread = math.sqrt(2 * float(torch.square(pairs).sum()) / (n * (n - 1)) / (n * (n - 1)))
    return Estimate(float(pairs.sum()) / (n * (n - 1) * d), spread / d, n, "of an exact score")
