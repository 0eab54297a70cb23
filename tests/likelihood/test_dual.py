"""Tangents carried through a network are its directional derivatives."""

import warnings

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import scorefield as sf
from scorefield.errors import ScorefieldWarning
from scorefield.likelihood.forward import Dual, Meter, Rules, UnsupportedOperation, pushforward, register
from scorefield.likelihood.trace import Exact, Forward, Linearizer, Reverse, TorchForward
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
    ("mode", "function", "chosen", "said"),
    [
        ("auto", torch.tanh, Forward, []),
        ("auto", lambda z: z.cumsum(1), Reverse, ["cumsum"]),
        ("forward", lambda z: z.cumsum(1), TorchForward, ["cumsum"]),
        ("reverse", lambda z: z.cumsum(1), Reverse, []),
    ],
)
def test_the_way_of_differentiating_is_chosen_by_what_the_network_does(mode, function, chosen, said):
    linearizer = Linearizer(mode)
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        moved = [linearizer(function, x).products(torch.ones(1, 2, 3, dtype=torch.float64)) for _ in range(2)][-1]
    assert linearizer.chosen is chosen
    assert moved.shape == (1, 2, 3)
    messages = [str(w.message) for w in caught if w.category is ScorefieldWarning]
    assert len(messages) == len(said)  # once, and by name
    assert all(word in message for word, message in zip(said, messages, strict=True))


ELSEWHERE = {
    "numpy": lambda z: torch.as_tensor(z.detach().numpy()) * 2,
    "one number": lambda z: z * z[0, 0].item(),
    "address": lambda z: z * float(z.data_ptr() != 0),
    "dlpack": lambda z: z * torch.from_dlpack(z.detach()),
    "rule that does not foresee it": lambda z: torch.ones(4, dtype=torch.float64).index_select(
        0, z.argmax(1) + 0 * z[0]
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_leaves_torch_is_an_unsupported_operation(name):
    x = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedOperation):
        pushforward(ELSEWHERE[name], x, x.unsqueeze(0))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("shape mismatch")])
def test_no_other_failure_changes_the_way_of_differentiating(error):
    """Running out of memory above all: reverse mode would need more of it."""

    def failing(z):
        raise error

    linearizer = Linearizer("auto")
    with pytest.raises(type(error), match=str(error)):
        linearizer(failing, torch.zeros(2, 3)).products(torch.ones(1, 2, 3))
    assert linearizer.chosen is Forward


def test_an_operation_that_comes_later_on_the_path_changes_the_way_there():
    """The weak model, with an operation without a rule, is called between two times only."""
    good = sf.ScoreModel(lambda x, t: 0.5 * x, sf.VP(), shape=(2,))
    weak = sf.ScoreModel(lambda x, t: 0.5 * x + 0.1 * x.cumsum(1), sf.VP(), shape=(2,))
    guided = good | sf.guide.Autoguidance(weak, 1.5, interval=(0.3, 0.6))
    x = torch.tensor([[1.0, -0.4], [0.2, 0.3]], dtype=torch.float64)
    for trace in ("exact", "hutchinson"):
        options = {"trace": trace, "probes": 2, "seed": 0, "solver": sf.solve.RK4(), "steps": 20}
        expected = sf.log_prob(guided, x, mode="reverse", **options)
        with pytest.warns(ScorefieldWarning, match="cumsum"):
            found = sf.log_prob(guided, x, **options)
        assert torch.allclose(found.nats, expected.nats, atol=1e-10)


