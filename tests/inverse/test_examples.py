"""The examples of a user's own operator, with every method."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from scorefield import inverse
from scorefield.inverse.restore import METHOD_STEPS

torch.set_num_threads(1)
FOLDER = Path(__file__).parents[2] / "examples"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["deconvolution", "tomography"])
def test_the_examples_run_and_claim_the_error_that_they_have(name):
    truth, mean, std = load(name).main(8)
    error = float((mean - truth).square().mean().sqrt())
    assert 0.5 * error < float(std.mean()) < 2 * error


@pytest.mark.parametrize("method", METHOD_STEPS)
@pytest.mark.parametrize(("name", "operator"), [("deconvolution", "Smear"), ("tomography", "Shadows")])
def test_ones_own_operator_works_in_every_method(name, operator, method):
    """The mean of the samples is nearer to the truth than the prior's is."""
    module = load(name)
    model, measure, noise = module.prior(), getattr(module, operator)(), 0.02
    truth = model.sample(1, seed=3)
    clean = measure(truth)
    y = clean + noise * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1)).to(truth)
    # Isotropic particles in the 216 dimensions of tomography need a measurement that is not so sharp.
    steps = {"mmps": 20, "tmpd": 12, "smc": 12, "dps": 200, "diffpir": 30, "repaint": 15}.get(method)
    found = inverse.restore(model, measure, y, 0.1 if method == "smc" else noise, 8, method, steps=steps)
    assert found.samples.shape == (1, 8, *model.shape)
    share = 0.8 if method == "smc" else 0.6
    assert (found.mean()[0] - truth[0]).norm() < share * (truth[0] - model.means[0]).norm()


def test_the_examples_operators_are_linear_with_the_adjoint_that_differentiation_finds():
    for name, operator in (("deconvolution", "Smear"), ("tomography", "Shadows")):
        module = load(name)
        x, z = module.prior().sample(2, seed=0), module.prior().sample(2, seed=1)
        near = inverse.linearize(getattr(module, operator)(), x)
        u = torch.randn_like(near.value)
        assert torch.allclose((near.value * u).sum(), (x * near.adjoint(u)).sum())
        assert torch.allclose(near.forward(z), getattr(module, operator)()(z))
