"""Exact models: a Gaussian mixture has its score, denoiser and density in closed form under every Gaussian SDE."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from scorefield.coefficients import Time, as_time, batch_time, expand
from scorefield.differentiate import differentiation
from scorefield.dtypes import exact, onto, wide
from scorefield.inputs import as_tensor, tensor_of
from scorefield.model import ScoreModel
from scorefield.randomness import Noise, Seed, source
from scorefield.sde import GaussianSDE
from scorefield.views import View

Parts: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


class GaussianMixture(ScoreModel):
    r"""Data distributed as sum_k w_k N(m_k, S_k), pushed through an SDE exactly.

    At time t it is sum_k w_k N(alpha m_k, C_k), C_k = alpha^2 S_k + sigma^2 I; its score is -sum_k r_k C_k^{-1} (x - alpha m_k)
    with responsibilities r_k(x). Everything is computed in the eigenbases of S_k, in float64 (in float32 on a device other than
    the CPU), and returned in the dtype of x. Diagonal and isotropic components keep no basis: memory and work are in proportion
    to D.

    Main arguments:
        means: (K, D) or (K, *shape).
        covs: (K, D, D) with D = prod(shape), full and symmetric; (K, *shape) for diagonal ones; (K,) or a float for
            multiples of the identity. Zero variances are allowed (a point mass), negative ones are not.
        weights: (K,), positive, normalised here; None for equal ones.
        sde: the forward process.

    Raises:
        ValueError: shapes that do not fit, a covariance with a negative eigenvalue, weights that are not positive.
    """

    def __init__(
        self,
        means: Tensor,
        covs: Tensor | float,
        weights: Tensor | Sequence[float] | None,
        sde: GaussianSDE,
    ) -> None:
        means = tensor_of(means, "means")
        if means.ndim < 2:
            raise ValueError(f"means has shape {tuple(means.shape)}; give (K, D) or (K, *shape), K components")
        means = means if means.is_floating_point() else means.to(torch.get_default_dtype())
        super().__init__(torch.nn.Identity(), sde, "score", shape=means.shape[1:])
        with differentiation(torch.is_grad_enabled()):  # tensors of inference mode could not be differentiated through
            k, flat = means.shape[0], exact(means).flatten(1)
            w = exact(tensor_of([1.0] * k if weights is None else weights, "weights"))
            if w.shape != (k,) or not bool((w > 0).all()):
                raise ValueError(f"weights must be {k} positive numbers, one per component")
            spectrum, basis = _eigen(exact(tensor_of(covs, "covs")), k, flat.shape[1], tuple(means.shape))
            self.register_buffer("means", means)
            self._flat, self._spectrum, self._basis = flat, spectrum, basis
            self._log_weights = torch.log(w / w.sum())

    @property
    def covs(self) -> Tensor:
        """The covariances written out, (K, D, D) float64."""
        if self._basis is None:
            return torch.diag_embed(self._spectrum)
        return (self._basis * self._spectrum.unsqueeze(1)) @ self._basis.mT

    @property
    def weights(self) -> Tensor:
        """The weights, (K,) float64, whose sum is 1."""
        return torch.exp(self._log_weights)

    def log_prob(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """log p_t(x) in nats: (B, *) -> (B,), float64; t is a float or (B,)."""
        return torch.logsumexp(self._parts(as_tensor(x), t)[0], 1)

    def posterior(self, x: Tensor, t: Time = 0.0) -> Tensor:
        """Probability of each component given x_t = x: (B, *) -> (B, K), float64 (exact in Song et al. 2021, eq. 14)."""
        return torch.softmax(self._parts(as_tensor(x), t)[0], 1)

    def sample(self, n: int, t: Time = 0.0, seed: Seed = None) -> Tensor:
        """n exact draws of x_t, (n, *shape), in the dtype of `means`."""
        return self.marginal(t).draw(source(seed, n), self.dtype, self.device)

    def tilted(self, b: Tensor, temperature: float = 1.0) -> GaussianMixture:
        """The mixture of density proportional to p(x) e^{b.x / temperature}, exact: what a linear reward asks for.

        Means move by S_k b / temperature, covariances stay, log-weights gain b.m_k / temperature + b.S_k b / (2 temperature^2).

        Main arguments:
            b: the reward's gradient, of the event shape. temperature: lambda, positive.

        Raises:
            ValueError: b of another shape, or a temperature that is not a positive number.
        """
        slope = tensor_of(b, "b")
        if slope.is_complex():
            raise ValueError("b is complex; give real numbers")
        slope = exact(slope)
        if tuple(slope.shape) != self.shape:
            raise ValueError(f"b has shape {tuple(slope.shape)}; this mixture is over {self.shape}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: lambda of p e^(r / lambda) is a positive number")
        with differentiation(torch.is_grad_enabled()):
            other, k, means = copy.deepcopy(self), slope.flatten() / temperature, cast(Tensor, self.means)
            along = k.expand(len(self._flat), -1) if self._basis is None else torch.einsum("kij,i->kj", self._basis, k)
            spread = self._spectrum * along
            shift = spread if self._basis is None else torch.einsum("kij,kj->ki", self._basis, spread)
            other._flat = self._flat + shift
            other.register_buffer("means", onto(other._flat.reshape(means.shape), means))
            gained = self._flat @ k + 0.5 * (along * spread).sum(1)
            other._log_weights = torch.log_softmax(self._log_weights + gained, 0)
        return other

    def exact_prior(self) -> Marginal:
        return self.marginal(self.sde.T)

    def marginal(self, t: Time) -> Marginal:
        """p_t as a distribution with `draw` and `log_prob`; at T it is the exact prior."""
        return Marginal(self, t)

    def view(self, name: View, x: Tensor, t: Time, cond: dict[str, Any]) -> Tensor:
        if cond:
            raise ValueError(f"a mixture takes no condition, but {', '.join(cond)} was given")
        batch_time(t, x)
        state = wide(x)
        parts = self._parts(state, t)
        if name == "denoise":
            return self._denoise(state, parts).to(x.dtype)
        score = self._score(state, parts)
        if name == "score":
            return score.to(x.dtype)
        time = as_time(t)
        sigma = self.sde.sigma(time)
        noise = -expand(sigma, state) * score
        if name == "noise":
            return noise.to(x.dtype)
        d_alpha, d_sigma = self.sde.derivatives(time)
        moved = expand(d_alpha, state) * self._denoise(state, parts) + expand(d_sigma, state) * noise
        clean = sigma == 0
        if bool(clean.any()):  # there sigma' may be infinite, where g^2 is not
            flow = expand(self.sde.f(time), state) * state - expand(0.5 * self.sde.g2(time), state) * score
            moved = torch.where(expand(clean, state).bool(), flow, moved)
        return moved.to(x.dtype)

    def _score(self, x: Tensor, parts: Parts) -> Tensor:
        logits, whitened, _, _ = parts
        r = torch.softmax(logits, 1)
        return -self._back(r.unsqueeze(2) * whitened).reshape(x.shape)

    def _denoise(self, x: Tensor, parts: Parts) -> Tensor:
        logits, whitened, alpha, _ = parts
        r = torch.softmax(logits, 1)
        shift = self._back(r.unsqueeze(2) * onto(self._spectrum, x) * whitened)
        return (r @ onto(self._flat, x) + alpha * shift).reshape(x.shape)

    def _back(self, coordinates: Tensor) -> Tensor:
        """Sum over components of what is given in their eigenbases: (B, K, D) -> (B, D)."""
        if self._basis is None:
            return coordinates.sum(1)
        return torch.einsum("kij,bkj->bi", onto(self._basis, coordinates), coordinates)

    def _parts(self, x: Tensor, t: Time) -> Parts:
        """log(w_k N(x; alpha m_k, C_k)) (B, K); C_k^{-1} (x - alpha m_k) in the eigenbasis (B, K, D); alpha, sigma (., 1)."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x has event shape {tuple(x.shape[1:])}; this mixture has {self.shape}")
        time, state = batch_time(t, x).reshape(-1, 1), wide(x)
        means, spectrum = onto(self._flat, state), onto(self._spectrum, state)
        alpha, sigma = onto(self.sde.alpha(time), state), onto(self.sde.sigma(time), state)
        variance = (alpha**2).unsqueeze(2) * spectrum + (sigma**2).unsqueeze(2)
        centred = state.flatten(1).unsqueeze(1) - alpha.unsqueeze(2) * means
        coordinates = centred
        if self._basis is not None:
            coordinates = torch.einsum("kij,bki->bkj", onto(self._basis, state), centred)
        whitened = coordinates / variance
        log_norm = 0.5 * (torch.log(variance).sum(2) + means.shape[1] * math.log(2 * math.pi))
        logits = onto(self._log_weights, state) - 0.5 * (coordinates * whitened).sum(2) - log_norm
        return logits, whitened, alpha, sigma


