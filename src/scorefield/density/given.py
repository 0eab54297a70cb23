"""What a mixture says of some columns of a table once the others are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from scorefield.analytic import GaussianMixture
from scorefield.data.scale import Scale
from scorefield.gaussians import Mixture
from scorefield.sdes import VP

SLIGHT = 1e-14
"""Share of the largest weight below which a component has nothing to say of what is known."""


def read_given(given: Mapping[int | str, float], columns: Sequence[str], count: int) -> dict[int, float]:
    """The known columns, by name or number, as numbers of columns and their values.

    Raises:
        ValueError: no such column, one that is named twice, a value that is no finite number, or no column that is left.
    """
    found: dict[int, float] = {}
    for key, value in given.items():
        at = list(columns).index(key) if isinstance(key, str) and key in columns else key
        if not isinstance(at, int) or not 0 <= at < count:
            some = ", ".join(map(str, columns[:6])) + (", ..." if len(columns) > 6 else "")
            raise ValueError(f"given: there is no column {key!r}; name one of {some or f'0 to {count - 1}'}")
        if at in found:
            raise ValueError(f"given: column {key!r} is named twice, by name and number; leave one out")
        try:
            found[at] = float(value)
        except (TypeError, ValueError):
            found[at] = math.nan
        if not math.isfinite(found[at]):
            raise ValueError(f"given: column {key!r} is {value!r}; give a finite number in the units of the table")
    if len(found) == count:
        raise ValueError(f"given: all {count} columns are given, so that nothing is left to draw; leave one out")
    return found


def conditioned(mixture: Mixture, at: Tensor, values: Tensor) -> Mixture:
    """The law of the other entries of a mixture of full covariances, in their order, given those at `at` (C,), (C,).

    Each component gives N(m_f + S_fg S_gg^-1 (y - m_g), S_ff - S_fg S_gg^-1 S_gf), with a weight in proportion to its own times
    N(y; m_g, S_gg): Bishop, Pattern Recognition and Machine Learning, eq. 2.81, 2.82.
    """
    means, covs, weights = mixture
    rest = torch.tensor([i for i in range(means.shape[1]) if i not in at.tolist()])
    known = covs[:, at][:, :, at]
    logs = Mixture(means[:, at], known, weights).logs(values[None])[0]
    share = torch.softmax(logs, 0)
    kept = share > SLIGHT * share.max()
    means, covs, known, share = means[kept], covs[kept], known[kept], share[kept]
    across = covs[:, rest][:, :, at]
    slope = torch.linalg.solve(known, across.mT).mT  # S_fg S_gg^-1
    moved = means[:, rest] + (slope @ (values - means[:, at])[:, :, None])[:, :, 0]
    left = covs[:, rest][:, :, rest] - slope @ across.mT
    return Mixture(moved, 0.5 * (left + left.mT), share / share.sum())


def draw_given(model: GaussianMixture, scale: Scale, given: Mapping[int, float], n: int, seed: int) -> Tensor:
    """n rows (n, D) in the units of a table, given some columns, of a mixture in the units of its scale; exact.

    In straightened columns the law is a mixture too, whatever decorrelates them.
    """
    factor = scale.factor if scale.whitens else torch.diag(scale.factor)
    spread = model.covs.double() + torch.eye(len(factor)).double() * float(model.sde.sigma(0.0)) ** 2
    means = scale.mean + model.means.double() @ factor.T  # type: ignore[operator]
    law = Mixture(means, factor @ spread @ factor.T, model.weights)
    at, values = torch.tensor(list(given)), torch.tensor(list(given.values()), dtype=torch.float64)
    row = torch.zeros(1, len(scale.mean), dtype=torch.float64).index_copy(1, at, values[None])
    bent = row if scale.powers is None else scale.powers.bend(row)
    found = conditioned(law, at, bent[0, at])
    drawn = GaussianMixture(*found, VP()).sample(n, 0.0, seed)
    y = bent.repeat(n, 1)
    y[:, [i for i in range(y.shape[1]) if i not in given]] = drawn
    x = y if scale.powers is None else scale.powers.unbend(y)
    return x.index_copy(1, at, values.expand(n, -1))