STEPS = {
    "int": lambda x: 0.3 * x + 0.2 * (4 * x).int().to(x.dtype),
    "long": lambda x: 0.3 * x + 0.2 * (4 * x).long(),
    "bool": lambda x: 0.3 * x + (x > 0.1).to(x.dtype),
    "floor": lambda x: 0.3 * x + x.floor() + x.round() + x.ceil() + x.trunc(),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_have_no_derivative(name):
    x = torch.tensor([[0.3, -0.6]], dtype=torch.float64)
    value, trace = Exact(Linearizer("forward"))(STEPS[name], x)
    assert torch.equal(value, STEPS[name](x))
    assert float(trace) == pytest.approx(0.6, abs=1e-12)


def test_a_constant_network_has_no_divergence():
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.warns(ScorefieldWarning, match="lost"):
        value, trace = Exact(Linearizer())(lambda z: torch.ones_like(z), x)
    assert torch.equal(value, x)
    assert trace.flatten().tolist() == [0, 0]


def test_the_derivative_is_that_of_the_function_whatever_it_detaches():
    x = torch.rand(2, 3, dtype=torch.float64)
    assert torch.allclose(pushforward(lambda z: z * z.detach(), x, torch.ones_like(x).unsqueeze(0))[1], 2 * x)


def test_a_network_that_differentiates_inside_is_differentiated_in_reverse():
    """The rule of a linear layer is invisible to an inner gradient, which would silently lack it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 3).double().requires_grad_(False)

    def slope(z):
        with torch.enable_grad():
            live = z if z.requires_grad else z.detach().requires_grad_()
            value = (live + layer(live)).square().sum()
            return torch.autograd.grad(value, live, create_graph=True)[0]

    x = torch.rand(2, 3, dtype=torch.float64)
    jacobian = 2 * (torch.eye(3) + layer.weight).T @ (torch.eye(3) + layer.weight)
    with pytest.warns(ScorefieldWarning, match="differentiates inside"):
        trace = Exact(Linearizer())(slope, x)[1]
    assert torch.allclose(trace, jacobian.trace().expand(2, 1))


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_a_compiled_network_is_differentiated_as_it_was_written(mode):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3)).double()
    x = torch.rand(2, 3, dtype=torch.float64)
    compiled = torch.compile(net, backend="aot_eager")
    compiled(x)
    linearizer = Linearizer(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = Exact(linearizer)(compiled, x)[1]
    assert torch.allclose(trace, Exact(Linearizer("reverse"))(net, x)[1])
    assert linearizer.chosen is (Reverse if mode == "reverse" else Forward)


def test_an_operation_of_the_users_own_gets_a_rule():
    """Tripled is an operator that torch does not know; nor do duals, until they are told."""
    library = torch.library.Library("scorefield_test", "FRAGMENT")
    library.define("tripled(Tensor x) -> Tensor")
    library.impl("tripled", lambda x: 3 * x, "CompositeExplicitAutograd")
    operator = torch.ops.scorefield_test.tripled.default
    x = torch.rand(2, 3, dtype=torch.float64)
    with pytest.raises(UnsupportedOperation, match="tripled"):
        pushforward(operator, x, x.unsqueeze(0))
    rules = Rules()
    rules.operator(operator)(lambda func, x: Dual(func(x.packed)))
    register(rules)
    assert torch.allclose(pushforward(operator, x, x.unsqueeze(0))[1], 3 * x)


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


@pytest.mark.parametrize("tangents", [1, 2])
def test_a_matrix_times_a_vector_that_moves(tangents):
    """Row by row, as a user's network may multiply; with one tangent and two columns a wrong rule would go unseen."""
    matrix = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 4.0]], dtype=torch.float64)
    x, e = (
        torch.tensor([[0.3, -0.7]], dtype=torch.float64),
        torch.tensor([[[0.2, 1.1]], [[-0.4, 0.9]]], dtype=torch.float64),
    )
    value, moved = pushforward(lambda y: (matrix @ y[0])[None], x, e[:tangents])
    torch.testing.assert_close(value, x @ matrix.T)
    torch.testing.assert_close(moved, e[:tangents] @ matrix.T)
    moved = pushforward(lambda y: (torch.outer(y[0], y[0]) @ y[0])[None], x, e[:tangents])[1]
    gram = torch.autograd.functional.jacobian(lambda v: torch.outer(v, v) @ v, x[0])
    torch.testing.assert_close(moved[:, 0], e[:tangents, 0] @ gram.T)
