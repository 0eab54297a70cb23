"""Exact moments of a sampler on Gaussian data: every step is affine in the state and in the noise, so it is read off."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

import scorefield as sf
from scorefield.randomness import FromFunction
from scorefield.solve.integrate import Field, integrate
from scorefield.times import sampling_grid


@torch.no_grad()
def moments(
    model: sf.ScoreModel, solver: sf.Solver, steps: int, hooks=(), grid="uniform", t_min=None, denoise=True
) -> tuple[Tensor, Tensor]:
    """(mean, covariance) of the samples of a model on vectors, started from the nominal prior; no Monte Carlo.

    The model's field must be affine in x. Its condition must be the same for all samples.
    """
    sde, (d,) = model.sde, model.shape
    times = sampling_grid(sde, steps, sde.T, sde.t_min if t_min is None else t_min, grid)
    field = Field(model)
    mean, cov = torch.zeros(d, dtype=torch.float64), float(sde.sigma(sde.T)) ** 2 * torch.eye(d, dtype=torch.float64)

    known = {}

    def push(act, mean, cov, key=None):
        if key not in known:
            known[key] = read(act)
        linear, shift, noise = known[key] if key is not None else known.pop(None)
        return linear @ mean + shift, linear @ cov @ linear.T + noise @ noise.T

    def read(act):
        draws = 0

        def zero(shape):
            nonlocal draws
            draws += 1
            return torch.zeros(shape, dtype=torch.float64)

        act(torch.zeros(1, d, dtype=torch.float64), FromFunction(1, zero))
        rows, calls = 1 + d * (1 + draws), iter(range(draws))

        def unit(shape):
            z, first = torch.zeros(shape, dtype=torch.float64), 1 + d * (1 + next(calls))
            z[first : first + d] = torch.eye(d, dtype=torch.float64)
            return z

        x = torch.zeros(rows, d, dtype=torch.float64)
        x[1 : 1 + d] = torch.eye(d)
        out = act(x, FromFunction(rows, unit))
        shift, rest = out[0], out[1:] - out[0]
        return rest[:d].T, shift, rest[d:].T

    for hook in hooks:
        mean, cov = push(lambda x, n, hook=hook: hook(x, times[0], field, n), mean, cov)
    for a, b in pairwise(times):

        def act(x, n, a=a, b=b):
            if b > a:
                centre, std = sde.transition(x, a, b)
                return centre + std * n.like(x)
            # hooks run after the step; the one at its start has run already
            stage = [integrate(solver, field, x, torch.stack([a, b]), n)[0]]
            for hook in hooks:
                stage.append(hook(stage[-1], b, field, n))
            return stage[-1]

        mean, cov = push(act, mean, cov, (float(a), float(b)))
    if denoise:
        mean, cov = push(lambda x, n: field.denoise(x, times[-1]), mean, cov)
        for hook in hooks:
            if hasattr(hook, "finish"):
                mean, cov = push(lambda x, n, hook=hook: hook.finish(x), mean, cov)
    return mean, cov
