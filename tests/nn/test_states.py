"""Networks of states: shapes, what an output sees, what time and labels change, and that they can be built again."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from scorefield.training.describe import from_json, to_json

NETS = {
    "transformer": lambda **o: sf.nn.Transformer(6, 5, width=32, depth=2, heads=2, **o),
    "hollow": lambda **o: sf.nn.HollowTransformer(6, 5, width=32, depth=2, heads=2, **({"time": False} | o)),
    "mlp": lambda **o: sf.nn.StateMLP(6, 8, 5, width=32, **o),
    "unet": lambda **o: sf.nn.StateUNet(6, 2, 5, nf=8, ch_mult=(1, 2), **o),
}
SHAPES = {"transformer": (8,), "hollow": (8,), "mlp": (8,), "unet": (2, 4, 6)}


def shaken(net):
    """With every weight random: exits begin at zero."""
    g = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = p.data + 0.3 * torch.randn(p.shape, generator=g)
    return net.eval()


@pytest.mark.parametrize("kind", NETS)
def test_shapes_time_labels_and_description(kind):
    net = shaken(NETS[kind](time=True, num_classes=3))
    x = torch.randint(6, (3, *SHAPES[kind]), generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.5, 0.9])
    out = net(x, t, torch.tensor([0, 1, 2]))
    assert out.shape == (*x.shape, 5)
    assert not torch.allclose(out, net(x, t.flip(0), torch.tensor([0, 1, 2])))
    assert not torch.allclose(out, net(x, t, torch.tensor([2, 1, 0])))
    torch.testing.assert_close(net(x, t), net(x, t, torch.full((3,), -1)))
    with pytest.raises(ValueError, match="t is missing"):
        net(x)
    twin = from_json(to_json(net))
    twin.load_state_dict(net.state_dict())
    torch.testing.assert_close(twin.eval()(x, t), net(x, t))
    plain = shaken(NETS[kind]())
    assert plain(x).shape == (*x.shape, 5)
    with pytest.raises(ValueError, match="label"):
        plain(x, label=torch.tensor([0, 1, 2]))


def test_every_output_of_a_transformer_sees_every_position_and_none_of_a_hollow_one_its_own():
    x = torch.randint(6, (1, 8), generator=torch.Generator().manual_seed(1))
    for kind, own in (("transformer", True), ("hollow", False)):
        net = shaken(NETS[kind]())
        seen = torch.zeros(8, 8, dtype=torch.bool)
        for d in range(8):
            other = x.clone()
            other[0, d] = (x[0, d] + 1) % 6
            seen[d] = ((net(other) - net(x)).abs().amax(-1) > 1e-6)[0]
        assert torch.equal(seen, torch.ones(8, 8, dtype=torch.bool) if own else ~torch.eye(8, dtype=torch.bool))


def test_a_transformer_knows_order_and_takes_any_length():
    net = shaken(NETS["transformer"]())
    x = torch.tensor([[0, 1, 2, 3]])
    assert not torch.allclose(net(x).flip(1), net(x.flip(1)))
    assert net(torch.zeros(2, 3, 7, dtype=torch.int64)).shape == (2, 3, 7, 5)


def test_places_of_their_own():
    """All positions look alike to a network of relative places, until each gets a vector."""
    x = torch.zeros(1, 8, dtype=torch.int64)
    assert (NETS["transformer"]()(x).std(1) < 1e-5).all()
    for kind in ("transformer", "hollow"):
        net = shaken(NETS[kind](length=8))
        assert (net(x).std(1) > 1e-3).all()
        with pytest.raises(ValueError, match="has 5 positions; this network has length=8"):
            net(x[:, :5])
    seen = shaken(NETS["hollow"](length=8))
    other = torch.tensor([[0, 0, 0, 3, 0, 0, 0, 0]])
    changed = (seen(other) - seen(x)).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [True] * 3 + [False] + [True] * 4


def test_no_state_is_predicted_that_a_column_does_not_have():
    net = shaken(sf.nn.StateMLP(6, 3, 5, width=16, sizes=(2, 5, 3)))
    p = torch.softmax(net(torch.zeros(2, 3, dtype=torch.int64)), -1)
    assert (p[:, 0, 2:] == 0).all()
    assert (p[:, 2, 3:] == 0).all()
    assert (p[:, 1] > 0).all()
    with pytest.raises(ValueError, match="sizes="):
        sf.nn.StateMLP(6, 3, 5, sizes=(2, 7, 3))
    with pytest.raises(ValueError, match="heads of even width"):
        sf.nn.Transformer(6, width=30, heads=4)
