"""FIR resampling against direct sums, and its fused forms against their plain counterparts."""

import pytest
import torch
from torch.nn import functional as F

from scorefield.nn.resample import ConvDown, ConvUp, FIRDown, FIRUp, fir_kernel

TAPS = (1.0, 3.0, 3.0, 1.0)
LOPSIDED = (1.0, 2.0, 4.0, 3.0)


def direct_down(x, taps):
    """y[i] = sum_k taps[k] x[2 i + 2 - k] / sum(taps), zeros outside: padding 1 and a true convolution."""
    total, n = sum(taps), len(x)
    return [sum(w * x[j] for k, w in enumerate(taps) if 0 <= (j := 2 * i + 2 - k) < n) / total for i in range(n // 2)]


def direct_up(x, taps):
    """The same filter, times 2, on x with a zero after every entry."""
    total = sum(taps)
    z = [v for x_i in x for v in (x_i, 0.0)]
    return [
        2 * sum(w * z[j] for k, w in enumerate(taps) if 0 <= (j := i + 1 - k) < len(z)) / total for i in range(len(z))
    ]


@pytest.mark.parametrize("taps", [TAPS, LOPSIDED], ids=["symmetric", "lopsided"])
def test_one_dimension_against_the_sum(taps):
    x = torch.randn(10)
    row = x.reshape(1, 1, -1)
    torch.testing.assert_close(FIRDown(1, taps)(row).flatten(), torch.tensor(direct_down(x.tolist(), taps)))
    torch.testing.assert_close(FIRUp(1, taps)(row).flatten(), torch.tensor(direct_up(x.tolist(), taps)))


@pytest.mark.parametrize("layer", [FIRDown, FIRUp])
@pytest.mark.parametrize("dims", [2, 3])
def test_dimensions_separate(layer, dims):
    lines = [torch.randn(n) for n in (6, 8, 4)[:dims]]
    grid, expected = torch.ones(()), torch.ones(())
    for line in lines:
        grid = grid.unsqueeze(-1) * line
        expected = expected.unsqueeze(-1) * layer(1, LOPSIDED)(line.reshape(1, 1, -1)).flatten()
    x = torch.stack([grid, 2 * grid]).unsqueeze(0)
    torch.testing.assert_close(layer(dims, LOPSIDED)(x), torch.stack([expected, 2 * expected]).unsqueeze(0))


@pytest.mark.parametrize("layer", [FIRDown, FIRUp])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_constants_stay_inside(layer, dims):
    y = layer(dims)(torch.ones(1, 2, *[12] * dims))
    inside = y[(slice(None), slice(None), *[slice(2, -2)] * dims)]
    torch.testing.assert_close(inside, torch.ones_like(inside))


def test_down_is_the_adjoint_of_up():
    x, y = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 12, 16)
    up, down = FIRUp(2, TAPS), FIRDown(2, TAPS)
    torch.testing.assert_close((up(x) * y).sum(), 4 * (x * down(y)).sum())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fused_up_is_filter_then_convolution_inside(dims):
    """Both are linear filters on the zero-stuffed grid, so they commute away from the border."""
    layer = ConvUp(dims, 2, 3, LOPSIDED).double()
    x = torch.randn(1, 2, *[8] * dims, dtype=torch.float64)
    plain = layer.conv(FIRUp(dims, LOPSIDED).double()(x))
    inside = (slice(None), slice(None), *[slice(2, -2)] * dims)
    assert layer(x).shape == plain.shape
    torch.testing.assert_close(layer(x)[inside], plain[inside], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fused_down_is_convolution_then_filter_inside(dims):
    layer = ConvDown(dims, 2, 3, LOPSIDED).double()
    x = torch.randn(1, 2, *[12] * dims, dtype=torch.float64)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    plain = FIRDown(dims, LOPSIDED).double()(conv(x, layer.conv.weight, layer.conv.bias, padding=1))
    inside = (slice(None), slice(None), *[slice(2, -2)] * dims)
    assert layer(x).shape == plain.shape
    torch.testing.assert_close(layer(x)[inside], plain[inside], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["FirUpsample2D", "FirDownsample2D"])
def test_fused_forms_against_diffusers(name):
    resample = pytest.importorskip("diffusers.models.resnet")
    theirs = getattr(resample, name)(3, 5, use_conv=True)
    ours = (ConvUp if "Up" in name else ConvDown)(2, 3, 5, TAPS)
    ours.conv.load_state_dict(theirs.Conv2d_0.state_dict())
    x = torch.randn(2, 3, 8, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, -1)])
def test_bad_taps_are_refused(taps):
    with pytest.raises(ValueError, match=r"^fir: expected an even number of taps"):
        fir_kernel(taps, 2)
