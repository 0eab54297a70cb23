"""The paper's own code, number by number: recorded noise in, recorded sample out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf

PARITY = Path(__file__).parent / "data" / "parity"
SDES = {"ve": sf.VE(), "vp": sf.VP(), "subvp": sf.SubVP()}


def recording(name):
    if not (PARITY / f"{name}.json").exists():
        pytest.skip(f"the recording {name} is absent")
    return json.loads((PARITY / f"{name}.json").read_text()), load_file(PARITY / f"{name}.safetensors")


def gaussian(kind, dtype=torch.float32):
    """The recordings' model: N(0.3, 0.5^2) in every pixel."""
    return sf.GaussianMixture(torch.full((1, 3, 8, 8), 0.3, dtype=dtype), 0.25, None, SDES[kind])


def combinations():
    found = []
    for kind in SDES:
        path = PARITY / f"09_pc_{kind}sde.json"
        names = json.loads(path.read_text())["combos"] if path.exists() else ()
        found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names]
    return found


def controls():
    found = []
    for kind in SDES:
        path = PARITY / f"11_control_{kind}sde.json"
        names = json.loads(path.read_text())["info"] if path.exists() else ()
        found += [pytest.param(kind, name, id=f"{kind}-{name}") for name in names]
    return found


@pytest.mark.parametrize("denoise", [True, False], ids=["denoise", "nodenoise"])
@pytest.mark.parametrize(("kind", "name"), combinations())
def test_pc_sampler_ends_at_the_recorded_sample(kind, name, denoise):
    info, data = recording(f"09_pc_{kind}sde")
    combo = info["combos"][name]
    draws = iter(data["noise"])

    def run():
        return sf.official.pc_sample(
            gaussian(kind),
            info["shape"],
            predictor=combo["predictor"],
            corrector=combo["corrector"],
            snr=info["snr"],
            corrector_steps=info["n_steps"],
            probability_flow=combo["probability_flow"],
            steps=info["N"],
            t_min=info["eps"],
            denoise=denoise,
            noise=lambda: next(draws),
        )

    if "reference_error" in combo:
        with pytest.raises(ValueError, match="paper's code"):
            run()
        return
    # VE starts at 50; without a predictor its samples stay tens of units wide (README of the recordings).
    tolerance = {"ve": 5e-5, "vp": 1e-5, "subvp": 1e-5}[kind] if combo["predictor"] != "none" else 5e-4
    difference = run() - data[f"final/{name}/{'denoise' if denoise else 'nodenoise'}"]
    assert difference.abs().max() <= tolerance
    assert len(data["noise"]) - len(list(draws)) == combo["noise_draws_consumed"]


@pytest.mark.parametrize("kind", SDES)
def test_a_float64_model_ends_there_too(kind):
    info, data = recording(f"09_pc_{kind}sde")
    draws = iter(data["noise"])
    x = sf.official.pc_sample(
        gaussian(kind, torch.float64),
        info["shape"],
        corrector="none",
        steps=info["N"],
        t_min=info["eps"],
        noise=lambda shape: next(draws),
    )
    assert x.dtype == torch.float64
    assert (x - data["final/reverse_diffusion__none/denoise"]).abs().max() <= 5e-5


@pytest.mark.parametrize("ending", ["reference_denoise", "reference_nodenoise", "xmean_fixed_denoise"])
@pytest.mark.parametrize(("kind", "name"), controls())
def test_inpainting_and_colourisation_end_at_the_recorded_sample(kind, name, ending):
    info, data = recording(f"11_control_{kind}sde")
    combo, task = info["info"][name], name.split("/")[0]
    if "reference_error" in combo:
        pytest.skip("the paper's code fails here")
    draws = iter(data["noise"])
    known = {"data": data["data"], "mask": data["mask"]} if task == "inpaint" else {"gray": data["gray"]}
    x = getattr(sf.official, task)(
        gaussian(kind),
        **known,
        predictor=combo["predictor"],
        corrector=combo["corrector"],
        snr=info["snr"],
        corrector_steps=info["n_steps"],
        steps=info["N"],
        t_min=info["eps"],
        denoise=ending != "reference_nodenoise",
        repaired=ending == "xmean_fixed_denoise",
        noise=lambda: next(draws),
    )
    assert (x - data[f"{name}/{ending}"]).abs().max() <= 1e-5
    assert len(data["noise"]) - len(list(draws)) == combo["noise_draws_consumed"]


@pytest.mark.parametrize("ending", ["ode_sample", "ode_sample_denoised"])
@pytest.mark.parametrize("kind", SDES)
def test_ode_sampler_agrees_to_its_tolerance(kind, ending):
    info, data = recording(f"09_ode_{kind}sde")
    width = 50.0 if kind == "ve" else 1.0
    x = sf.official.ode_sample(
        gaussian(kind),
        info["shape"],
        info["rtol"],
        info["atol"],
        t_min=info["ode_eps"],
        denoise=ending == "ode_sample_denoised",
        noise=lambda: data["xT"] / width,
    )
    # both solvers' global errors: ten times the tolerance at the size of the state they pass through
    assert (x - data[ending]).abs().max() <= 10 * info["rtol"] * max(1.0, data["xT"].abs().max().item() / width)


@pytest.mark.parametrize("kind", SDES)
def test_decode_agrees_with_the_ode_sampler(kind):
    info, data = recording(f"09_ode_{kind}sde")
    r = sf.decode(gaussian(kind), data["xT"], sf.Dopri5(variable="t"), t_min=info["ode_eps"], full=True)
    assert (r.x - data["ode_exact"]).abs().max() <= 10 * info["rtol"] * max(1.0, data["xT"].abs().max().item() / 10)
    assert (r.nfe - info["info"]["ode_nfe"]).abs().max() <= 6


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
@pytest.mark.parametrize("kind", SDES)
def test_likelihood_with_the_recorded_probe(kind, distribution):
    info, data = recording(f"09_ode_{kind}sde")
    probe = data[f"lik_eps_{distribution}"]
    # the paper's code takes the VE prior to be N(0, sigma_max^2), as the nominal prior is
    lp = sf.log_prob(
        gaussian(kind), data["lik_data"], noise=lambda: probe, distribution=distribution, t_min=info["lik_eps"]
    )
    assert torch.allclose(lp.latent, data[f"lik_z_{distribution}_centered"], rtol=2e-4, atol=2e-4)
    bits = lp.bits_per_dim(levels=256, low=-1.0, high=1.0)
    assert torch.allclose(bits, data[f"lik_bpd_{distribution}_centered"].double(), atol=1e-3)


def test_combinations_that_fail_there_are_refused():
    vp = gaussian("vp")
    with pytest.raises(ValueError, match="beta_i exceed 1"):
        sf.official.pc_sample(vp, (2, 3, 8, 8), steps=10)
    with pytest.raises(ValueError, match="probability_flow"):
        sf.official.pc_sample(vp, (2, 3, 8, 8), "ancestral_sampling", probability_flow=True)
    exact = sf.GaussianMixture(torch.zeros(1, 2), 1.0, None, sf.VE(exact=True))
    with pytest.raises(ValueError, match="VE"):
        sf.official.pc_sample(exact, (2, 2), corrector="none")
    with pytest.raises(ValueError, match="predictor"):
        sf.official.pc_sample(vp, (2, 3, 8, 8), predictor="euler")


def test_the_same_seed_gives_the_same_sample():
    run = [sf.official.pc_sample(gaussian("vp"), (2, 3, 8, 8), steps=25, seed=3) for _ in range(2)]
    assert torch.equal(*run)
