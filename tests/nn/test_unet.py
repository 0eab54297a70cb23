"""The U-Net over its options: shapes, gradients, conditioning, sizes, dtypes."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from scorefield.model import ScoreModel
from scorefield.nn import MLP, NoiseScales, UNet, ddpm, digits_unet, levels_at
from scorefield.sdes import VE

SCALES = NoiseScales(0.01, 50.0, 20)


def tiny(**options):
    torch.manual_seed(0)
    settings = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (1,), "dropout": 0.0, "init_scale": 1.0}
    return UNet(**(settings | options)).eval()


def batch(channels=3, size=(8, 8), n=2):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, channels, *size, generator=g), torch.tensor([0.2, 0.9])[:n]


PYRAMIDS = list(
    itertools.product(("none", "output_skip", "residual"), ("none", "input_skip", "residual"), ("sum", "cat"))
)


@pytest.mark.parametrize("fir", [None, (1, 3, 3, 1)], ids=["plain", "fir"])
@pytest.mark.parametrize("resblock", ["ddpm", "biggan"])
@pytest.mark.parametrize("pyramids", PYRAMIDS, ids="-".join)
def test_every_combination_keeps_the_shape_and_reaches_every_parameter(pyramids, resblock, fir):
    progressive, progressive_input, combine = pyramids
    net = tiny(
        progressive=progressive, progressive_input=progressive_input, combine=combine, resblock=resblock, fir=fir
    )
    x, t = batch()
    y = net(x, t)
    assert y.shape == x.shape
    y.square().sum().backward()
    silent = [k for k, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert silent == []


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("resblock", ["ddpm", "biggan"])
@pytest.mark.parametrize("fir", [None, (1, 3, 3, 1)], ids=["plain", "fir"])
def test_dimensions(dims, resblock, fir):
    net = tiny(
        dims=dims, in_channels=2, resblock=resblock, fir=fir, progressive="residual", progressive_input="residual"
    )
    x, t = batch(2, (8, 4, 6)[:dims])
    assert net(x, t).shape == x.shape


@pytest.mark.parametrize("nf", [1, 6, 20, 36, 52])
@pytest.mark.parametrize("build", [tiny, lambda **o: ddpm(**({"ch_mult": (1, 2), "num_res_blocks": 1} | o))])
def test_widths_that_are_no_multiple_of_32(nf, build):
    net = build(nf=nf)
    x, t = batch()
    assert net(x, t).isfinite().all()


def test_non_square_equals_square_where_the_operation_is_local(monkeypatch):
    """Without norms (their statistics are global) and attention, the crop far from the border cannot see the shape."""
    net = tiny(attn=(), fir=(1, 3, 3, 1), progressive_input="residual", num_res_blocks=1)
    net.middle_attn = nn.Identity()
    monkeypatch.setattr("scorefield.nn.blocks.normalize", lambda x, norm, weight, bias: x)
    x, t = batch(size=(96, 96))
    wide, square = net(x[..., :64, :], t), net(x, t)
    # 2 blocks a level and 3 in the middle, each two convolutions: under 32 rows of reach
    torch.testing.assert_close(wide[..., :16, :], square[..., :16, :], rtol=0, atol=1e-5)


def test_a_network_knows_no_size():
    net = tiny(attn=levels_at([4], 8, 2))
    for size in ((8, 8), (16, 8), (4, 20)):
        x, t = batch(size=size)
        assert net(x, t).shape == x.shape


def test_sides_must_be_divisible():
    x, t = batch(size=(8, 7))
    with pytest.raises(ValueError, match=r"divisible by 2, got \(8, 7\)"):
        tiny()(x, t)


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_unconditional_ignores_time_and_has_no_embedding(embedding):
    net = tiny(conditional=False, embedding=embedding)
    x, t = batch()
    assert torch.equal(net(x, t), net(x, 0.5 * t))
    assert not any("embed" in k or "conditioning" in k for k in net.state_dict())


def test_unconditional_is_conditional_with_a_silent_embedding():
    net, blind = tiny(), tiny(conditional=False)
    state = net.state_dict()
    for k, v in state.items():
        if ".embed." in k:
            v.zero_()
    blind.load_state_dict({k: v for k, v in state.items() if k in blind.state_dict()})
    x, t = batch()
    assert torch.equal(net(x, t), blind(x, t))


def test_null_label_is_the_network_without_classes():
    net = tiny(num_classes=4)
    x, t = batch()
    plain = tiny()
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if "classes" not in k})
    assert torch.equal(net(x, t), plain(x, t))
    mixed = net(x, t, label=torch.tensor([-1, 2]))
    assert torch.equal(mixed[0], plain(x, t)[0])
    assert not torch.allclose(mixed[1], plain(x, t)[1])


def test_labels_change_only_their_own_row():
    net = tiny(num_classes=4)
    x, t = batch()
    a, b = net(x, t, label=torch.tensor([0, 1])), net(x, t, label=torch.tensor([0, 3]))
    assert torch.equal(a[0], b[0])
    assert not torch.allclose(a[1], b[1])


def test_classes_without_time():
    net = tiny(num_classes=4, conditional=False)
    x, t = batch()
    assert net(x, t, label=torch.tensor([0, 1])).isfinite().all()
    assert net(x, t).isfinite().all()


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"label": torch.tensor([0.0, 1.0])}, "label: expected integers"),
        ({"label": torch.tensor([0, 1, 2])}, "label: expected integers"),
        ({"image": torch.zeros(2, 1, 8, 8)}, "image: this network takes no"),
    ],
)
def test_wrong_conditions_are_named(cond, message):
    x, t = batch()
    with pytest.raises(ValueError, match=message):
        tiny(num_classes=4)(x, t, **cond)


def test_label_without_classes_is_refused():
    x, t = batch()
    with pytest.raises(ValueError, match="built without classes"):
        tiny()(x, t, label=torch.tensor([0, 1]))


@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
def test_image_conditioning_reaches_the_output(progressive_input):
    net = tiny(cond_channels=1, progressive_input=progressive_input)
    x, t = batch()
    image = torch.zeros(2, 1, 8, 8)
    assert net(x, t, image=image).shape == x.shape
    assert not torch.allclose(net(x, t, image=image), net(x, t, image=image + 1))
    with pytest.raises(ValueError, match="takes 1 conditioning channels"):
        net(x, t)


def test_out_channels():
    net = tiny(out_channels=5, progressive="output_skip")
    x, t = batch()
    assert net(x, t).shape == (2, 5, 8, 8)


def test_centered_is_the_map_to_minus_one_one():
    net, shifted = tiny(), tiny(centered=False)
    x, t = batch()
    torch.testing.assert_close(shifted((x + 1) / 2, t), net(x, t))


@pytest.mark.parametrize(("embedding", "scales"), [("fourier", None), ("positional", SCALES)])
def test_scale_by_sigma_divides_by_the_noise_level(embedding, scales):
    options = {"embedding": embedding, "time_scale": 1.0}
    x, _ = batch()
    t = torch.tensor([3.0, 7.0])
    sigma = t if scales is None else scales(t)
    scaled = tiny(scale_by_sigma=True, scales=scales, **options)(x, t)
    torch.testing.assert_close(scaled * sigma.float().reshape(2, 1, 1, 1), tiny(**options)(x, t))


@pytest.mark.parametrize("num_scales", [1, 2, 10, 1000])
def test_noise_scales_are_geometric(num_scales):
    sigma = NoiseScales(0.01, 50.0, num_scales)(torch.arange(num_scales))
    expected = torch.logspace(torch.tensor(50.0).log10(), -2, num_scales, dtype=torch.float64)
    torch.testing.assert_close(sigma, expected, rtol=1e-6, atol=0)
    assert sigma.dtype == torch.float64


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
def test_casts(embedding, dtype, bar):
    net = tiny(embedding=embedding, fir=(1, 3, 3, 1))
    x, t = batch()
    y = net(x, t)
    cast = net.to(dtype)(x.to(dtype), t)
    assert cast.dtype == dtype
    assert (cast.float() - y).square().mean().sqrt() < bar * y.square().mean().sqrt()


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_a_network_in_half_precision_reads_exact_times(embedding):
    """Label 999 is 1000 in bfloat16, and a noise level of 50 is off by half a turn of the fastest feature."""
    net = tiny(embedding=embedding, time_scale=1.0).bfloat16()
    model = ScoreModel(net, VE(), "noise", clock=(lambda t: 999 * t) if embedding == "positional" else "sigma")
    seen = []
    net.conditioning.features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x, _ = batch()
    y = model.noise(x, 1.0)
    assert y.isfinite().all()
    assert seen[0].dtype == torch.float32
    assert seen[0].tolist() == [999.0 if embedding == "positional" else 50.0] * 2


def test_half_precision_keeps_the_fourier_frequencies():
    net = tiny(embedding="fourier")
    before = net.conditioning.features.weight.clone()
    net.bfloat16()
    assert torch.equal(net.conditioning.features.weight, before)
    net.double()
    assert torch.equal(net.conditioning.features.weight, before.double())


@pytest.mark.parametrize(
    "option", ["dims", "embedding", "resblock", "progressive", "progressive_input", "combine", "nonlinearity"]
)
def test_unknown_options_are_named(option):
    with pytest.raises(ValueError, match=f"^{option}='diagonal' is unknown"):
        tiny(**{option: "diagonal"})


@pytest.mark.parametrize("sizes", [{"nf": 0}, {"ch_mult": ()}, {"ch_mult": (1, 0)}, {"num_res_blocks": -1}], ids=str)
def test_sizes_are_whole_numbers_from_one(sizes):
    with pytest.raises(ValueError, match="expected whole numbers from 1 on"):
        tiny(**({"attn": ()} | sizes))


def test_initial_output_is_nearly_zero():
    net = tiny(init_scale=0.0)
    x, t = batch()
    assert net(x, t).abs().max() < 1e-3


@pytest.mark.parametrize("size", [28, 8])
def test_digits_network(size):
    net = digits_unet()
    x = torch.randn(2, 1, size, size)
    assert net(x, torch.rand(2)).shape == x.shape


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
@pytest.mark.parametrize("features", [1, 5])
def test_mlp(features, embedding):
    net = MLP(features, width=16, depth=2, embedding=embedding, num_classes=3)
    x = torch.randn(4, features)
    y = net(x, torch.rand(4), label=torch.tensor([0, 1, 2, -1]))
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters() if p.requires_grad)


def test_importing_compiles_nothing():
    code = "import sys, scorefield.nn; assert 'torch.utils.cpp_extension' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
