"""Against recorded outputs of the authors' own code: the same laws at every step, so that their draws give their chains."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import scorefield as sf
from jump_oracles import noise_to
from scorefield.coefficients import as_time
from scorefield.discrete.solve import add_jumps, reverse_rates
from scorefield.solve.integrate import Field

FOLDER = Path(__file__).parents[2].parent / "shared" / "parity"
pytestmark = pytest.mark.skipif(not (FOLDER / "35_sedd.safetensors").exists(), reason="the recordings are not here")


def load(name):
    from safetensors.torch import load_file

    return load_file(FOLDER / f"35_{name}.safetensors")


def race(p, u):
    """The authors' categorical draw, an exponential race in float32."""
    return (p.float() / (1e-10 - torch.log(u + 1e-10))).argmax(-1)


def toy_logits(x, w):
    one = torch.nn.functional.one_hot(x, len(w)).to(w)
    return one @ w + 0.5 * (one.mean(1, keepdim=True) @ w)


class Powers(sf.discrete.Schedule):
    """sigma = low^(1 - t) high^t, which does not vanish at t = 0; the last step goes to nothing at all."""

    def total(self, t):
        time = as_time(t)
        return torch.where(time == 0, 0.0, 1e-4 ** (1 - time) * 20.0**time)

    def rate(self, t):
        return self.total(t) * math.log(20.0 / 1e-4)


SEDD = {"geometric": Powers(), "loglinear": sf.discrete.LogLinear(1e-3)}


def sedd_model(d, graph, schedule):
    w = d[f"{graph}/net_W"]
    process = sf.discrete.Uniform(5, schedule) if graph == "uniform" else sf.discrete.Absorbing(5, schedule)

    def net(x, sigma):
        return toy_logits(x, w) - 0.2 * sigma[:, None, None]

    return sf.discrete.JumpModel(net, process, (6,), predict="ratio", clock="total")


