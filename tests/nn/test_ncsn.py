"""NCSN and NCSNv2 beyond what the recordings show."""

import pytest
import torch

from scorefield.nn import NCSN, NCSNv2, NoiseScales


@pytest.mark.parametrize("nf", [6, 10])
@pytest.mark.parametrize("size", [64, 128, 256])
def test_ncsnv2_sizes(size, nf):
    net = NCSNv2(nf=nf, size=size, channels=2, scales=NoiseScales(0.01, 1.0, 5))
    x = torch.randn(2, 2, 16, 24)
    y = net(x, torch.tensor([0, 4]))
    assert y.shape == x.shape
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_ncsnv2_divides_by_the_noise_level():
    scales = NoiseScales(0.01, 1.0, 5)
    net = NCSNv2(nf=4, scales=scales)
    x = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1)
    a, b = net(x, torch.tensor([0, 3]))
    sigma = scales(torch.tensor([0, 3]))
    torch.testing.assert_close(a * sigma[0], b * sigma[1], rtol=1e-5, atol=1e-6, check_dtype=False)


def test_ncsn_knows_the_label():
    net = NCSN(nf=4, num_scales=3)
    x = torch.randn(1, 3, 8, 8).expand(2, -1, -1, -1)
    a, b = net(x, torch.tensor([0, 2]))
    assert not torch.allclose(a, b, atol=1e-4)


def test_ncsn_reaches_every_parameter():
    net = NCSN(nf=4, num_scales=2)
    net(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize(("size", "shape"), [(64, (7, 8)), (128, (8, 6)), (256, (12, 8))])
def test_sides_must_be_divisible(size, shape):
    with pytest.raises(ValueError, match="sides divisible by"):
        NCSNv2(nf=4, size=size)(torch.zeros(1, 3, *shape), torch.zeros(1))


def test_unknown_size_is_named():
    with pytest.raises(ValueError, match="size=32"):
        NCSNv2(size=32)


def test_28_pixels():
    net = NCSN(channels=1, nf=4, num_scales=2)
    assert net(torch.zeros(1, 1, 28, 28), torch.zeros(1)).shape == (1, 1, 28, 28)
