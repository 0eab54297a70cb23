"""Operators against their definition: the adjoint, a written-out matrix, or torch's own functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield import inverse
from scorefield.inverse import measurement

torch.set_num_threads(1)


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bits(*shape: int) -> Tensor:
    return gaussian(*shape, seed=5) > 0


CASES = [
    ("mask", inverse.Mask(bits(3, 8, 6)), (3, 8, 6)),
    ("mask per sample", inverse.Mask(bits(2, 7)), (7,)),
    ("gray", inverse.Grayscale(), (3, 8, 6)),
    ("gray of a volume", inverse.Grayscale((0.2, 0.7)), (2, 4, 4, 2)),
    ("downsample a vector", inverse.Downsample(4), (12,)),
    ("downsample a signal", inverse.Downsample(3, inverse.bicubic(3)), (2, 12)),
    ("downsample an image", inverse.Downsample(2, [1, 3, 3, 1]), (3, 8, 6)),
    ("downsample a volume", inverse.Downsample(2, [1, 3, 3, 1], boundary="circular"), (1, 4, 6, 4)),
    ("downsample rows and columns", inverse.Downsample(2, dims=2, boundary="zeros"), (8, 6)),
    ("blur a signal", inverse.Blur(gaussian(5)), (1, 16)),
    ("blur an image", inverse.Blur(gaussian(5, 3), boundary="zeros"), (3, 8, 6)),
    ("blur with an even kernel", inverse.Blur(gaussian(4, 2), boundary="circular"), (3, 8, 6)),
    ("blur a volume", inverse.Blur(gaussian(3, 3, 3)), (1, 4, 6, 5)),
    ("fourier signal", inverse.Fourier(bits(9)), (9,)),
    ("fourier image", inverse.Fourier(bits(8, 6)), (2, 8, 6)),
    ("fourier volume", inverse.Fourier(bits(4, 3, 2)), (1, 4, 3, 2)),
    ("projection", inverse.random_projection(5, (2, 3, 4)), (2, 3, 4)),
    ("composed", inverse.Downsample(2) @ inverse.Grayscale() @ inverse.Blur(gaussian(3, 3)), (3, 8, 6)),
]
EVERY = pytest.mark.parametrize(("operator", "shape"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])


@EVERY
def test_adjoint(operator, shape):
    """<A x, y> = <x, A^T y>."""
    x = gaussian(2, *shape)
    y = torch.randn_like(operator(x))
    left, right = measurement.dot(operator(x), y), measurement.dot(x, operator.adjoint(y))
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)
    assert operator.adjoint(y).shape == x.shape


@EVERY
def test_differentiation_finds_the_same_adjoint(operator, shape):
    x = gaussian(2, *shape)
    bare = measurement.linearize(lambda v: operator(v), x)
    y = torch.randn_like(operator(x))
    assert torch.allclose(bare.adjoint(y), operator.adjoint(y), atol=1e-12)
    assert torch.allclose(bare.forward(2 * x), operator(2 * x), atol=1e-12)


@EVERY
def test_float32_stays_float32(operator, shape):
    x = gaussian(2, *shape, dtype=torch.float32)
    assert operator(x).dtype in (torch.float32, torch.complex64)
    assert operator.adjoint(operator(x)).dtype == torch.float32


@EVERY
def test_pseudo_inverse_is_a_right_inverse_on_the_range(operator, shape):
    x = gaussian(2, *shape)
    y = operator(x)
    back = measurement.pseudo_inverse(operator, y, x, iterations=2000)
    assert torch.allclose(operator(back), y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_downsample_is_the_mean_over_blocks(k):
    x = gaussian(2, 3, 4 * k, 2 * k)
    assert torch.allclose(inverse.Downsample(k)(x), F.avg_pool2d(x, k))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_bicubic_downsampling_is_that_of_torch_away_from_the_edges(k):
    x = gaussian(1, 1, 16 * k, 16 * k)
    ours = inverse.Downsample(k, inverse.bicubic(k))(x)
    theirs = F.interpolate(x, scale_factor=1 / k, mode="bicubic", antialias=True)
    inner = slice(3, -3)
    assert torch.allclose(ours[..., inner, inner], theirs[..., inner, inner], atol=2e-2)
    smooth = torch.linspace(0, 1, 16 * k, dtype=torch.float64).expand(1, 1, 16 * k, -1)
    expected = F.avg_pool2d(smooth, k)[..., inner, inner]  # a ramp is kept by every symmetric filter
    assert torch.allclose(inverse.Downsample(k, inverse.bicubic(k))(smooth)[..., inner, inner], expected, atol=1e-12)


def test_blur_is_a_convolution():
    """Circular blur is a product of spectra, with the kernel's centre at side // 2."""
    x, kernel = gaussian(1, 1, 8, 7), gaussian(3, 4)
    padded = torch.zeros(8, 7, dtype=torch.float64)
    padded[:3, :4] = kernel
    spectrum = torch.fft.fft2(padded.roll((-1, -2), (0, 1)))
    expected = torch.fft.ifft2(torch.fft.fft2(x) * spectrum).real
    assert torch.allclose(inverse.Blur(kernel, boundary="circular")(x), expected)