@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_sedd_rates_and_transitions(graph):
    """Theirs stand column-wise in the files: the entry [x, y] of `transp` is from y to x."""
    d = load("sedd")
    process = sedd_model(d, graph, sf.discrete.Constant()).process
    torch.testing.assert_close(process.generator.T.contiguous(), d[f"{graph}/transp_rate"], rtol=1e-6, atol=1e-8)
    for total in (0.003, 0.2, 1.7):
        recorded = d[f"{graph}/transp_transition_{total}"]
        torch.testing.assert_close(process.transition(total).T.contiguous(), recorded, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("schedule", ["geometric", "loglinear"])
@pytest.mark.parametrize("graph", ["uniform", "absorb"])
def test_sedd_losses(graph, schedule):
    d = load("sedd")
    model, key = sedd_model(d, graph, SEDD[schedule]), f"{graph}/{schedule}"
    x0, t = d[f"{graph}/x0"], d[f"{key}/t"].double()
    chance = model.process.schedule.jumped(t)[:, None]
    moved = d[f"{key}/perturb/draw000_rand"] < chance
    fresh = torch.full_like(x0, 5) if graph == "absorb" else d[f"{key}/perturb/draw001_randint_like"]
    x = torch.where(moved, fresh, x0)
    # An unmoved token has a number above the threshold, a moved one the middle of its state's share below it.
    middle = 0.5 if graph == "absorb" else (x + 0.5) / 5
    noise = torch.special.ndtri(torch.where(moved, chance * middle, 0.5 * (1 + chance)))
    loss = sf.discrete.score_entropy(model, x0, t=t, noise=noise)
    torch.testing.assert_close(loss, d[f"{key}/loss"], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["geometric", "loglinear"])
@pytest.mark.parametrize("graph", ["uniform", "absorb"])
@pytest.mark.parametrize("solver", [sf.discrete.Euler(), sf.discrete.Tweedie()], ids=["euler", "analytic"])
def test_sedd_chains_are_identical(graph, schedule, solver):
    d = load("sedd")
    name = "euler" if isinstance(solver, sf.discrete.Euler) else "analytic"
    key = f"{graph}/{schedule}/{name}"
    draws = [d[k] for k in sorted(d) if k.startswith(f"{key}/draw")]
    x = torch.full((3, 6), 5) if graph == "absorb" else draws.pop(0)
    model = sedd_model(d, graph, SEDD[schedule])
    field, grid = Field(model), torch.linspace(1, 1e-3, 9).double()
    for i in range(8):
        x = race(solver.law(field, x, grid[i], grid[i + 1]), draws[i])
    last = sf.discrete.Tweedie().law(field, x, grid[-1], torch.zeros((), dtype=torch.float64))
    x = race(last[..., :5], draws[8])
    assert torch.equal(x, d[f"{key}/x"])


def mdlm_model(d, **options):
    process = sf.discrete.Absorbing(6, sf.discrete.LogLinear(1e-3))
    return sf.discrete.JumpModel(lambda x: toy_logits(x, d["net_W"]), process, (5,), clock=None, **options)


def test_mdlm_views_and_losses():
    d = load("mdlm")
    model, t = mdlm_model(d), d["t"].double()
    x0, x = d["x0"], d["xt"]
    recorded, own = d["subs_logprob"], model.log_posterior(x, t)
    possible = recorded > -1e5
    torch.testing.assert_close(own[possible], recorded[possible], rtol=1e-6, atol=1e-6)
    assert (own[~possible] == -torch.inf).all()
    torch.testing.assert_close(model.process.schedule.total(t).float(), d["sigma"], rtol=1e-6, atol=1e-6)
    loss = sf.discrete.masked_loss(model, x0, t=t, noise=noise_to(model.process, x0, x, t))
    torch.testing.assert_close(loss, d["loss_subs_per_token"].sum(1), rtol=2e-6, atol=1e-6)
    hidden = x == 6
    ratio = torch.log(model.ratio(x, t))[hidden]
    torch.testing.assert_close(ratio[:, :6], d["get_score"].log()[hidden][:, :6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ddpm", "analytic"])
def test_mdlm_chains_are_identical(name):
    d = load("mdlm")
    field, grid = Field(mdlm_model(d)), torch.linspace(1, 1e-5, 7).double()
    x = torch.full((4, 5), 6)
    for i in range(6):
        x = race(sf.discrete.Tweedie().law(field, x, grid[i], grid[i + 1]), d[f"{name}/draw{i:03d}_rand_like"])
        assert torch.equal(x, d[f"{name}/x_after_{i}"])
    if name == "ddpm":
        assert torch.equal(field.model.denoise(x, grid[-1]), d["final_argmax"])


def tauldr_process(name):
    if name == "uniform":
        return sf.discrete.RateMatrix(0.4 * (torch.ones(6, 6) - 6 * torch.eye(6)), sf.discrete.Constant(1.0, T=1.0))
    if name == "birthdeath":
        return sf.discrete.Ordinal(6, schedule=sf.discrete.Geometric(0.125, 8.0))
    i = torch.arange(6, dtype=torch.float64)
    rates = torch.zeros(6, 6, dtype=torch.float64)
    for a in range(6):
        for b in range(6):
            if (a < 3 and a < b < 6 - a) or (a > 3 and 5 - a < b < a):
                rates[a, b] = math.exp(-((abs(b - a) - 1) ** 2) / 9)
    place = torch.exp(-torch.square(i + 1 - 3) / 32)
    for a in range(6):
        for b in range(6):
            if rates[b, a] > 0:
                rates[a, b] = rates[b, a] * place[b] / place[a]
    return sf.discrete.RateMatrix(rates - torch.diag(rates.sum(1)), sf.discrete.Geometric(0.3, 9.0))


def tauldr_model(d, name, process=None):
    def net(x, t):
        one = torch.nn.functional.one_hot(x, 6).float()
        return 2 * one + toy_logits(x, d["net_W"]) - 0.3 * t[:, None, None]

    return sf.discrete.JumpModel(net, process or tauldr_process(name), (4,))


class Single(sf.discrete.Schedule):
    """Geometric(1/8, 8) in single precision, as the authors compute it."""

    def total(self, t):
        return (0.125 * 64.0 ** as_time(t).float() - 0.125).double()

    def rate(self, t):
        return (0.125 * math.log(64) * 64.0 ** as_time(t).float()).double()


class Rounded(sf.discrete.Ordinal):
    """Birth and death as the authors compute it: from eigenvectors in single precision, whose rounding of 1e-8 stands where far
    transitions of 1e-14 should; what is below 1e-8 is cut to 0, and 1e-9 is added to what they divide by."""

    def matrix(self, total):
        values, vectors = (torch.from_numpy(v).float() for v in np.linalg.eigh(self.generator.numpy()))
        k = vectors[None] @ torch.diag_embed(torch.exp(total.float().reshape(-1, 1) * values)) @ vectors.T[None]
        return torch.where(k < 1e-8, 0.0, k).double().reshape(*total.shape, self.S, self.S)

    def column(self, x, total, dtype):
        return super().column(x, total, dtype) + 1e-9


@pytest.mark.parametrize("name", ["uniform", "birthdeath", "gaussian"])
def test_tauldr_rates_transitions_and_loss(name):
    d = load("tauldr")
    model, t = tauldr_model(d, name), d[f"{name}/t"].double()
    torch.testing.assert_close(model.process.rates(t).float(), d[f"{name}/rate"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.process.transition(t).float(), d[f"{name}/transition"], rtol=1e-5, atol=2e-6)
    x0, x, t = d[f"{name}/x0"], d[f"{name}/loss_x_t"], d[f"{name}/loss_t"].double()
    after = x.clone()
    after[torch.arange(3), d[f"{name}/loss_dim"]] = d[f"{name}/loss_newval"]
    for one_pass in (False, True):
        noise = noise_to(model.process, x0, x, t)
        found = sf.discrete.continuous_elbo(model, x0, t=t, noise=noise, jumped=after, one_pass=one_pass)
        rates = model.process.into(x, torch.float32).scatter(-1, x.unsqueeze(-1), 0.0)
        row = model.process.row(x0, model.process.schedule.total(t), torch.float32)
        r = row / row.gather(-1, x.unsqueeze(-1))
        constant = (rates * (torch.xlogy(r, r) - r)).sum((1, 2)) * model.process.schedule.rate(t)
        recorded = d[f"{name}/loss_sig_{one_pass}"] + d[f"{name}/loss_reg_{one_pass}"]
        assert float((found - constant).mean()) == pytest.approx(float(recorded), rel=2e-4)


@pytest.mark.parametrize("chain", ["TauLeaping", "PCTauLeaping"])
@pytest.mark.parametrize("name", ["uniform", "birthdeath", "gaussian", "exact birthdeath"])
def test_tauldr_chains_are_identical(name, chain):
    """Means and chains; of birth and death by the authors' rounded transitions, and by ours as far as these agree."""
    exact, name = name.startswith("exact"), name.split()[-1]
    d, key = load("tauldr"), f"{name}/{chain}"
    process = Rounded(6, schedule=Single()) if name == "birthdeath" and not exact else None
    field, x = Field(tauldr_model(d, name, process)), d[f"{key}/x_init"]
    means, counts = list(d[f"{key}/poisson_mean"]), list(d[f"{key}/poisson"])
    corrector = sf.discrete.RateCorrector("both", scale=1.5, steps=2, below=0.4)
    grid = torch.linspace(1, 0.01 + (1 / 6 if chain == "PCTauLeaping" else 0), 6).double()
    if chain == "TauLeaping":
        grid = torch.cat([grid, grid.new_zeros(1)])

    def leap(mean, t):
        recorded = means.pop(0)
        if not exact:
            torch.testing.assert_close(mean, recorded, rtol=1e-4, atol=2e-5)
        elif t > 0.4:  # later on, the ratios of far states are those of rounding errors there
            torch.testing.assert_close(mean, recorded, rtol=1e-3, atol=2e-4)
        return add_jumps(counts.pop(0).double(), x)

    for t, s in zip(grid[:-1], grid[1:], strict=True):
        x = leap(reverse_rates(field, x, t) * float(t - s), t)
        if chain == "PCTauLeaping" and t <= 0.4:
            for _ in range(2):
                x = leap(corrector.rates(field, x, s) * float(t - s) * 1.5, s)
    assert not means
    assert torch.equal(field.model.denoise(x, 0.01), d[f"{key}/x"])


def sddm_model(d, kind):
    process = sf.discrete.RateMatrix(0.4 * (torch.ones(5, 5) - 5 * torch.eye(5)), sf.discrete.Constant(1.0, T=1.0))

    def net(x, t):
        one = torch.nn.functional.one_hot(x, 5).double()
        return 2 * one + toy_logits(x, d["net_W"]) - 0.2 * t.double()[:, None, None]

    return sf.discrete.JumpModel(net, process, (4,), predict="marginal" if kind == "direct" else "hollow")


@pytest.mark.parametrize("kind", ["direct", "reverse_prob", "reverse_logscale"])
def test_sddm_marginals_loss_and_steps(kind):
    d = load("sddm")
    model, x, x0, t = sddm_model(d, kind), d["xt"], d["x0"], d["t"]
    close = {"rtol": 1e-6, "atol": 1e-7}
    log_p = torch.log(model.marginal(x, t))
    torch.testing.assert_close(log_p, d[f"{kind}/logprob_all"], **close)
    loss = sf.discrete.ratio_matching(model, x0, t=t, noise=noise_to(model.process, x0, x, t))
    torch.testing.assert_close(loss, -d[f"{kind}/logprob_xt"].sum(1), **close)
    for b in range(3):
        field, one, h = Field(model), x[b : b + 1], 0.05
        law = sf.discrete.Euler().law(field, one, t[b], t[b] - h)
        euler = d[f"{kind}/lbjf_sample_step/prob"][b : b + 1]
        torch.testing.assert_close(law / law.sum(-1, keepdim=True), euler / euler.sum(-1, keepdim=True), **close)
        mean = reverse_rates(field, one, t[b]) * h
        torch.testing.assert_close(mean, d[f"{kind}/tau_leaping_step/poisson_mean"][b : b + 1], **close)
        if kind != "direct":  # these logits do not see their position, for which their formula is right
            law = sf.discrete.Tweedie().law(field, one, t[b], t[b] - h)
            torch.testing.assert_close(
                law / law.sum(-1, keepdim=True), d[f"{kind}/exact_sampling/prob"][b : b + 1], **close
            )
        rates = sf.discrete.RateCorrector("both").rates(field, one, t[b]) * h
        corrector = d[f"{kind}/lbjf_corrector_step/prob"][b : b + 1]
        moved = corrector.scatter(-1, one.unsqueeze(-1), 0.0)
        torch.testing.assert_close(rates, moved, **close)


class Of(sf.discrete.Schedule):
    """A schedule of a user's own: B(t) alone, from which the rest is derived."""

    def __init__(self, total):
        self._total = total

    def total(self, t):
        return self._total(as_time(t))


MDLM = {
    "loglinear": sf.discrete.LogLinear(1e-3),
    "cosine": Of(lambda t: -torch.log(1e-3 + (1 - 1e-3) * torch.cos(0.5 * math.pi * t))),
    "cosinesqr": Of(lambda t: -torch.log(1e-3 + (1 - 1e-3) * torch.cos(0.5 * math.pi * t) ** 2)),
    "geometric": Of(lambda t: 1e-3 ** (1 - t)),
}
SDDM = {
    "sqrt_cos": Of(lambda t: 1 - torch.sqrt(torch.cos(0.5 * math.pi * t))),
    "log_sqr": Of(lambda t: torch.log(1 + t**2)),
}


@pytest.mark.parametrize("kind", MDLM)
def test_mdlm_schedules(kind):
    """B(t) and its derivative, which is found by differentiation for all but the first."""
    d, schedule = load("mdlm"), MDLM[kind]
    t = d[f"noise/{kind}/t"].double()
    torch.testing.assert_close(schedule.total(t).float(), d[f"noise/{kind}/total"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(schedule.rate(t).float(), d[f"noise/{kind}/rate"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", SDDM)
def test_sddm_schedules(kind):
    d = load("sddm")
    process = sf.discrete.RateMatrix(0.4 * (torch.ones(5, 5) - 5 * torch.eye(5)), SDDM[kind])
    x, t = d["xt"], d["t"].double()
    torch.testing.assert_close(process.transition(t), d[f"{kind}/transition"].double(), rtol=1e-6, atol=1e-8)
    rates = process.schedule.rate(t)[:, None, None] * process.out(x, torch.float64)
    torch.testing.assert_close(rates, d[f"{kind}/rate"].double(), rtol=1e-6, atol=1e-8)
