"""A model as a torch distribution: shapes, densities and draws against closed forms."""

import math

import pytest
import torch
from torch import distributions as td

import scorefield as sf

T_MIN = 1e-5


def conditional():
    """N(shift, I) given `shift` (B, 2), exactly, under VP: the kernel of a unit Gaussian keeps its variance."""

    def score(x, t, shift):
        return sf.VP().alpha(t).to(x).reshape(-1, 1) * shift - x

    return sf.ScoreModel.from_score(score, sf.VP(), shape=(2,))


def law(shift):
    """Of the flow that starts from N(0, I): it moves by (alpha(t_min) - alpha(T)) shift, and keeps its variance."""
    moved = (sf.VP().alpha(T_MIN) - sf.VP().alpha(1.0)) * shift
    return td.Independent(td.Normal(moved, 1.0), 1)


def test_log_density_is_that_of_the_mixture(mixture):
    d = sf.as_distribution(mixture, prior="exact")
    x = mixture.sample(6, seed=0).reshape(2, 3, 4)
    assert torch.allclose(d.log_prob(x), mixture.log_prob(x.flatten(0, 1), T_MIN).reshape(2, 3), atol=1e-3)
    assert (d.batch_shape, d.event_shape) == (torch.Size(), torch.Size([4]))


def test_draws_follow_the_density_and_torchs_seed(mixture):
    d = sf.as_distribution(mixture, prior="exact")
    torch.manual_seed(1)
    x = d.sample((500,))
    torch.manual_seed(1)
    assert torch.equal(d.sample((500,)), x)
    assert d.sample().shape == (4,)
    assert d.sample((0, 3)).shape == (0, 3, 4)
    # The mean log-density over draws is the negative entropy, as it is over the mixture's own draws.
    drawn, own = mixture.log_prob(x), mixture.log_prob(mixture.sample(500, seed=0))
    error = torch.sqrt((drawn.var() + own.var()) / 500)
    assert float((drawn.mean() - own.mean()).abs() / error) < 4


def test_conditions_make_the_batch():
    shift = torch.tensor([[1.0, -2.0], [0.0, 0.5], [3.0, 0.0]], dtype=torch.float64)
    d = sf.as_distribution(conditional(), batch_shape=(3,), shift=shift)
    assert (d.batch_shape, d.event_shape) == (torch.Size([3]), torch.Size([2]))
    value = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(d.log_prob(value), law(shift).log_prob(value), atol=1e-3)
    torch.manual_seed(0)
    x = d.sample((400,))
    assert x.shape == (400, 3, 2)
    assert float((x.mean(0) - law(shift).mean).abs().max()) < 4.5 / math.sqrt(400)


def test_expanding_repeats_conditions():
    shift = torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=torch.float64)
    d = sf.as_distribution(conditional(), batch_shape=(2,), shift=shift)
    wide = d.expand((3, 2))
    value = torch.zeros(3, 2, 2, dtype=torch.float64)
    assert torch.allclose(wide.log_prob(value), d.log_prob(value[0]).expand(3, 2))
    assert wide.sample((4,)).shape == (4, 3, 2, 2)
    free = sf.as_distribution(conditional(), shift=shift[:1]).expand((2,))
    assert free.log_prob(value[0]).shape == (2,)


def test_a_condition_for_all_holds_for_all():
    shift = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    d = sf.as_distribution(conditional(), shift=shift)
    value = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(d.log_prob(value), law(shift).log_prob(value), atol=1e-3)


def test_other_distributions_are_built_on_it(gaussian):
    """2 x + 1 has the density p((y - 1) / 2) / 2^4; an independent batch sums."""
    d = sf.as_distribution(gaussian, prior="exact")
    moved = td.TransformedDistribution(d, [td.AffineTransform(1.0, 2.0, event_dim=1)])
    x = gaussian.sample(3, seed=0)
    assert torch.allclose(moved.log_prob(2 * x + 1), gaussian.log_prob(x, T_MIN) - 4 * math.log(2), atol=1e-3)
    both = td.Independent(d.expand((3,)), 1)
    assert torch.allclose(both.log_prob(x), gaussian.log_prob(x, T_MIN).sum(), atol=1e-3)


def test_the_gradient_of_the_density_is_the_score(gaussian):
    d = sf.as_distribution(gaussian, prior="exact", t_min=1e-2)
    x = gaussian.sample(2, seed=0).requires_grad_()
    (slope,) = torch.autograd.grad(d.log_prob(x).sum(), x)
    assert torch.allclose(slope, gaussian.score(x.detach(), 1e-2), atol=1e-3)


def test_torchs_own_checks_hold(gaussian):
    d = sf.as_distribution(gaussian, validate_args=True)
    assert d.support.event_dim == 1
    assert bool(d.support.check(gaussian.sample(2, seed=0)).all())
    with pytest.raises(ValueError, match="event_shape"):
        d.log_prob(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="value holds NaN or infinity in 3 of 3 samples"):
        d.log_prob(torch.full((3, 4), math.nan))
    with pytest.raises(NotImplementedError, match="rsample"):
        d.rsample()
    assert repr(d) == "ModelDistribution(batch_shape=(), event_shape=(4,))"


def test_what_cannot_be_is_said():
    free = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP())
    with pytest.raises(ValueError, match="event shape"):
        sf.as_distribution(free)
    with pytest.raises(ValueError, match="batch_shape"):
        sf.as_distribution(conditional(), batch_shape=(3,), shift=torch.zeros(2, 2))
