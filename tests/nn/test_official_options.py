"""Every value that the options of the official code take, against an independent recomputation from the same state dict."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import official_oracle
from scorefield import presets, pretrained
from scorefield.nn import NCSN, NCSNv2
from scorefield.nn.refinenet import Norm2d
from scorefield.presets import Preset
from scorefield.pretrained.official_names import to_official

HERE = Path(__file__).resolve().parents[1] / "data" / "parity"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
RECORDED = [
    "01_ncsnpp_ve_cont",
    "02_ncsnpp_ffhq_skip",
    "03_ddpmpp_vp_cont",
    "05_ddpm_vp_discrete",
    "06_ncsnv2_64",
    "07_ncsn",
]


def config(preset, data=None, training=None, **model):
    small = {"nf": 8, "num_scales": 12, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.0}
    made = copy.deepcopy(presets.get(preset).official())
    made["model"] |= {k: v for k, v in small.items() if k in made["model"]} | model
    made["data"] |= {"image_size": 8} | (data or {})
    made["training"] |= training or {}
    return made


def compare(config, labels, spread=0.2):
    """Weights that are random everywhere, given to both under the official names."""
    g = torch.Generator().manual_seed(0)
    net = Preset.from_official(config).network()
    state = {k: v + spread * torch.randn(v.shape, generator=g) for k, v in to_official(net, net.state_dict()).items()}
    model = pretrained.official_model(config, {f"module.{k}": v for k, v in state.items()})
    net = getattr(model.net, "net", model.net).double()
    x = torch.randn(2, 3, 8, 8, generator=g, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = net(x, labels), official_oracle.network(config, state, x, labels)
    scale = theirs.square().mean().sqrt()
    assert scale.isfinite()
    assert (ours - theirs).abs().max() < 1e-10 * scale
    assert set(to_official(net, net.state_dict())) == set(state)


LEVELS, LABELS = torch.tensor([0.3, 20.0], dtype=torch.float64), torch.tensor([1.0, 7.0], dtype=torch.float64)


@pytest.mark.parametrize("name", RECORDED)
def test_the_oracle_is_the_official_code(name):
    folder = next((f for f in (HERE, SHARED) if (f / f"{name}.json").exists()), None)
    if folder is None:
        pytest.skip(f"the recording {name} is not here")
    about, tensors = json.loads((folder / f"{name}.json").read_text()), load_file(folder / f"{name}.safetensors")
    state = {k.removeprefix("state/"): v for k, v in tensors.items() if k.startswith("state/")}
    labelled = about["config"]["model"]["name"] not in ("ddpm", "ncsnpp")
    label = tensors["time_cond"].long() if labelled else tensors["time_cond"].double()
    y = official_oracle.network(about["config"], state, tensors["x"].double(), label)
    # The sinusoids of the recordings are float32; Fourier features and labels are exact.
    error = (y - tensors["out_f64"]).abs().max() / tensors["out_f64"].square().mean().sqrt()
    assert error < (1e-12 if "ddpm" not in name else 5e-5)


FAMILIES = [
    "ve/cifar10_ncsnpp_continuous",
    "vp/cifar10_ddpmpp_continuous",
    "vp/ddpm/cifar10",
    "ve/ncsn/cifar10",
    "ve/ncsnv2/cifar10",
]


@pytest.mark.parametrize("nonlinearity", ["swish", "elu", "relu", "lrelu", "Swish"])
@pytest.mark.parametrize(
    "name",
    [
        "ve/cifar10_ncsnpp_continuous",
        "vp/cifar10_ddpmpp_continuous",
        "vp/ddpm/cifar10",
        "ve/ncsn/cifar10",
        "ve/ncsnv2/cifar10",
    ],
)
def test_nonlinearities(name, nonlinearity):
    refined = "/ncsn/" in name or "ncsnv2" in name
    wide = {"nf": 32} if name == "vp/ddpm/cifar10" else {}  # 32 groups, as the official code fixes them there
    label = LABELS.long() if refined else LEVELS if name.startswith("ve") else LABELS
    compare(config(name, nonlinearity=nonlinearity, **wide), label)


TAPS = [
    [1, 2, 1],
    [1, 1],
    [1],
    [1, 4, 6, 4, 1],
    [1, 3, 3, 1],
    [1.0, 2.0, 5.0],
    [[0, 1, 0], [1, 4, 2], [0, 1, 7]],
]


@pytest.mark.parametrize("taps", TAPS, ids=str)
@pytest.mark.parametrize(
    ("resblock", "progressive", "progressive_input"),
    [("biggan", "none", "residual"), ("ddpm", "output_skip", "input_skip"), ("biggan", "residual", "none")],
)
def test_filters(taps, resblock, progressive, progressive_input):
    options = {"resblock_type": resblock, "progressive": progressive, "progressive_input": progressive_input}
    compare(config("ve/cifar10_ncsnpp_continuous", fir_kernel=taps, **options), LEVELS)


PYRAMIDS = list(
    itertools.product(("none", "output_skip", "residual"), ("none", "input_skip", "residual"), ("sum", "cat"))
)


@pytest.mark.parametrize("pyramid", PYRAMIDS, ids="-".join)
@pytest.mark.parametrize("resblock", ["biggan", "ddpm"])
def test_pyramids(pyramid, resblock):
    progressive, progressive_input, combine = pyramid
    options = {"progressive": progressive, "progressive_input": progressive_input, "progressive_combine": combine}
    compare(config("ve/cifar10_ncsnpp_continuous", fir=False, resblock_type=resblock, **options), LEVELS)


@pytest.mark.parametrize("fir", [False, True])
@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_plain_resampling_between_ddpm_blocks(fir, rescale, centered):
    options = {"resblock_type": "ddpm", "resamp_with_conv": False, "skip_rescale": rescale, "fir": fir}
    compare(config("vp/cifar10_ddpmpp_continuous", {"centered": centered}, **options), LABELS)


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("scale", [False, True])
def test_embeddings(embedding, conditional, scale):
    options = {"embedding_type": embedding, "conditional": conditional, "scale_by_sigma": scale}
    compare(config("vp/cifar10_ncsnpp_continuous", **options), LABELS)


@pytest.mark.parametrize("scale", [False, True])
def test_ddpm_divided_by_the_noise_level(scale):
    compare(config("vp/ddpm/cifar10", nf=32, scale_by_sigma=scale, resamp_with_conv=False), LABELS)


@pytest.mark.parametrize("normalization", ["InstanceNorm++", "InstanceNorm", "VarianceNorm", "NoneNorm"])
@pytest.mark.parametrize("name", ["ve/ncsn/cifar10", "ve/ncsnv2/cifar10"])
def test_normalisations(name, normalization):
    compare(config(name, normalization=normalization, sigma_max=1.0), LABELS.long(), 0.01)  # activations of order one


@pytest.mark.parametrize("size", [64, 128, 256])
def test_group_norm_of_ncsnv2(size):
    """The official code names it and cannot build it; here it has the groups of the U-Nets."""
    compare(config("ve/ncsnv2/cifar10", name=f"ncsnv2_{size}", normalization="GroupNorm"), LABELS.long())


def test_every_normalisation_reaches_every_parameter():
    for kind, build in itertools.product(
        ("InstanceNorm++", "InstanceNorm", "VarianceNorm", "NoneNorm"), (NCSN, NCSNv2)
    ):
        torch.manual_seed(0)
        net = build(nf=4, normalization=kind)
        net(torch.randn(2, 3, 8, 8), torch.tensor([0, 5])).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in net.parameters()), (kind, build)


def test_a_normalisation_without_a_label_is_named():
    with pytest.raises(ValueError, match="normalization='GroupNorm' has no form that knows the label"):
        NCSN(nf=4, normalization="GroupNorm")
    with pytest.raises(ValueError, match=r"normalization='BatchNorm' is unknown; choose one of InstanceNorm\+\+,"):
        NCSNv2(nf=4, normalization="BatchNorm")


def test_new_normalisations_begin_as_in_the_papers():
    torch.manual_seed(0)
    gamma, beta = Norm2d("InstanceNorm", 400, 5).table.detach().chunk(2, 1)
    assert not beta.any()
    assert 0 <= gamma.min() < 0.1
    assert 0.9 < gamma.max() < 1
    assert Norm2d("VarianceNorm", 4000).table.detach().mean() == pytest.approx(1.0, abs=4 * 0.02 / 4000**0.5)
