"""The training path, which recomputes instead of keeping, and half precision, against the plain network in float32."""

import pytest
import torch
from torch import nn

from scorefield.nn import MLP, UNet, low_precision
from scorefield.nn.recompute import dropout_mask, is_worthwhile

STYLES = [
    {"fir": (1, 3, 3, 1), "progressive_input": "residual"},
    {"fir": (1, 3, 3, 1), "progressive_input": "input_skip", "progressive": "output_skip", "combine": "cat"},
    {"progressive_input": "residual", "progressive": "residual"},
    {"resblock": "ddpm", "skip_rescale": False, "conditional": False},
]


def tiny(dtype=torch.float64, nf=8, **options):
    torch.manual_seed(0)
    settings = {"nf": nf, "ch_mult": (1, 2), "num_res_blocks": 1, "attn": (1,), "dropout": 0.0, "init_scale": 1.0}
    return UNet(2, **(settings | options)).to(dtype)


def batch(dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    return torch.randn(2, 2, 8, 8, generator=g).to(dtype).requires_grad_(), torch.tensor([0.2, 0.9])


def gradients(net, x, y, create_graph=False):
    leaves = [x, *(p for p in net.parameters() if p.requires_grad)]
    return torch.autograd.grad(y.square().sum(), leaves, create_graph=create_graph)


@pytest.fixture
def plain(monkeypatch):
    return lambda: monkeypatch.setattr("scorefield.nn.blocks.is_worthwhile", lambda module, x: False)


@pytest.mark.parametrize("style", STYLES)
def test_training_path_has_the_values_and_gradients_of_the_plain_one(style, plain):
    net = tiny(**style).train()
    x, t = batch()
    y = net(x, t)
    lean = gradients(net, x, y)
    plain()
    z = net(x, t)
    torch.testing.assert_close(y, z, rtol=0, atol=0)
    for a, b in zip(lean, gradients(net, x, z), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_second_derivatives(plain):
    """As score matching by slices needs them: the gradient of a gradient, attention included."""
    net = tiny().train()
    x, t = batch()

    def second():
        first = gradients(net, x, net(x, t), create_graph=True)
        return gradients(net, x, first[0])

    lean = second()
    plain()
    for a, b in zip(lean, second(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_second_derivatives_in_evaluation_mode():
    net = tiny().eval()
    x, t = batch()
    first = gradients(net, x, net(x, t), create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("dims", [1, 3])
def test_other_dimensions(dims, plain):
    net = tiny(dims=dims, fir=(1, 3, 3, 1)).train()
    x = torch.randn(1, 2, *[4] * dims, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0.3])
    lean = gradients(net, x, net(x, t))
    plain()
    for a, b in zip(lean, gradients(net, x, net(x, t)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def held(net, x, t):
    """Bytes that the backward pass keeps, the parameters aside."""
    kept = {p.untyped_storage().data_ptr(): 0 for p in net.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = net(x, t)
    assert y.requires_grad
    return sum(kept.values())


def test_training_path_keeps_less_than_half(plain):
    net = tiny(torch.float32, nf=16, attn=(), dropout=0.1).train()
    x, t = torch.randn(2, 2, 32, 32), torch.tensor([0.2, 0.9])
    lean = held(net, x, t)
    plain()
    assert lean < 0.5 * held(net, x, t)


def test_frozen_parameters_get_no_gradient():
    net = tiny().train()
    net.down[0].blocks[0].conv1.weight.requires_grad_(False)
    net.down[0].blocks[0].norm1.requires_grad_(False)
    x, t = batch()
    net(x, t).square().sum().backward()
    assert net.down[0].blocks[0].conv1.weight.grad is None
    assert net.down[0].blocks[0].conv1.bias.grad is not None


def test_function_transforms_take_the_plain_path():
    net = tiny(attn=()).train()
    net.middle_attn = nn.Identity()
    x, t = batch()
    v = torch.ones_like(x)
    _, tangent = torch.func.jvp(lambda z: net(z, t), (x.detach(),), (v,))
    h = 1e-6
    with torch.no_grad():
        expected = (net(x + h * v, t) - net(x - h * v, t)) / (2 * h)
    torch.testing.assert_close(tangent, expected, rtol=1e-5, atol=1e-6)
    assert is_worthwhile(net, x)


# --- dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_mask_has_the_right_share(p):
    torch.manual_seed(0)
    n = 2**20
    mask = dropout_mask(torch.empty(n), p)
    assert set(mask.unique().tolist()) == {0, 1}
    assert abs(float(mask.double().mean()) - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5


def test_dropout_mask_has_no_pattern():
    """All four positions inside a 64-bit word are alike, and neighbours are independent."""
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(2**20), 0.5).double()
    assert (mask.reshape(-1, 4).mean(0) - 0.5).abs().max() < 5 * 0.5 / 2**9
    assert abs(float((mask[1:] * mask[:-1]).mean()) - 0.25) < 5 * 0.43 / 2**10


@pytest.mark.parametrize("shape", [(3, 5), (1, 7), (2, 3, 4, 5)])
def test_dropout_mask_is_laid_out_like_its_tensor(shape):
    x = torch.empty(shape)
    if len(shape) == 4:
        x = x.to(memory_format=torch.channels_last)
    mask = dropout_mask(x, 0.5)
    assert mask.shape == x.shape
    assert mask.stride() == x.stride()


def test_dropout_keeps_the_mean_and_follows_the_seed():
    net = tiny(torch.float32, nf=16, dropout=0.2).train()
    x, t = batch(torch.float32)

    def draw(seed):
        torch.manual_seed(seed)
        return net(x, t)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


def test_dropout_gradient_follows_its_mask():
    """The gradient of a network with a fixed mask, against differences."""
    net = tiny(dropout=0.3).train()
    x, t = batch()

    def loss(z):
        torch.manual_seed(5)
        return net(z, t).square().sum()

    (gradient,) = torch.autograd.grad(loss(x), x)
    v, h = torch.randn_like(x), 1e-6
    with torch.no_grad():
        expected = (loss(x + h * v) - loss(x - h * v)) / (2 * h)
    torch.testing.assert_close((gradient * v).sum(), expected, rtol=1e-6, atol=1e-6)


def test_dropout_is_off_in_evaluation():
    net = tiny(dropout=0.5).eval()
    x, t = batch()
    torch.testing.assert_close(net(x, t), tiny(dropout=0.0).eval()(x, t), rtol=0, atol=0)


# --- half precision


def rms(x):
    return x.detach().double().square().mean().sqrt()


@pytest.mark.parametrize("style", STYLES)
def test_bfloat16_stays_within_three_percent(style):
    net = tiny(torch.float32, nf=32, **style).eval()
    x, t = batch(torch.float32)
    with torch.no_grad():
        exact = net(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            auto = net(x, t)
        low = low_precision(net)(x, t)
    for y in (auto, low):
        assert y.dtype == torch.float32
        assert rms(y - exact) < 0.03 * rms(exact)


def test_low_precision_keeps_what_matters():
    net = low_precision(tiny(torch.float32, fir=(1, 3, 3, 1), progressive_input="residual"))
    dtypes = {k: p.dtype for k, p in net.named_parameters()}
    kept = [k for k, dtype in dtypes.items() if dtype == torch.float32]
    assert all(("norm" in k) or k.startswith(("conditioning", "stem", "head")) or ".embed." in k for k in kept)
    assert sum("conv" in k and dtype == torch.bfloat16 for k, dtype in dtypes.items()) > 10


def test_low_precision_leaves_the_original_alone():
    net = tiny(torch.float32).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    low_precision(net)
    assert net.training
    assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_training_under_autocast_has_the_gradients_of_float32():
    net = tiny(torch.float32, nf=32).train()
    x, t = batch(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, t)
    assert y.dtype == torch.float32
    low = gradients(net, x, y)
    exact = gradients(net, x, net(x, t))
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == torch.float32
        if rms(b) > 1e-3 * rms(exact[0]):  # a zero gradient, such as that of the keys' bias, is rounding
            assert rms(a - b) < 0.1 * rms(b)


def test_low_precision_of_a_network_without_a_trunk_is_refused():
    with pytest.raises(ValueError, match="MLP has no trunk of a UNet; cast it as a whole"):
        low_precision(MLP(2))
