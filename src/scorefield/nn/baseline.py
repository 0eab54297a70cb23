"""Networks that say only what a Gaussian, or a mixture of Gaussians, does not know."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from scorefield.inputs import positive
from scorefield.nn.initial import arguments


class Beside(nn.Module):
    r"""net(x, t, label) + F(x, t) -> like x: a network beside the exact answer of a simple law.

    It answers as "edm" wants (F of Karras et al. 2022, Table 1) and reads the clock "log_sigma", from which it knows
    r = sigma / alpha. With y = x sqrt(sigma_data^2 + r^2) and the law's score s(y) at the noise r,

    F = r sqrt(sigma_data^2 + r^2) / sigma_data (y / (sigma_data^2 + r^2) + s(y)),

    its denoiser (Tweedie) without the difference of nearly equal numbers at small noise. Where the network returns nothing
    the model is the law, exactly.
    """

    exact_time = True

    def __init__(self, net: nn.Module, sigma_data: float) -> None:
        super().__init__()
        positive(sigma_data=sigma_data)
        self.net, self.sigma_data = net, sigma_data
        self.num_classes = int(getattr(net, "num_classes", 0))

    def pull(self, y: Tensor, square: Tensor) -> Tensor:
        """Minus the score of the law at rows y (B, D) under noise of variance `square` (B, 1), (B, D)."""
        raise NotImplementedError

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        flat, square = x.flatten(1), torch.exp(8 * t.to(x.dtype)).unsqueeze(1)
        total = self.sigma_data**2 + square
        y = flat * torch.sqrt(total)
        known = torch.sqrt(square * total) / self.sigma_data * (y / total - self.pull(y, square))
        answer: Tensor = self.net(x, t, label) if label is not None else self.net(x, t)
        return answer + known.reshape(x.shape)


class BesideMixture(Beside):
    """A network beside a Gaussian mixture of vectors.

    The score of components of weights w, means m and covariances C is -sum_k p_k(y) (C_k + r^2)^-1 (y - m_k), where p_k is
    the chance of component k given y.

    Main arguments:
        net: of vectors (B, net.features), such as an `MLP`.
        components: K, of the mixture, a standard normal each until `begin` says otherwise.
        sigma_data: that of the model.
    """

    means: Tensor
    bases: Tensor
    spectra: Tensor
    logs: Tensor

    def __init__(self, net: nn.Module, components: int, sigma_data: float) -> None:
        super().__init__(net, sigma_data)
        self.config = arguments(locals())
        d = self.features = int(net.features)  # type: ignore[arg-type]
        self.register_buffer("means", torch.zeros(components, d))
        self.register_buffer("bases", torch.eye(d).expand(components, d, d).clone())
        self.register_buffer("spectra", torch.ones(components, d))
        self.register_buffer("logs", torch.zeros(components))

    @torch.no_grad()
    def begin(self, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        """Take a mixture of as many components: weights (K,), means (K, D), covariances (K, D, D)."""
        spectra, bases = torch.linalg.eigh(covs.double())
        given = (means, bases, spectra.clamp(min=1e-12), weights.double().log())
        for buffer, value in zip((self.means, self.bases, self.spectra, self.logs), given, strict=True):
            buffer.copy_(value)

    def pull(self, y: Tensor, square: Tensor) -> Tensor:
        u = torch.matmul((y.unsqueeze(1) - self.means).transpose(0, 1), self.bases)  # (K, B, D)
        width = self.spectra.unsqueeze(1) + square
        likely = self.logs.unsqueeze(1) - 0.5 * (u * u / width + torch.log(width)).sum(2)
        share = torch.softmax(likely, 0).unsqueeze(2)
        return (share * torch.matmul(u / width, self.bases.transpose(1, 2))).sum(0)


class BesideStationary(Beside):
    """A network beside one Gaussian that is the same everywhere on a periodic grid, channel by channel.

    Main arguments:
        net: of items (B, *shape), shape = (C, *grid).
        shape: of an item.
        sigma_data: that of the model.
    """

    mean: Tensor
    spectrum: Tensor

    def __init__(self, net: nn.Module, shape: tuple[int, ...], sigma_data: float) -> None:
        super().__init__(net, sigma_data)
        self.config = arguments(locals())
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spectrum", torch.ones(shape))

    @torch.no_grad()
    def begin(self, mean: Tensor, spectrum: Tensor) -> None:
        """Take a Gaussian: mean () and variances (C, *grid) of unitary Fourier coefficients, those of `torch.fft.fftn`."""
        self.mean.copy_(mean)
        self.spectrum.copy_(spectrum)

    def pull(self, y: Tensor, square: Tensor) -> Tensor:
        axes = tuple(range(2, self.spectrum.ndim + 1))
        waves = torch.fft.fftn((y - self.mean).reshape(-1, *self.spectrum.shape), dim=axes)
        width = self.spectrum + square.reshape(-1, *[1] * self.spectrum.ndim)
        back: Tensor = torch.fft.ifftn(waves / width, dim=axes).real
        return back.flatten(1)


class BesideGaussian(Beside):
    """A network beside one Gaussian of few directions: probabilistic principal components (Tipping & Bishop 1999).

    The covariance has variances `spectrum` along the columns of `basis`, and the variance `rest` in every other direction.

    Main arguments:
        net: of items (B, *shape), of any kind.
        shape: of an item.
        directions: k, at most as many as entries; a standard normal until `begin` says otherwise.
        sigma_data: that of the model.
    """

    mean: Tensor
    basis: Tensor
    spectrum: Tensor
    rest: Tensor

    def __init__(self, net: nn.Module, shape: tuple[int, ...], directions: int, sigma_data: float) -> None:
        super().__init__(net, sigma_data)
        self.config = arguments(locals())
        entries = math.prod(shape)
        self.register_buffer("mean", torch.zeros(entries))
        self.register_buffer("basis", torch.eye(entries, directions))
        self.register_buffer("spectrum", torch.ones(directions))
        self.register_buffer("rest", torch.ones(()))

    @torch.no_grad()
    def begin(self, mean: Tensor, basis: Tensor, spectrum: Tensor, rest: Tensor) -> None:
        """Take a Gaussian of as many directions: mean (D,), basis (D, k) of orthonormal columns, variances (k,) and ()."""
        given = zip((self.mean, self.basis, self.spectrum, self.rest), (mean, basis, spectrum, rest), strict=True)
        for buffer, value in given:
            buffer.copy_(value)

    def pull(self, y: Tensor, square: Tensor) -> Tensor:
        away, rest = y - self.mean, self.rest + square
        along = away @ self.basis
        return away / rest + (along * (1 / (self.spectrum + square) - 1 / rest)) @ self.basis.T
