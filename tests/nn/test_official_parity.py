"""Our networks against recordings of the official implementation: outputs, scores, gradients."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scorefield.ladder import DDPMScore
from scorefield.pretrained.load import official_model
from scorefield.pretrained.official_names import to_official

HERE = Path(__file__).resolve().parents[1] / "data" / "parity"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"

NETWORKS = [
    "01_ncsnpp_ve_cont",
    "01b_ncsnpp_ve_discrete",
    "02_ncsnpp_ffhq_skip",
    "03_ddpmpp_vp_cont",
    "03b_ncsnpp_vp_cont",
    "04_ddpmpp_subvp_cont",
    "05_ddpm_vp_discrete",
    "05b_ddpm_vp_cont",
    "05c_ddpm_ve_discrete",
    "06_ncsnv2_64",
    "06b_ncsnv2_128",
    "07_ncsn",
]


def recording(name):
    for folder in (HERE, SHARED):
        if (folder / f"{name}.json").exists():
            about = json.loads((folder / f"{name}.json").read_text())
            return about, load_file(folder / f"{name}.safetensors")
    pytest.skip(f"the recording {name} is neither in tests/data/parity nor in ../shared/parity")


@pytest.fixture(scope="module", params=NETWORKS)
def recorded(request):
    about, tensors = recording(request.param)
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    return about, tensors, official_model(about["config"], state)


def network(model):
    return model.net.net if isinstance(model.net, DDPMScore) else model.net


def tolerance(about):
    """That of the recordings' README: five times the reference's own float32 error, at least 2e-5 of the output."""
    return max(5 * about["max_abs_f32_minus_f64"], 2e-5 * about["out_rms"])


def relative_error(ours, theirs):
    return (ours.double() - theirs.double()).abs().max() / theirs.double().square().mean().sqrt()


def test_parameter_count(recorded):
    about, _, model = recorded
    assert sum(p.numel() for p in model.net.parameters()) == about["n_params"]


def test_output(recorded):
    about, tensors, model = recorded
    with torch.no_grad():
        y = network(model)(tensors["x"], tensors["time_cond"])
    assert y.dtype == torch.float32
    torch.testing.assert_close(y.double(), tensors["out"].double(), rtol=0, atol=tolerance(about))
    torch.testing.assert_close(y.double(), tensors["out_f64"], rtol=0, atol=tolerance(about))


def test_output_in_float64(recorded):
    """The reference keeps its sinusoids in float32 there, and so do labels given in float32."""
    about, tensors, model = recorded
    net = network(official_model(about["config"], to_official(network(model), network(model).state_dict()))).double()
    with torch.no_grad():
        y = net(tensors["x"].double(), tensors["time_cond"])
    bar = 1e-11 if about["config"]["model"].get("embedding_type") != "fourier" else tolerance(about) / about["out_rms"]
    assert relative_error(y, tensors["out_f64"]) < bar


@pytest.mark.parametrize(("name", "t"), [("score_t001", 0.01), ("score_t03", 0.3), ("score_t09", 0.9)])
def test_score(recorded, name, t):
    about, tensors, model = recorded
    with torch.no_grad():
        y = model.score(tensors["x"], t)
    assert relative_error(y, tensors[name]) < max(tolerance(about) / about["out_rms"], 5e-5)


def test_input_gradient(recorded):
    about, tensors, model = recorded
    x = tensors["x"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(model)(x, tensors["time_cond"]), x, tensors["vjp_v"].to(x.dtype))
    assert relative_error(gradient, tensors["vjp_x"]) < max(tolerance(about) / about["out_rms"], 1e-4)


def test_gradient_norm_of_every_parameter(recorded):
    about, tensors, model = recorded
    net = network(model)
    net.zero_grad()
    net(tensors["x"], tensors["time_cond"]).backward(tensors["vjp_v"])
    ours = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in net.named_parameters()}
    norms = {k: float(g.norm()) for k, g in to_official(net, ours).items()}
    expected = about["param_grad_l2"]
    # A bias whose true gradient is 0 (the keys' in attention; one channel to a group) has the norm of rounding errors.
    rounding = 1e-7 * max(expected.values())
    for key, norm in expected.items():
        assert norms[key] == pytest.approx(norm, rel=1e-3, abs=rounding), key
    assert set(norms) - set(expected) <= {"all_modules.0.W"}


def test_every_weight_comes_back_under_its_official_name(recorded):
    _, tensors, model = recorded
    net = network(model)
    back = to_official(net, net.state_dict())
    recorded_names = {k for k in tensors if k.startswith("state/") and k != "state/sigmas"}
    assert {f"state/{k}" for k in back} == recorded_names
    for key, value in back.items():
        assert torch.equal(value, tensors[f"state/{key}"]), key
