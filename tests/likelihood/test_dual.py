"""Tangents carried through a network are its directional derivatives."""

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import scorefield as sf
from scorefield.likelihood.forward.dual import Meter, UnsupportedOperation
from scorefield.likelihood.trace import Forward, Linearizer, Reverse, TorchForward, pushforward
from scorefield.nn import MLP, NCSN, NCSNv2, UNet

SMALL = {"nf": 8, "ch_mult": (1, 2), "num_res_blocks": 1}
NETS = {
    "ncsnpp": lambda: UNet(
        2, **SMALL, embedding="fourier", fir=(1, 3, 3, 1), progressive_input="residual", scale_by_sigma=True
    ),
    "ddpmpp": lambda: UNet(2, **SMALL),
    "ddpm": lambda: UNet(2, **SMALL, resblock="ddpm", skip_rescale=False, max_groups=32),
    "skips": lambda: UNet(
        2, **SMALL, progressive="output_skip", progressive_input="input_skip", combine="cat", nonlinearity="elu"
    ),
    "signal": lambda: UNet(2, **SMALL, dims=1),
    "volume": lambda: UNet(2, **SMALL, dims=3),
    "mlp": lambda: MLP(128, width=16),
    "ncsn": lambda: NCSN(2, nf=8),
    "ncsnv2": lambda: NCSNv2(2, nf=8),
}
SHAPES = {"signal": (2, 2, 16), "volume": (2, 2, 4, 4, 4), "ncsn": (2, 2, 32, 32), "ncsnv2": (2, 2, 32, 32)}


def awake(net: torch.nn.Module) -> torch.nn.Module:
    """A fresh network multiplies its last layers by nearly zero, which would hide errors."""
    gen = torch.Generator().manual_seed(1)
    for p in net.parameters():
        p.data = p.data.double() + 0.05 * torch.randn(p.shape, generator=gen, dtype=torch.float64)
    return net.double().eval().requires_grad_(False)


def transposed_products(function, x, directions):
    """J e as the gradient of e^T J^T u with respect to u: reverse mode alone, applied twice."""
    with sdpa_kernel(SDPBackend.MATH):
        z = x.clone().requires_grad_()
        y = function(z)
        u = torch.ones_like(y, requires_grad=True)
        (back,) = torch.autograd.grad(y, z, u, create_graph=True)
        return torch.stack([torch.autograd.grad(back, u, e, retain_graph=True)[0] for e in directions])


@pytest.mark.parametrize("name", NETS)
def test_products_are_those_of_reverse_mode(name):
    net = awake(NETS[name]())
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPES.get(name, (2, 2, 8, 8)), generator=gen, dtype=torch.float64)
    directions = torch.randn((3, *x.shape), generator=gen, dtype=torch.float64)
    t = torch.tensor([3, 7]) if name.startswith("ncsn") and name != "ncsnpp" else torch.tensor([0.2, 0.7]).double()

    def function(z):
        return net(z, t)

    value, moved = pushforward(function, x, directions)
    expected = transposed_products(function, x, directions)
    assert torch.allclose(value, function(x), atol=1e-12 * float(value.abs().max()))
    assert torch.allclose(moved, expected, atol=1e-12 * float(expected.abs().max()))


OPERATIONS = {
    "in_place": lambda x: F.relu(x * 1.0, inplace=True) + torch.sin(x).add_(x, alpha=2).mul_(3),
    "mixed": lambda x: (2 - x) / (1 + x * x) + x.flip(1) * x.mean(1, keepdim=True),
    "reductions": lambda x: x * torch.logsumexp(x, 1, keepdim=True) + x.var(1, keepdim=True) * x.sum(),
    "entrywise": lambda x: F.gelu(x) + F.softplus(x) + torch.sin(x) * torch.exp(-(x**2)) + x.clamp(-0.5, 0.5) ** 3,
    "layer_norm": lambda x: F.layer_norm(x, (6,), torch.arange(6.0).double(), torch.ones(6).double()),
    "batch_norm": lambda x: F.batch_norm(x, torch.arange(6.0).double(), torch.arange(1.0, 7.0).double()),
    "softmax": lambda x: torch.softmax(x, 1) @ torch.arange(36.0).double().reshape(6, 6),
    "where": lambda x: torch.where(x > 0, x**2, torch.sqrt(x.abs() + 1)),
    "index": lambda x: torch.stack([x[:, 2], x[:, [0, 3]].sum(1)], 1).unsqueeze(2).expand(-1, -1, 3).reshape(-1, 6),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_have_the_tangents_of_torch(name):
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, generator=gen, dtype=torch.float64)
    directions = torch.randn(2, 5, 6, generator=gen, dtype=torch.float64)
    value, moved = pushforward(OPERATIONS[name], x, directions)
    assert torch.allclose(value, OPERATIONS[name](x))
    assert torch.allclose(moved, transposed_products(OPERATIONS[name], x, directions))


def test_attention_over_several_blocks_of_queries(monkeypatch):
    monkeypatch.setattr("scorefield.likelihood.forward.linear_rules._QUERY_ROWS", 3)
    x = torch.randn(2, 1, 8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def function(z):
        return F.scaled_dot_product_attention(z, z.flip(2), torch.sin(z))

    moved = pushforward(function, x, torch.ones(1, *x.shape).double())[1]
    assert torch.allclose(moved, transposed_products(function, x, torch.ones(1, *x.shape).double()))


def test_an_operation_without_a_rule_is_refused_not_guessed():
    x = torch.ones(2, 3)
    with pytest.raises(UnsupportedOperation, match="cumsum"):
        pushforward(lambda z: z.cumsum(1), x, x.unsqueeze(0))
    with pytest.raises(UnsupportedOperation, match="lost"):
        pushforward(lambda z: torch.ones(2, 3), x, x.unsqueeze(0))


@pytest.mark.parametrize(
    ("mode", "function", "chosen"),
    [
        ("auto", torch.tanh, Forward),
        ("auto", lambda z: z.cumsum(1), Reverse),
        ("forward", lambda z: z.cumsum(1), TorchForward),
        ("reverse", torch.tanh, Reverse),
    ],
)
def test_the_way_of_differentiating_is_chosen_by_what_the_network_does(mode, function, chosen):
    linearizer = Linearizer(mode)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = linearizer(function, x).products(torch.ones(1, 2, 3, dtype=torch.float64))
    assert linearizer.chosen is chosen
    assert moved.shape == (1, 2, 3)


def test_a_mistake_of_the_network_is_reported_as_itself():
    def broken(x, t):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        sf.log_prob(sf.ScoreModel.from_score(broken, sf.VP()), torch.zeros(2, 3), seed=0)


def test_the_meter_counts_shared_storage_once_and_lets_go():
    x = torch.zeros(4, 8, dtype=torch.float64)
    with Meter() as meter:
        pushforward(lambda z: z.reshape(8, 4).reshape(4, 8) * 2, x, x.unsqueeze(0))
    one = 2 * x.numel() * 8
    assert meter.peak == 2 * one
    assert meter.live == 0