@dataclass(frozen=True)
class Marginal:
    """The exact p_t of a mixture, usable wherever a prior is."""

    mixture: GaussianMixture
    t: Time

    def sample(self, n: int, seed: Seed = None) -> Tensor:
        """n draws, (n, *shape)."""
        return self.mixture.sample(n, self.t, seed)

    def draw(self, noise: Noise, dtype: torch.dtype, device: torch.device) -> Tensor:
        """One draw for each sample of a running source of noise; in float64 on the CPU, then moved."""
        gm = self.mixture
        cpu = torch.device("cpu")
        pick = torch.special.ndtr(noise.normal((noise.size, 1), torch.float64, cpu))
        edges = torch.cumsum(torch.exp(gm._log_weights), 0)
        k = torch.searchsorted(edges, pick.squeeze(1)).clamp_max(len(edges) - 1)
        means, spectrum = gm._flat, gm._spectrum
        z = noise.normal((noise.size, means.shape[1]), torch.float64, cpu)
        time = batch_time(self.t, z)
        alpha, sigma = expand(gm.sde.alpha(time), z), expand(gm.sde.sigma(time), z)
        scaled = torch.sqrt(alpha**2 * spectrum[k] + sigma**2) * z
        if gm._basis is not None:
            scaled = torch.einsum("bij,bj->bi", gm._basis[k], scaled)
        x = alpha * means[k] + scaled
        return x.reshape(noise.size, *(gm.shape or ())).to(dtype).to(device)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats, (B,), float64."""
        return self.mixture.log_prob(x, self.t)


def _eigen(covs: Tensor, k: int, d: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """Eigenvalues (K, D) and eigenvectors (K, D, D) of the covariances, None where those are the unit vectors."""
    basis = None
    if covs.ndim == 0 or covs.shape == (k,):
        spectrum = covs.reshape(-1, 1).expand(k, d)
    elif covs.shape == (k, d, d):
        if not torch.allclose(covs, covs.mT, rtol=1e-5, atol=1e-8):
            raise ValueError("covs: every covariance must be symmetric")
        spectrum, basis = torch.linalg.eigh(0.5 * (covs + covs.mT))
        floor = 1e-6 * spectrum.abs().amax(1, keepdim=True)
        spectrum = torch.where((spectrum < 0) & (spectrum > -floor), 0.0, spectrum)  # rounding of a singular one
    elif covs.shape == shape:
        spectrum = covs.reshape(k, d)
    else:
        raise ValueError(
            f"covs has shape {tuple(covs.shape)}; give ({k}, {d}, {d}), {shape} for diagonal ones, ({k},) or a float"
        )
    if bool((spectrum < 0).any()):
        raise ValueError("covs: every covariance must be positive semi-definite")
    return spectrum, basis
