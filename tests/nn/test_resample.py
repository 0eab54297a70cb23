"""FIR resampling against direct sums, and its fused forms against their plain counterparts."""

import pytest
import torch
from torch.nn import functional as F

from scorefield.nn.resample import ConvDown, ConvUp, FIRDown, FIRUp, fir_kernel

TAPS = (1.0, 3.0, 3.0, 1.0)
LOPSIDED = (1.0, 2.0, 4.0, 3.0)
ODD = (1.0, 2.0, 5.0)


def direct_down(x, taps):
    """Pad by (n - 1) // 2 before and n // 2 - 1 after (StyleGAN2), a true convolution, every second entry."""
    total, k, n = sum(taps), len(taps), len(x)
    first = k - 1 - (k - 1) // 2
    return [
        sum(w * x[j] for m, w in enumerate(taps) if 0 <= (j := 2 * i + first - m) < n) / total for i in range(n // 2)
    ]


def direct_up(x, taps):
    """A zero after every entry, pad by (n - 1) // 2 + 1 before, the same filter times 2."""
    total, k = sum(taps), len(taps)
    z = [v for x_i in x for v in (x_i, 0.0)]
    first = k - 1 - (k - 1) // 2 - 1
    return [
        2 * sum(w * z[j] for m, w in enumerate(taps) if 0 <= (j := i + first - m) < len(z)) / total
        for i in range(len(z))
    ]


@pytest.mark.parametrize("taps", [TAPS, LOPSIDED, ODD, (1, 2, 1), (1,), (2, 3), (1, 2, 3, 4, 6)], ids=str)
def test_one_dimension_against_the_sum(taps):
    x = torch.randn(10)
    row = x.reshape(1, 1, -1)
    torch.testing.assert_close(FIRDown(1, taps)(row).flatten(), torch.tensor(direct_down(x.tolist(), taps)))
    torch.testing.assert_close(FIRUp(1, taps)(row).flatten(), torch.tensor(direct_up(x.tolist(), taps)))


def test_rows_of_taps_are_a_filter_of_images():
    line = torch.tensor(ODD)
    rows = torch.outer(line, line).tolist()
    x = torch.randn(1, 2, 6, 8)
    for layer in (FIRDown, FIRUp):
        torch.testing.assert_close(layer(2, rows)(x), layer(2, ODD)(x))


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


@pytest.mark.parametrize("taps", [LOPSIDED, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fused_up_is_filter_then_convolution_inside(dims, taps):
    """Both are linear filters on the zero-stuffed grid, so they commute away from the border."""
    layer = ConvUp(dims, 2, 3, taps).double()
    x = torch.randn(1, 2, *[8] * dims, dtype=torch.float64)
    plain = layer.conv(FIRUp(dims, taps).double()(x))
    inside = (slice(None), slice(None), *[slice(2, -2)] * dims)
    assert layer(x).shape == plain.shape
    torch.testing.assert_close(layer(x)[inside], plain[inside], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("taps", [LOPSIDED, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_fused_down_is_convolution_then_filter_inside(dims, taps):
    layer = ConvDown(dims, 2, 3, taps).double()
    x = torch.randn(1, 2, *[12] * dims, dtype=torch.float64)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[dims]
    plain = FIRDown(dims, taps).double()(conv(x, layer.conv.weight, layer.conv.bias, padding=1))
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


@pytest.mark.parametrize(
    "taps", [(), (1, -1), "1331", (float("nan"), 1), [[1, 2], [3]], [[1, 2, 1], [2, 4, 2]]], ids=str
)
def test_bad_taps_are_refused(taps):
    with pytest.raises(ValueError, match=r"^fir=.*: expected taps with a non-zero sum"):
        fir_kernel(taps, 2)
