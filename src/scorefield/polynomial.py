"""A score without training: the best gradient of a polynomial, from the moments of the data (Shen et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scorefield.coefficients import Time, batch_time
from scorefield.inputs import as_tensor, check_event, tensor_of, whole
from scorefield.model import Guided, ScoreModel
from scorefield.sde import GaussianSDE
from scorefield.views import View, convert

LARGEST = 400
"""Basis functions beyond which the matrix of the fit would not be small."""

REACH = 2.0
"""Standard deviations of the noise around the range of the data in which the polynomial is read."""

Index = tuple[int, ...]


def polynomial_score(
    data: Tensor, sde: GaussianSDE, order: int = 4, basis: Literal["total", "axis"] = "total"
) -> PolynomialScore:
    r"""The score -x / c^2 + grad u with the polynomial u that implicit score matching prefers, at every time, from moments.

    Over u = sum_n a_n phi_n, phi_n products of Hermite polynomials of x / c, the objective 1/2 E |grad u|^2 + E L u is
    quadratic: A a = b with A_nm = E_t[grad phi_n . grad phi_m] and b_n = |n| / c^2 E_t[phi_n] (Shen et al. 2024,
    "operator-informed score matching"; L is the generator of the Ornstein-Uhlenbeck process of variance c^2). Expectations
    over x_t = alpha x_0 + sigma eps follow from moments of the data, for every `GaussianSDE`; the result does not depend on c
    from order 2 on.

    It is exact for Gaussians at order 2, good in few dimensions and at large noise, and poor where modes are sharp and the
    noise is small: the estimate is a polynomial of degree order - 1 and points outwards where its leading coefficient is
    positive. So it is read inside the range of the data at time t only, and continued by the Gaussian pull -x / c^2 outside.

    Main arguments:
        data: (N, *), N of at least 2, floats. order: largest degree, from 1 up.
        basis: "total", all products up to the order, for few dimensions; "axis", each entry by itself, which takes entries for
            independent.

    Raises:
        ValueError: an order below 1, data that is degenerate or not numbers, or a basis of more than 400 functions.
    """
    data = tensor_of(data, "data")
    if data.is_complex() or data.ndim < 2 or data.shape[1:].numel() == 0:
        raise ValueError(f"data has shape {tuple(data.shape)} and dtype {data.dtype}; give real numbers (N, *)")
    flat = data.double().flatten(1)
    whole(order, "order", "the largest degree")
    if order < 1 or basis not in ("total", "axis"):
        raise ValueError(f"order={order}, basis={basis!r}: give an order from 1 up, and the basis total or axis")
    if len(flat) < 2:
        raise ValueError(f"data has {len(flat)} items and must have at least 2")
    if not bool((flat.std(0) > 0).all()):
        raise ValueError("data is degenerate: an entry is the same in all items; leave it out")
    d = flat.shape[1]
    count = math.comb(d + order, order) - 1 if basis == "total" else order
    if count > LARGEST:
        raise ValueError(f"order={order} in {d} dimensions has {count} functions, over {LARGEST}: use basis='axis'")
    return PolynomialScore(flat, tuple(data.shape[1:]), sde, order, basis)


class PolynomialScore(ScoreModel):
    """What `polynomial_score` returns."""

    def __init__(self, flat: Tensor, shape: Index, sde: GaussianSDE, order: int, basis: str) -> None:
        super().__init__(nn.Identity(), sde, "score", shape=shape)
        self.order, self.basis = order, basis
        self._centre, self._scale = flat.mean(0), float(flat.std(0, correction=0).square().mean().sqrt())
        unit = (flat - self._centre) / self._scale
        self._low, self._high = unit.amin(0), unit.amax(0)
        d = flat.shape[1]
        if basis == "total":
            self._tables = _Tables.of(order, d)
            self._moments = _monomials(unit, self._tables.every).mean(0)[None]
        else:
            self._tables = _Tables.of(order, 1)
            self._moments = torch.stack([_monomials(unit[:, i : i + 1], self._tables.every).mean(0) for i in range(d)])

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from the score."""
        time = batch_time(t, x)
        score = self._read(x, time)[0]
        return score if name == "score" else convert(name, "score", score, x, time, self.sde)

    def log_density_ratio(self, x: Tensor, t: Time) -> Tensor:
        """u(x, t), (B,): the logarithm of p_t over a Gaussian of variance c^2, up to a constant."""
        x = as_tensor(x)
        return self._read(x, batch_time(t, x))[1]

    def _read(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Score, like x, and u, (B,)."""
        check_event(x, self.shape)
        times, which = torch.unique(t.reshape(-1), return_inverse=True)
        alpha, spread = self.sde.alpha(times), self.sde.sigma(times) / self._scale
        c2, weights = self._fit(alpha, spread)  # (T, G, 1) and (T, G, P), G groups of axes
        row = which.expand(len(x)) if t.ndim == 0 else which
        flat = x.double().flatten(1)
        unit = (flat - alpha[row, None] * self._centre) / self._scale
        reach = REACH * spread[row, None]
        inside = unit.clamp(alpha[row, None] * self._low - reach, alpha[row, None] * self._high + reach)
        groups = inside.unsqueeze(1) if self.basis == "total" else inside.unsqueeze(2)  # (B, G, d')
        c = c2[row].sqrt()
        hermite = _hermite(groups / c, self.order)  # (B, G, d', order + 1)
        u, slope = self._tables.evaluate(hermite, weights[row])
        pull = -unit.reshape(groups.shape) / c2[row]
        score = ((pull + slope / c).reshape(flat.shape) / self._scale).reshape(x.shape)
        return score.to(x.dtype), u.sum(1)

    def _fit(self, alpha: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """c^2 (T, G, 1) and the weights of the basis (T, G, P), at alpha (T,) and sigma in units of the data (T,)."""
        tables, moments = self._tables, self._moments
        second = moments[:, tables.squares].mean(1)  # E x^2, (G,)
        c2 = alpha[:, None] ** 2 * second + spread[:, None] ** 2
        v = 1 - (spread[:, None] ** 2 / c2)
        a = alpha[:, None] / c2.sqrt()
        h = tables.expectations(moments, a, v)  # (T, G, K)
        matrix, side = tables.system(h)
        matrix, side = matrix / c2[..., None, None], side / c2[..., None]
        size = matrix.diagonal(dim1=-2, dim2=-1).clamp_min(1e-300).sqrt()
        scaled = matrix / (size.unsqueeze(-1) * size.unsqueeze(-2))
        eye = torch.eye(scaled.shape[-1], dtype=torch.float64, device="cpu")
        factor, failed = torch.linalg.cholesky_ex(scaled)
        if bool(failed.any()):  # moments of a small sample, or an order that they cannot carry
            factor, failed = torch.linalg.cholesky_ex(scaled + 1e-6 * eye * (failed > 0)[..., None, None])
            factor = torch.where((failed > 0)[..., None, None], math.nan, factor)
        solved = torch.cholesky_solve((side / size).unsqueeze(-1), factor).squeeze(-1)
        return c2.unsqueeze(-1), solved / size


@dataclass(frozen=True)
class _Tables:
    """The combinatorics of a basis: which products occur, and with which factors."""

    basis: tuple[Index, ...]
    every: tuple[Index, ...]
    squares: Tensor
    smooth: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    pairs: tuple[Tensor, Tensor, Tensor, Tensor]
    places: Tensor

    @classmethod
    def of(cls, order: int, d: int) -> _Tables:
        basis = tuple(n for n in product(range(order + 1), repeat=d) if 0 < sum(n) <= order)
        every = tuple(n for n in product(range(max(2, 2 * order - 1) + 1), repeat=d) if sum(n) <= max(2, 2 * order - 2))
        place = {n: k for k, n in enumerate(every)}
        squares = torch.tensor([place[tuple(2 * int(i == j) for j in range(d))] for i in range(d)], device="cpu")
        rows = [entry for k, n in enumerate(every) for entry in _smoothing(k, n, place)]
        smooth = tuple(torch.tensor(column, device="cpu") for column in zip(*rows, strict=True))
        links = [
            (i, j, place[k], factor)
            for i, n in enumerate(basis)
            for j, m in enumerate(basis)
            for k, factor in _gradients(n, m)
        ]
        pairs = tuple(torch.tensor(column, device="cpu") for column in zip(*links, strict=True))
        places = torch.tensor([place.get(n, -1) for n in basis], device="cpu")
        return cls(basis, every, squares, smooth, pairs, places)  # type: ignore[arg-type]

    def expectations(self, moments: Tensor, a: Tensor, v: Tensor) -> Tensor:
        """E_t of every Hermite product, (T, G, K), from moments (G, K): He of variance v at a x is what noise leaves."""
        row, column, power, half, factor = self.smooth
        terms = factor.double() * moments[:, column] * a.unsqueeze(-1) ** power * (-0.5 * v.unsqueeze(-1)) ** half
        return torch.zeros(*a.shape, len(self.every), dtype=torch.float64, device="cpu").index_add(-1, row, terms)

    def system(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """A (T, G, P, P) and b (T, G, P), without the factor 1 / c^2."""
        i, j, k, factor = self.pairs
        p = len(self.basis)
        flat = torch.zeros(*h.shape[:2], p * p, dtype=torch.float64, device="cpu")
        matrix = flat.index_add(-1, i * p + j, factor.double() * h[..., k]).reshape(*h.shape[:2], p, p)
        degree = torch.tensor([float(sum(n)) for n in self.basis], dtype=torch.float64, device="cpu")
        return matrix, degree * h[..., self.places]

    def evaluate(self, hermite: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """u (B, G) and its gradient (B, G, d) in units of c, from He values (B, G, d, order + 1) and weights (B, G, P)."""
        d = hermite.shape[2]
        value = torch.zeros_like(weights[..., 0])
        slope = torch.zeros_like(hermite[..., 0])
        for k, n in enumerate(self.basis):
            factors = [hermite[:, :, i, n[i]] for i in range(d)]
            value = value + weights[..., k] * math.prod(factors[1:], start=factors[0])
            for i in range(d):
                if n[i]:
                    others = math.prod(
                        (factors[j] for j in range(d) if j != i), start=n[i] * hermite[:, :, i, n[i] - 1]
                    )
                    slope[:, :, i] += weights[..., k] * others
        return value, slope


def _smoothing(row: int, n: Index, place: dict[Index, int]) -> Iterator[tuple[int, int, int, int, float]]:
    """He_n of variance v at a x as monomials: (row, column, power of a, power of -v/2, factor)."""
    for q in product(*(range(k // 2 + 1) for k in n)):
        left = tuple(k - 2 * h for k, h in zip(n, q, strict=True))
        factor = math.prod(
            math.factorial(k) / (math.factorial(h) * math.factorial(k - 2 * h)) for k, h in zip(n, q, strict=True)
        )
        yield row, place[left], sum(left), sum(q), factor


def _gradients(n: Index, m: Index) -> Iterator[tuple[Index, float]]:
    """grad phi_n . grad phi_m as a sum of Hermite products: He_a He_b = sum over q of q! C(a, q) C(b, q) He_{a + b - 2q}."""
    for i in range(len(n)):
        if not (n[i] and m[i]):
            continue
        a = tuple(k - int(j == i) for j, k in enumerate(n))
        b = tuple(k - int(j == i) for j, k in enumerate(m))
        for q in product(*(range(min(x, y) + 1) for x, y in zip(a, b, strict=True))):
            factor = math.prod(
                math.factorial(h) * math.comb(x, h) * math.comb(y, h) for x, y, h in zip(a, b, q, strict=True)
            )
            yield tuple(x + y - 2 * h for x, y, h in zip(a, b, q, strict=True)), float(n[i] * m[i] * factor)


def _monomials(x: Tensor, every: tuple[Index, ...]) -> Tensor:
    """x^n for every multi-index, (N, K)."""
    return torch.stack([torch.prod(x ** torch.tensor(n, dtype=x.dtype, device="cpu"), 1) for n in every], 1)


def _hermite(y: Tensor, order: int) -> Tensor:
    """He_0 .. He_order at y, in a new last dimension."""
    values = [torch.ones_like(y), y]
    for k in range(2, order + 1):
        values.append(y * values[-1] - (k - 1) * values[-2])
    return torch.stack(values[: order + 1], -1)


@dataclass(frozen=True, eq=False)
class Residual:
    """Guidance that adds a network to what a model says: noise = base.noise + net(x, t), the rest of the views follow.

    Under a process without a kernel it is the score that is corrected, score = base.score + net(x, t). With the base
    2 drift / g^2, the stationary score of a reversible process of constant g, the drift runs backward as it runs forward, so
    that one that pulls inward does so where the network has seen no data.

    Main arguments:
        net: called as net(x, t, **cond) with t (B,) in the dtype of x; returns a tensor like x. Its last layer should start at
            zero, so that training starts from the model itself.
    """

    net: nn.Module

    def __call__(self, model: ScoreModel) -> ScoreModel:
        """The corrected model, whose parameters are the network's (and the base's)."""
        return _Corrected(model, self)


class _Corrected(Guided):
    guidance: Residual

    def __init__(self, base: ScoreModel, guidance: Residual) -> None:
        super().__init__(base, guidance)
        self.correction = guidance.net

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        """The view of that name from the corrected noise."""
        time = batch_time(t, x)
        clock = time.to(device=x.device, dtype=x.dtype).expand(len(x))
        y = self.correction(x, clock, **cond)
        if y.shape != x.shape:
            raise ValueError(f"the network returned shape {tuple(y.shape)} for an input of shape {tuple(x.shape)}")
        if not isinstance(self.sde, GaussianSDE):
            score = self.base.view("score", x, time, {}) + y
            if name not in ("score", "velocity"):
                raise ValueError(
                    f"{name}() needs a GaussianSDE; under {type(self.sde).__name__} a model has score and velocity"
                )
            return score if name == "score" else self.sde.velocity(x, time, score)
        noise = self.base.view("noise", x, time, {}) + y
        return noise if name == "noise" else convert(name, "noise", noise, x, time, self.sde)