def test_blur_of_a_constant_is_constant_at_reflecting_edges():
    kernel = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = inverse.Blur(kernel / kernel.sum())(torch.ones(1, 1, 6, 6, dtype=torch.float64))
    assert torch.allclose(y, torch.ones_like(y))


def test_color_transform_is_orthonormal_and_keeps_the_gray_channel():
    """Song et al. 2021, App. I.3; the paper's three digits are orthonormal only to 1e-3."""
    m = inverse.color_matrix()
    assert torch.allclose(m.T @ m, torch.eye(3, dtype=torch.float64), atol=1e-15)
    paper = torch.tensor([[0.577, -0.816, 0.0], [0.577, 0.408, 0.707], [0.577, 0.408, -0.707]], dtype=torch.float64)
    assert torch.allclose(m, paper, atol=1e-3)
    x = gaussian(2, 3, 4, 4)
    gray = inverse.Grayscale((3**-0.5,) * 3)(x)
    coupled = torch.einsum("bchw,cd->bdhw", x, m)
    assert torch.allclose(gray, coupled[:, :1], atol=1e-14)
    assert torch.allclose(torch.einsum("bdhw,cd->bchw", coupled, m), x, atol=1e-14)


def test_random_projection_has_orthonormal_rows():
    matrix = inverse.random_projection(5, (3, 4), seed=2).matrix
    assert torch.allclose(matrix @ matrix.T, torch.eye(5, dtype=torch.float64), atol=1e-13)


def test_matrix_of_writes_out_an_operator():
    operator, shape = inverse.Downsample(2) @ inverse.Grayscale(), (3, 4, 4)
    x = gaussian(2, *shape)
    assert torch.allclose(x.flatten(1) @ inverse.matrix_of(operator, shape).T, operator(x).flatten(1))


def test_linearisation_of_a_nonlinear_measurement():
    """Against a finite difference along a direction, and against the transposed map."""
    x, v = gaussian(2, 1, 6, 5), gaussian(2, 1, 6, 5, seed=1)
    for measure in (inverse.PhaseRetrieval(), inverse.Clip(1.5, -2, 2)):
        near = inverse.linearize(measure, x)
        slope = (measure(x + 1e-6 * v) - measure(x - 1e-6 * v)) / 2e-6
        assert torch.allclose(near.forward(v), slope, atol=1e-6)
        u = torch.randn_like(near.value)
        assert torch.allclose(measurement.dot(near.forward(v), u), measurement.dot(v, near.adjoint(u)))


def test_phase_retrieval_sees_neither_sign_nor_shift():
    x = F.pad(gaussian(1, 1, 4, 4), (0, 4, 0, 4))
    measure = inverse.PhaseRetrieval(oversample=1)
    assert torch.allclose(measure(x), measure(-x.roll((2, 3), (2, 3))))


def test_an_operator_in_deepinvs_style_is_called_without_its_noise():
    class Physics:
        def __call__(self, x: Tensor) -> Tensor:
            return self.A(x) + torch.randn_like(x)

        def A(self, x: Tensor) -> Tensor:
            return 2 * x

        def A_adjoint(self, y: Tensor) -> Tensor:
            return 2 * y

    x = gaussian(2, 3)
    assert torch.equal(inverse.linearize(Physics(), x).value, 2 * x)


def test_conjugate_gradients_solve_each_sample_on_its_own():
    q = gaussian(3, 6, 6)
    spd = q @ q.mT + torch.diag_embed(torch.rand(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    b = gaussian(3, 6, seed=2)
    b[1] = 0

    def solve(rows: list[int]) -> Tensor:
        return measurement.conjugate_gradients(lambda u: (spd[rows] @ u.unsqueeze(2)).squeeze(2), b[rows], 100, 1e-10)

    expected = torch.linalg.solve(spd, b.unsqueeze(2)).squeeze(2)
    assert torch.allclose(solve([0, 1, 2]), expected, atol=1e-7)
    assert torch.equal(solve([0, 1, 2])[2], solve([2])[0])


def test_conjugate_gradients_stop_where_the_matrix_is_not_positive():
    b = torch.ones(2, 3, dtype=torch.float64)
    sign = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    x = measurement.conjugate_gradients(lambda u: sign * u, b, 10, 1e-10)
    assert torch.equal(x, torch.tensor([[1.0], [0.0]]) * b)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: inverse.Mask(torch.tensor([0.5])), "mask: values must be 0"),
        (lambda: inverse.Downsample(0), "k=0"),
        (lambda: inverse.Downsample(2, [[1.0, 1.0]]), "kernel: give taps"),
        (lambda: inverse.Downsample(2, boundary="wrap"), "boundary='wrap' is unknown"),
        (lambda: inverse.Downsample(3)(torch.zeros(1, 1, 8, 8)), "sides that 3 divides, not 8"),
        (lambda: inverse.Grayscale()(torch.zeros(1, 4, 2, 2)), "3 weights but the input has 4"),
        (lambda: inverse.Blur(torch.zeros(())), "kernel has shape"),
        (lambda: inverse.Dense(torch.zeros(2, 5), (2, 3)), "give \\(M, 6\\)"),
        (lambda: inverse.random_projection(9, (2, 3)), "m=9"),
        (lambda: inverse.Clip(low=1.0, high=0.0), "low must be below high"),
        (lambda: inverse.matrix_of(inverse.Mask(torch.ones(1)), (5000,)), "only up to 4096"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build()
