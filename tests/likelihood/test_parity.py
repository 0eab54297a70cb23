"""The official implementation's likelihoods, latents and ODE samples, from its own recordings."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf

PARITY = Path(__file__).parents[1] / "data" / "parity"
SDES = {"vesde": sf.VE(), "vpsde": sf.VP(), "subvpsde": sf.SubVP()}
NFE_SLACK = 6  # the official error norm is taken over the whole batch, ours over each sample


def recording(kind):
    path = PARITY / f"09_ode_{kind}.json"
    if not path.exists():
        pytest.skip(f"the recording {path.name} is absent")
    about = json.loads(path.read_text())
    gm = sf.GaussianMixture(torch.full((1, *about["shape"][1:]), 0.3), 0.25, None, SDES[kind])
    return about, load_file(path.with_suffix(".safetensors")), gm


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", SDES)
def test_likelihood_with_the_recorded_probe(kind, distribution):
    about, saved, gm = recording(kind)
    probe = saved[f"lik_eps_{distribution}"]
    by_time = sf.Dopri5(variable="t")  # as the recording, whose number of evaluations is one of its figures
    lp = sf.log_prob(gm, saved["lik_data"], noise=lambda: probe, distribution=distribution, solver=by_time)
    recorded = saved[f"lik_bpd_{distribution}_centered"].double()
    assert torch.allclose(lp.bits_per_dim(256, -1.0, 1.0), recorded, atol=1e-4)
    latent = saved[f"lik_z_{distribution}_centered"]
    assert float((lp.latent - latent).abs().max() / latent.abs().max()) < 1e-4
    assert bool(((lp.nfe - about["info"][f"lik_nfe_{distribution}_centered"]).abs() <= NFE_SLACK).all())


@pytest.mark.parametrize("kind", SDES)
def test_bits_of_data_in_the_unit_interval(kind):
    _, saved, gm = recording(kind)
    probe = saved["lik_eps_rademacher"]
    lp = sf.log_prob(gm, saved["lik_data"], noise=lambda: probe)
    assert torch.allclose(lp.bits_per_dim(256, 0.0, 1.0), saved["lik_bpd_rademacher_uncentered"].double(), atol=1e-4)


@pytest.mark.parametrize("kind", SDES)
def test_adaptive_samples_from_the_recorded_start(kind):
    about, saved, gm = recording(kind)
    result = sf.sample(gm, 2, sf.Dopri5(variable="t"), x_init=saved["xT"], t_min=about["ode_eps"], full=True)
    assert torch.allclose(result.x, saved["ode_sample"], atol=2e-4)
    assert bool((result.nfe <= about["info"]["ode_nfe"] + NFE_SLACK).all())
