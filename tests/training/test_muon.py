"""Muon: orthogonal updates for matrices, Adam's own for the rest."""

from __future__ import annotations

import torch
from torch import nn

from scorefield.training.muon import Muon, orthogonalise


def test_singular_values_come_near_one_and_singular_vectors_stay():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 20, 50), (3, 50, 20)):
        m = torch.randn(shape, generator=generator, dtype=torch.float64)
        u, _, v = torch.linalg.svd(m, full_matrices=False)
        spectrum = u.mT @ orthogonalise(m) @ v.mT
        diagonal = torch.diagonal(spectrum, dim1=1, dim2=2)
        assert diagonal.min() > 0.6
        assert diagonal.max() < 1.25
        assert (spectrum - torch.diag_embed(diagonal)).abs().max() < 1e-10


def test_vectors_and_thin_layers_follow_adam():
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(shape, generator=generator) for shape in ((7,), (4, 32, 3, 3))]
    ours, theirs = ([nn.Parameter(v.clone()) for v in start] for _ in range(2))
    optimizers = Muon(ours, lr=1e-2), torch.optim.Adam(theirs, lr=1e-2, betas=(0.9, 0.99))
    for _ in range(5):
        for group, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            sum((p**4).sum() for p in group).backward()
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_a_quadratic_is_minimised():
    target = torch.linspace(-0.3, 0.3, 20 * 24).reshape(20, 24)
    p = nn.Parameter(torch.zeros(20, 24))
    optimizer = Muon([p], lr=1e-3)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        optimizer.zero_grad()
        (0.5 * (p - target) ** 2).sum().backward()
        optimizer.step()
    assert (p - target).abs().max() < 0.02
