"""Resampling at every level of noise makes replacement exact (Lugmayr et al. 2022, Alg. 1), in 8 and 64 dimensions too."""

from __future__ import annotations

import pytest
import torch
from affine import moments
from oracle import gaussian, rotated

import scorefield as sf
from scorefield import inverse

torch.set_num_threads(1)


@pytest.mark.parametrize(("d", "steps", "resamples"), [(8, 40, 200), (64, 30, 200)])
def test_repaint_reaches_the_conditional_of_a_rotated_gaussian(d, steps, resamples):
    """Every other coordinate is known; mean and covariance of the others within 2 %, less their first order in the step."""
    mean, cov = rotated(d)
    known = torch.arange(d) % 2 == 0
    truth = mean + torch.linalg.cholesky(cov) @ torch.randn(d, generator=torch.Generator().manual_seed(4)).double()
    gain = cov[~known][:, known] @ torch.linalg.inv(cov[known][:, known])
    mean_y = mean[~known] + gain @ (truth - mean)[known]
    cov_y = cov[~known][:, ~known] - gain @ cov[known][:, ~known]
    hook = sf.Replace(inverse.Mask(known), (truth * known)[None])
    grid = inverse.repaint(jump=5, resamples=resamples, base="log_snr")
    found = [moments(gaussian(mean, cov, sf.VP()), sf.DDIM(), n, hooks=[hook], grid=grid) for n in (steps, 2 * steps)]
    m, c = (2 * fine - coarse for coarse, fine in zip(*found, strict=True))
    assert torch.equal(m[known], truth[known])
    assert (m[~known] - mean_y).norm() < 0.02 * mean_y.norm()
    assert (c[~known][:, ~known] - cov_y).norm() < 0.02 * cov_y.norm()
