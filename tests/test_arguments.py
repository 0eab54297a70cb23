"""Whatever a function of the core is given, it works, or one line says what would be right."""

from __future__ import annotations

import pytest
import torch

import scorefield as sf
from oracles import Cubic, gaussian, name

VP3 = gaussian(sf.VP())
UNSHAPED = sf.ScoreModel.from_score(lambda x, t: -x, sf.VP())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VP3.score(torch.zeros(2, 3), torch.zeros(3)), "t has shape .3,. but x has batch size 2"),
        (lambda: VP3.denoise(torch.zeros(1, 3), torch.zeros(3)), "batch size 1; give a float or"),
        (lambda: VP3.log_prob(torch.zeros(2, 3), torch.zeros(2, 1)), r"t has shape \(2, 1\)"),
        (lambda: VP3.score(torch.zeros(2, 4), 0.5), "event shape .4,.; this mixture has .3,."),
        (lambda: sf.VP().kernel(torch.zeros(2, 3), torch.zeros(3)), "batch size 2"),
        (lambda: sf.dsm_loss(VP3, torch.zeros(4, 3), t=torch.zeros(3)), "batch size 4"),
        (
            lambda: sf.dsm_loss(VP3, torch.zeros(4, 3), noise=torch.zeros(4, 2)),
            "noise has shape .4, 2.; expected .4, 3.",
        ),
        (lambda: sf.dsm_loss(VP3, torch.zeros(4, 3, dtype=torch.long)), "floating point"),
        (lambda: sf.sample(UNSHAPED, 2, shape=()), "give at least one dimension"),
        (lambda: sf.log_prob(VP3, torch.zeros(3)), "give at least one sample"),
        (lambda: sf.log_prob(VP3, torch.zeros(0, 3)), "give at least one sample"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), solver=sf.EulerMaruyama()), "uses the velocity alone"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), solver=sf.DPMSolver()), "uses the velocity alone"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), probes=0), "probes=0"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), "skilling"), "trace='skilling' is unknown"),
        (lambda: sf.log_prob(VP3, torch.zeros(1, 3), batch_size=0), "batch_size=0"),
        (lambda: sf.log_prob(UNSHAPED, torch.zeros(1, 3), prior="exact"), "knows its own p_T"),
        (lambda: sf.DDIM(eta=2.0), "eta=2.0"),
        (lambda: sf.Langevin(snr=0.0), "snr=0.0"),
        (lambda: sf.solve.AnnealedLangevin(steps=-1), "steps=-1"),
        (lambda: sf.Langevin(norm="mean"), "choose expected, batch or sample"),
        (lambda: sf.Ancestral(variance="fixed"), "choose posterior or transition"),
        (lambda: sf.Mask(torch.tensor([0.5, 1.0])), "values must be 0"),
        (lambda: sf.ScoreModel(UNSHAPED.net, sf.VP(), clock="log"), "clock='log' is unknown"),
    ],
)
def test_the_fault_and_the_remedy_are_in_one_line(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1,), (2, 3), (1, 2, 3, 2)], ids=str)
@pytest.mark.parametrize("solver", [sf.PC(), sf.Dopri5(), sf.DPMSolver()], ids=name)
def test_any_event_shape(shape, solver):
    x = sf.sample(UNSHAPED, 2, solver, shape=shape, steps=None if isinstance(solver, sf.Dopri5) else 3, seed=0)
    assert x.shape == (2, *shape)
    assert sf.log_prob(UNSHAPED, x, seed=0, solver=sf.solve.RK4(), steps=2).nats.shape == (2,)


@pytest.mark.parametrize("sde", [sf.VP(), Cubic()], ids=name)
def test_inference_mode_changes_nothing(sde):
    gm = gaussian(sde)
    x = gm.sample(2, 0.1, seed=0)
    usual = sf.log_prob(gm, x, "exact", t_min=0.1).nats
    path = sf.sample(gm, 2, sf.Dopri5(), seed=0)
    with torch.inference_mode():
        assert torch.equal(sf.log_prob(gm, gm.sample(2, 0.1, seed=0), "exact", t_min=0.1).nats, usual)
        assert sf.log_prob(gm, gm.sample(2, 0.1, seed=0), seed=0).nats.isfinite().all()
        assert torch.equal(sf.sample(gm, 2, sf.Dopri5(), seed=0), path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("solver", [sf.PC(), sf.DPMSolver(), sf.Dopri5(1e-2, 1e-2)], ids=name)
def test_half_precision_states_stay_what_they_are_and_land_near(solver, dtype):
    gm = gaussian(sf.VP())
    x = sf.VP().prior((300, 3)).sample(seed=0)
    steps = None if isinstance(solver, sf.Dopri5) else 30
    low, full = (sf.sample(gm, 300, solver, steps=steps, x_init=x.to(kind), seed=0) for kind in (dtype, torch.float32))
    assert low.dtype == dtype
    # 2^-8 is the rounding of bfloat16; it accumulates over some tens of steps
    assert (low.float() - full).abs().mean() < 0.05
