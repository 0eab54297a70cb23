"""A network that says only what a Gaussian mixture does not know."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scorefield.nn.initial import arguments


class BesideMixture(nn.Module):
    r"""net(x, t, label) + F(x, t) -> like x: a network of vectors beside the exact answer of a Gaussian mixture.

    It answers as "edm" wants (F of Karras et al. 2022, Table 1) and reads the clock "log_sigma", from which it knows
    r = sigma / alpha. With y = x sqrt(sigma_data^2 + r^2), for components of weights w, means m and covariances C,

    F = r sqrt(sigma_data^2 + r^2) / sigma_data (y / (sigma_data^2 + r^2) - sum_k p_k(y) (C_k + r^2)^-1 (y - m_k))

    where p_k is the chance of component k given y: the denoiser of the mixture (Tweedie), without the difference of nearly
    equal numbers at small noise. Where the network returns nothing the model is the mixture, exactly.

    Main arguments:
        net: of vectors (B, net.features), such as an `MLP`.
        components: K, of the mixture, a standard normal each until `begin` says otherwise.
        sigma_data: that of the model.
    """

    exact_time = True
    means: Tensor
    bases: Tensor
    spectra: Tensor
    logs: Tensor

    def __init__(self, net: nn.Module, components: int, sigma_data: float) -> None:
        super().__init__()
        self.config = arguments(locals())
        d = int(net.features)  # type: ignore[arg-type]
        self.net, self.features, self.sigma_data = net, d, sigma_data
        self.num_classes = int(getattr(net, "num_classes", 0))
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

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        flat, square = x.flatten(1), torch.exp(8 * t.to(x.dtype)).unsqueeze(1)
        total = self.sigma_data**2 + square
        y = flat * torch.sqrt(total)
        u = torch.matmul((y.unsqueeze(1) - self.means).transpose(0, 1), self.bases)  # (K, B, D)
        width = self.spectra.unsqueeze(1) + square
        likely = self.logs.unsqueeze(1) - 0.5 * (u * u / width + torch.log(width)).sum(2)
        share = torch.softmax(likely, 0).unsqueeze(2)
        pull = (share * torch.matmul(u / width, self.bases.transpose(1, 2))).sum(0)
        known = torch.sqrt(square * total) / self.sigma_data * (y / total - pull)
        answer: Tensor = self.net(x, t, label) if label is not None else self.net(x, t)
        return answer + known.reshape(x.shape)
