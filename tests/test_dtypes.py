"""Integers, complex numbers and data in other units are refused or warned of at every door, in one line."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import gaussian
from scorefield.likelihood import elbo

GM = gaussian(sf.VP())
DOORS = {
    "kernel": lambda x: sf.VP().kernel(x, 0.5),
    "transition": lambda x: sf.VP().transition(x, 0.2, 0.5),
    "score": lambda x: GM.score(x, 0.5),
    "denoise": lambda x: sf.ScoreModel(lambda x, t: x, sf.VP()).denoise(x, 0.5),
    "mixture": lambda x: GM.log_prob(x),
    "log_prob": lambda x: sf.log_prob(GM, x),
    "elbo": lambda x: elbo(GM, x),
    "encode": lambda x: sf.encode(GM, x),
    "decode": lambda x: sf.decode(GM, x),
    "x_init": lambda x: sf.sample(GM, len(x), sf.DDIM(), steps=2, x_init=x),
    "prior": lambda x: sf.VP().prior(x.shape).log_prob(x),
    "dsm_loss": lambda x: sf.dsm_loss(GM, x),
    "classifier_loss": lambda x: sf.guide.classifier_loss(lambda x, t: x, sf.VP(), x, torch.zeros(2).long()),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integers_are_refused_at_every_door(door, dtype):
    with pytest.raises(ValueError, match="give data in the model's range, in floating point"):
        DOORS[door](torch.ones(2, 3).to(dtype))


@pytest.mark.parametrize("door", DOORS)
def test_complex_states_are_refused_at_every_door(door):
    with pytest.raises(ValueError, match="complex; give its parts as real entries"):
        DOORS[door](torch.ones(2, 3, dtype=torch.complex64))


def test_eight_bit_images_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"8-bit images in \[-1, 1\] x.float\(\) / 127.5 - 1"):
        sf.log_prob(GM, torch.ones(2, 3, dtype=torch.uint8))


def test_a_complex_prior_is_refused():
    with pytest.raises(ValueError, match="is complex"):
        sf.VP().prior((2, 3)).sample(seed=0, dtype=torch.complex64)


@pytest.mark.parametrize(
    "operator", [sf.Grayscale(), sf.Downsample(2), sf.Blur(torch.ones(3, 3) / 9)], ids=lambda a: type(a).__name__
)
def test_operators_refuse_integers(operator):
    with pytest.raises(ValueError, match="in floating point"):
        operator(torch.full((1, 3, 4, 4), 200, dtype=torch.uint8))


UNITS = {
    "log_prob": lambda x: sf.log_prob(GM, x, solver=sf.Heun(), steps=2),
    "elbo": lambda x: elbo(GM, x, 2),
    "encode": lambda x: sf.encode(GM, x, sf.Heun()),
}


@pytest.mark.parametrize("door", UNITS)
@pytest.mark.parametrize(
    "x", [torch.tensor([[0.0, 255.0, 128.0]]), torch.tensor([[0.5, -40.25, 3.0]])], ids=["8-bit", "far"]
)
def test_data_in_other_units_is_warned_of(door, x):
    with pytest.warns(RuntimeWarning, match=r"where the model expects data in \[-1, 1\]"):
        UNITS[door](x)


@pytest.mark.parametrize("door", UNITS)
def test_data_in_the_models_range_is_not(door, recwarn):
    UNITS[door](torch.tensor([[0.0, 1.0, -1.0], [5.5, -7.0, 1.0]]))
    assert not [w for w in recwarn if "expects data" in str(w.message)]


def test_nothing_is_drawn_as_nothing():
    assert sf.VP().prior((0, 2)).sample().shape == (0, 2)
    assert sf.likelihood.dequantize(torch.zeros(0, 2, dtype=torch.uint8)).shape == (0, 2)
    assert GM.sample(0).shape == (0, 3)


def test_times_lie_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        assert sf.times.sampling_grid(sf.VP(), 4, 1.0, 1e-3, "uniform").device.type == "cpu"
        assert sf.VP().alpha(0.5).device.type == "cpu"
        assert sf.VP().f(torch.tensor([0.5], device="cpu")).device.type == "cpu"


class Flow(sf.GaussianSDE):
    """A user's SDE in two methods."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t


def test_rates_at_one_time_for_all():
    t = torch.tensor(0.5, dtype=torch.float64).expand(4)
    assert Flow().f(t).tolist() == [-2.0] * 4
    model = sf.ScoreModel(lambda x, t: 0.1 * x, Flow(), "velocity", shape=(2,))
    x = torch.ones(4, 2)
    one, each = (sf.dsm_loss(model, x, t=u, seed=0) for u in (0.5, torch.full((4,), 0.5)))
    assert torch.equal(one, each)


@pytest.mark.parametrize("operator", [sf.Mask(torch.tensor([True, False, True])), sf.Grayscale((5.0, 5.0, 5.0))])
def test_measurements_in_other_units_are_warned_of(operator, recwarn):
    """15 times the mean of three channels: 12 is a measurement of data in [-1, 1], 120 is none."""
    model, factor = gaussian(sf.VP()), 1.0 if isinstance(operator, sf.Mask) else 15.0
    y = operator(torch.tensor([[0.3, -0.8, 0.5]]))
    model | sf.Posterior(operator, y, 0.1)
    assert not [w for w in recwarn if "model's data lie" in str(w.message)]
    with pytest.warns(RuntimeWarning, match=rf"measurements of the model's data lie in \[-{factor:g}, {factor:g}\]"):
        model | sf.Posterior(operator, 100 * factor * torch.ones_like(y), 0.1)
