"""The examples of a user's own operator, with every method."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import scorefield as sf
from scorefield import inverse
from scorefield.inverse.posterior import METHODS

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["deconvolution", "tomography"])
def test_ones_own_operator_works_in_every_method(name, method):
    """The mean is nearer to the truth than the prior's is, and the claimed error is of the size of the real one."""
    module = load(name)
    options = {"zeta": 0.3} if method == "dps" else {}
    truth, mean, std = module.main(8, method=method, **options)
    error = float((mean - truth).square().mean().sqrt())
    assert error < 0.6 * float((truth - module.prior().means[0]).square().mean().sqrt())
    assert 0.5 * error < float(std.mean()) < 2 * error


@pytest.mark.parametrize(("name", "operator"), [("deconvolution", "Smear"), ("tomography", "Shadows")])
def test_ones_own_operator_works_with_ddrm_and_particles(name, operator):
    module = load(name)
    model, measure = module.prior(), getattr(module, operator)()
    truth = model.sample(1, seed=3)
    y = measure(truth)
    x = sf.sample(model, 8, sf.DDRM(measure, y, 0.02), seed=0)
    nearer = float((truth[0] - model.means[0]).norm())
    assert float((x.mean(0) - truth[0]).norm()) < 0.6 * nearer
    particles = sf.twisted_smc(model, measure, y, 0.1, particles=32, steps=50)
    assert float((particles.mean() - truth[0]).norm()) < 0.8 * nearer


def test_the_examples_operators_are_linear_with_the_adjoint_that_differentiation_finds():
    for name, operator in (("deconvolution", "Smear"), ("tomography", "Shadows")):
        module = load(name)
        x, z = module.prior().sample(2, seed=0), module.prior().sample(2, seed=1)
        near = inverse.linearize(getattr(module, operator)(), x)
        u = torch.randn_like(near.value)
        assert torch.allclose((near.value * u).sum(), (x * near.adjoint(u)).sum())
        assert torch.allclose(near.forward(z), getattr(module, operator)()(z))
