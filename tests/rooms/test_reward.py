"""Fine-tuning by reward, held against Gaussians whose chains, tilts, adjoints and gradients are known in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import scorefield as sf
from scorefield.randomness import FromFunction, FromGenerator, NoNoise, source
from scorefield.reward import (
    AdjointMatching,
    Chain,
    DirectBackpropagation,
    PolicyGradient,
    Rollout,
    ScoresAsActions,
    finetune,
    follow,
    lean_adjoint,
    log_density,
)
from scorefield.solve.integrate import Field

F64 = torch.float64
SHARED = Path(__file__).resolve().parents[3] / "shared" / "parity"
STOCHASTIC = [
    sf.EulerMaruyama(),
    sf.ReverseDiffusion(),
    sf.Ancestral(),
    sf.Ancestral("transition"),
    sf.DDIM(0.6),
    sf.DDIM(1.0),
    sf.solve.ExponentialSDE(0.7, order=1),
    sf.solve.AnalyticAncestral(measured={0.6: 0.3}),
]


def recording(name):
    path = SHARED / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"the recording {name} is not in ../shared/parity")
    return load_file(path)


def normal(mean=1.0, variance=0.25, sde=None):
    return sf.GaussianMixture(torch.tensor([[mean]], dtype=F64), variance, None, sde or sf.VP())


def line(model):
    return Field.of(model, {}, 1)


def affine(chain, model, k):
    """Slope, intercept and standard deviation of a step of a model of one dimension."""
    at = torch.tensor([[0.0], [1.0]], dtype=F64)
    mean, std = chain.kernel(Field.of(model, {}, 2), at, k)
    return (mean[1] - mean[0]).squeeze(), mean[0].squeeze(), std.squeeze()


# ---------------------------------------------------------------------------------------------------- exact tilts


def three():
    c, s = math.cos(0.6), math.sin(0.6)
    q = torch.tensor([[c, -s], [s, c]], dtype=F64)
    first, second = (torch.diag(torch.tensor(v, dtype=F64)) for v in ([0.3, 0.08], [0.15, 0.4]))
    covs = torch.stack([q @ first @ q.T, q.T @ second @ q, 0.2 * torch.eye(2, dtype=F64)])
    means = torch.tensor([[-1.5, 0.5], [1.0, -0.8], [0.2, 1.7]], dtype=F64)
    return sf.GaussianMixture(means, covs, [0.5, 0.3, 0.2], sf.VP())


def test_a_tilted_mixture_is_the_mixture_times_the_exponential():
    gm, b = three(), torch.tensor([1.2, -0.7], dtype=F64)
    tilted = gm.tilted(b, 0.5)
    weights = tilted._log_weights.exp()
    assert torch.allclose(weights, torch.tensor([0.000592, 0.995861, 0.003547], dtype=F64), atol=1e-6)
    means = torch.tensor([[-1.091872, 0.535861], [1.388186, -0.968801], [0.68, 1.42]], dtype=F64)
    assert torch.allclose(tilted.means, means, atol=1e-6)
    base = torch.tensor([0.5, 0.3, 0.2], dtype=F64) @ gm.means @ b
    assert (float(base), float(weights @ tilted.means @ b)) == pytest.approx((-0.737, 2.332654), abs=1e-6)
    x = 2 * torch.randn(50, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    log_z = gm.log_prob(x) + x @ b / 0.5 - tilted.log_prob(x)
    assert torch.allclose(log_z, torch.full_like(log_z, 2.904158), atol=1e-6)
    assert abs(2.332654 / 0.5 - float(log_z[0]) - 1.761149) < 2e-6  # KL to the base


@pytest.mark.parametrize(
    "covs", [0.3, torch.tensor([0.3, 0.7]), torch.arange(1, 13).reshape(2, 2, 3) / 10], ids=["one", "each", "diagonal"]
)
def test_a_tilt_keeps_the_form_of_the_covariances(covs):
    gm = sf.GaussianMixture(torch.arange(12.0).reshape(2, 2, 3) / 6, covs, [0.4, 0.6], sf.VP())
    b = torch.tensor([[0.2, -1.0, 0.4], [0.0, 0.3, -0.6]])
    tilted, x = gm.tilted(b, 2.0), torch.randn(20, 2, 3, generator=torch.Generator().manual_seed(0))
    assert tilted._basis is None
    assert tilted.dtype == gm.dtype
    log_z = gm.log_prob(x) + (x * b).flatten(1).sum(1).double() / 2 - tilted.log_prob(x)
    assert float(log_z.std()) < 1e-6
    for wrong in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="temperature"):
            gm.tilted(b, wrong)
    with pytest.raises(ValueError, match="b has shape"):
        gm.tilted(b[0])


def test_the_control_of_a_tilt_is_the_gradient_of_its_expected_exponential():
    """s* - s = grad log h, h = E[e^{b.x_0 / lambda} | x_t], by the posterior of each component, written out here."""
    gm, b, t = three(), torch.tensor([1.2, -0.7], dtype=F64), 0.3
    a, s2 = float(gm.sde.alpha(torch.tensor(t, dtype=F64))), float(gm.sde.sigma(torch.tensor(t, dtype=F64))) ** 2
    x = torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    covs = gm.covs if hasattr(gm, "covs") else None
    logs, values = [], []
    for k, weight in enumerate((0.5, 0.3, 0.2)):
        cov, mean = (three_covs()[k] if covs is None else covs[k]), gm.means[k]
        total = a**2 * cov + s2 * torch.eye(2, dtype=F64)
        gain, gap = a * cov @ torch.linalg.inv(total), x - a * mean
        logs.append(math.log(weight) + torch.distributions.MultivariateNormal(a * mean, total).log_prob(x))
        m, p = mean + gap @ gain.T, cov - a * gain @ cov
        values.append(m @ b / 0.5 + 0.5 * b @ p @ b / 0.25)
    posterior = torch.log_softmax(torch.stack(logs), 0)
    (slope,) = torch.autograd.grad(torch.logsumexp(posterior + torch.stack(values), 0).sum(), x)
    x = x.detach()
    assert torch.allclose(gm.tilted(b, 0.5).score(x, t) - gm.score(x, t), slope, atol=1e-8)


def three_covs():
    c, s = math.cos(0.6), math.sin(0.6)
    q = torch.tensor([[c, -s], [s, c]], dtype=F64)
    first, second = (torch.diag(torch.tensor(v, dtype=F64)) for v in ([0.3, 0.08], [0.15, 0.4]))
    return [q @ first @ q.T, q.T @ second @ q, 0.2 * torch.eye(2, dtype=F64)]


# ----------------------------------------------------------------------------------------------- steps as densities


@pytest.mark.parametrize("solver", STOCHASTIC, ids=lambda s: f"{type(s).__name__}{getattr(s, 'variance', '')}")
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_step_is_its_mean_and_its_std_times_the_noise(solver, dtype):
    gm, t, s = three(), torch.tensor(0.6, dtype=F64), torch.tensor(0.5, dtype=F64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    mean, std = solver.kernel(Field.of(gm, {}, 5), x, t, s)
    stepped, _ = solver.step(Field.of(gm, {}, 5), x, t, s, None, source(3, 5))
    assert torch.equal(stepped, mean + std * source(3, 5).like(x))
    assert mean.dtype == dtype
    assert bool((std > 0).all())


def test_other_steps_say_that_they_are_not_gaussian():
    gm, at = three(), torch.tensor(0.5, dtype=F64)
    for solver in (sf.Heun(), sf.UniPC(), sf.solve.ExponentialSDE(), sf.PC(), sf.solve.AnalyticAncestral()):
        with pytest.raises(ValueError, match=r"Gaussian steps|measured before"):
            solver.kernel(Field.of(gm, {}, 1), torch.zeros(1, 2, dtype=F64), at, 0.9 * at)


# ------------------------------------------------------------------------------------------- the path and its cost


@pytest.mark.parametrize(("variance", "temperature", "inside"), [(1.0, 1.0, 0.499978), (0.25, 0.5, 0.499995)])
def test_the_kl_of_paths_is_that_of_the_data(variance, temperature, inside):
    """Girsanov: E int |u*|^2 / 2 is KL(p* | p) less the KL at T; a midpoint of two step sizes takes the first order away."""
    base = normal(0.3, variance)
    tuned = base.tilted(torch.ones(1), temperature)
    found = []
    for steps in (100, 200):
        chain = Chain(sf.EulerMaruyama(), torch.linspace(1.0, 0.0, steps + 1, dtype=F64)[:-1])
        paths = follow(chain, line(tuned), line(base), torch.zeros(1, 1, dtype=F64), source(0, 1))
        found.append(float(paths.step_kl.sum()))
    assert abs(2 * found[1] - found[0] - inside) < 0.01 * inside


@pytest.mark.parametrize("variance", [1.0, 0.25])
@pytest.mark.parametrize(
    ("eta", "known"),
    [
        (0.2, {1.0: 0.331019, 0.25: 0.367105}),
        (0.5, {1.0: 0.918935, 0.25: 0.942678}),
        (1.0, {1.0: 0.999957, 0.25: 0.999989}),
    ],
)
def test_a_chain_with_little_noise_cannot_tilt(variance, eta, known):
    """Share of its own variance that noise eta g gives a chain, and so of the tilt: 1 - exp(-eta^2 int g^2 / c)."""
    sde, base, found = sf.VP(), normal(0.0, variance), []
    for steps in (100, 200):
        t = torch.linspace(0, 1, steps + 1, dtype=F64)[1:-1]
        angle = torch.cat([torch.ones(1, dtype=F64), t.flip(0) ** 2, torch.full((1,), 1e-5, dtype=F64)])
        chain, noise, kept = Chain(sf.DDIM(eta), angle), 0.0, 1.0
        for k in range(chain.length):
            slope, _, std = affine(chain, base, k)
            noise, kept = float(slope**2) * noise + float(std) ** 2, kept * float(slope)
        start = (
            float(sde.alpha(torch.ones((), dtype=F64))) ** 2 * variance
            + float(sde.sigma(torch.ones((), dtype=F64))) ** 2
        )
        found.append(noise / (noise + kept**2 * start))
    assert 2 * found[1] - found[0] == pytest.approx(known[variance], abs=4e-3)


def test_weights_of_the_exact_tilt_are_equal():
    """Where the tuned chain is the base tilted by its reward, e^(r / lambda) dP_base / dP_tuned is the same on every path."""
    base = normal()
    chain = Chain(sf.DDIM(1.0), torch.linspace(1.0, 1e-3, 31, dtype=F64))
    tuned = Shifted(base, chain, 1.5)
    paths = follow(chain, Field.of(tuned, {}, 500), Field.of(base, {}, 500), *start(500))
    log_weight = 1.5 * paths.states[-1][:, 0] + paths.log_ratio
    forgotten = float(log_weight.std())  # what the chain remembers of its start is not tilted
    slope = math.prod(float(affine(chain, base, k)[0]) for k in range(30))
    assert abs(forgotten - 1.5 * slope) < 0.2 * 1.5 * slope < 0.01


def test_weights_have_the_mean_one():
    """E over tuned paths of dP_base / dP_tuned = 1, where the control depends on the state (Girsanov)."""
    paths = rollout_of(CHAIN, Leaning(normal(), 1, -0.1), normal(), lambda x: x[:, 0], 4000).paths()
    ratio = torch.exp(paths.log_ratio)
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(4000) < 0.1


def start(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, dtype=F64, generator=g), FromGenerator(n, g)


class Shifted(sf.ScoreModel):
    """The base whose chain has the controls -s_k a_{k+1} of a reward b x."""

    def __init__(self, base, chain, b):
        super().__init__(torch.nn.Identity(), base.sde, "score", shape=(1,))
        self.base, self.chain = base, chain
        states = [torch.zeros(1, 1, dtype=F64)] * (chain.length + 1)
        self.adjoint = lean_adjoint(chain, line(base), states, torch.tensor([[-b]], dtype=F64))

    def view(self, name, x, t, cond):
        k = int(torch.argmin((self.chain.times - float(t)).abs()))
        slope = affine(self.chain, self.base, k)
        # The denoised estimate enters the mean with a weight that the step itself tells.
        unit, _ = self.chain.kernel(line(normal(1.0, 0.0)), torch.zeros(1, 1, dtype=F64), k)
        assert name == "denoise"
        return self.base.denoise(x, t) - slope[2] ** 2 * self.adjoint[k + 1] / unit


KNOWN_CHAINS = [(10, 0.11119, 0.5615), (20, 0.15342, 0.7543)]
"""Steps of DDIM(1) for data N(0, 1/4), variance of the chain, and what the adjoint before the step would make of the tilt."""


def test_the_adjoint_after_the_step_tilts_the_chain_exactly():
    """Shift of the mean = variance of the chain, less what it remembers, times b; and matching's loss there is 0."""
    base, b = normal(0.0), 1.0
    for steps, known, before in KNOWN_CHAINS:
        chain = Chain(sf.DDIM(1.0), torch.linspace(1.0, 1e-3, steps + 1, dtype=F64))
        tuned = Shifted(base, chain, b)
        if before:  # the adjoint before the step, as published, tilts by this share of it
            early = Shifted(base, chain, b)
            early.adjoint = [None, *early.adjoint[:-1]]
            shift = torch.zeros((), dtype=F64)
            for k in range(steps):
                slope = affine(chain, base, k)[0]
                shift = affine(chain, early, k)[1] + slope * shift
        mean, variance, kept = torch.zeros((), dtype=F64), 0.0, 1.0
        for k in range(steps):
            slope, _, std = affine(chain, base, k)
            mean = affine(chain, tuned, k)[1] + slope * mean
            variance, kept = float(slope**2 * variance + std**2), kept * float(slope)
        assert abs(float(mean) - variance * b) < 1e-12
        assert abs(variance + kept**2 - known) < 2e-3, (steps, variance)
        assert not before or float(shift / mean) == pytest.approx(before, abs=2e-3), steps
        rollout = rollout_of(chain, tuned, base, lambda x: b * x[:, 0], 50)
        each, _, _ = AdjointMatching().loss(rollout)
        assert float(each.abs().max()) < 1e-20


def rollout_of(chain, tuned, base, reward, n, temperature=1.0, seed=0):
    x, noise = start(n, seed)
    fields = (Field.of(m, {}, n) for m in (tuned, base))
    return Rollout(chain, *fields, reward, temperature, x, noise, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("t", "known"), [(0.1, 0.72205260), (0.4, 0.12954789), (0.8, 0.00996072)])
def test_the_lean_adjoint_of_a_linear_reward(t, known):
    """a(t) = -(b / lambda) alpha l0 / c; and -a of a quadratic reward has the mean s* - s under the target."""
    variance = 0.25
    base = normal(1.0, variance)
    alpha, sigma = float(base.sde.alpha(t)), float(base.sde.sigma(t))
    exact = alpha * variance / (alpha**2 * variance + sigma**2)
    assert abs(exact - known) < 1e-7
    factors = []
    for steps in (100, 200):
        chain = Chain(sf.DDIM(1.0), torch.linspace(t, 0.0, steps + 1, dtype=F64))
        chain = Chain(chain.solver, chain.times[:-1])
        states = [torch.zeros(1, 1, dtype=F64)] * (chain.length + 1)
        factors.append(float(lean_adjoint(chain, line(base), states, torch.ones(1, 1, dtype=F64))[0]))
    assert abs(2 * factors[1] - factors[0] - exact) < 0.01 * exact
    target = normal(4 / 3, 1 / 6)  # r = -(x - 2)^2: N(1, 1/4) e^r
    x = torch.tensor([[0.7]], dtype=F64)
    asked = exact * 2 * (2 - target.denoise(x, t))
    assert torch.allclose(asked, target.score(x, t) - base.score(x, t), atol=1e-12)


# ------------------------------------------------------------------------------------------------ policy gradients


class Leaning(sf.ScoreModel):
    """The base's score + shift + theta (1 + x), theta one for each sample, so that gradients come with their errors."""

    def __init__(self, base, n, theta, plain=False):
        super().__init__(torch.nn.Identity(), base.sde, "score", shape=(1,))
        self.base, self.plain = base, plain
        self.theta = torch.nn.Parameter(torch.full((n, 1), theta, dtype=F64))

    def view(self, name, x, t, cond):
        assert name == "score"
        along = torch.ones_like(x) if self.plain else 1 + x
        return self.base.score(x, t) + (self.theta if len(self.theta) == len(x) else self.theta[:1]) * along


CHAIN = Chain(sf.EulerMaruyama(), torch.linspace(1.0, 1e-3, 21, dtype=F64))


def exact_gradient(theta, weight, plain=False):
    """d/dtheta of E[-(x - 2)^2] - weight KL of the chain, by its moments; the value function of each step along with it."""
    base, tuned = normal(), Leaning(normal(), 1, theta, plain)
    mean, variance, kl, values = torch.zeros((), dtype=F64), torch.ones((), dtype=F64), torch.zeros((), dtype=F64), {}
    steps = []
    for k in range(CHAIN.length):
        slope, shift, std = affine(CHAIN, tuned, k)
        own = affine(CHAIN, base, k)
        lean, push = (slope - own[0]) / std, (shift - own[1]) / std
        kl = kl + 0.5 * ((lean * mean + push) ** 2 + lean**2 * variance)
        mean, variance = slope * mean + shift, slope**2 * variance + std**2
        steps.append([float(v.detach()) for v in (slope, shift, std, lean, push)])
    objective = -((mean - 2) ** 2 + variance) - weight * kl
    (gradient,) = torch.autograd.grad(objective, tuned.theta)
    a, b = -1.0, 4.0  # V = a x^2 + b x + constant
    values[float(CHAIN.times[-1])] = (a, b)
    for k in reversed(range(CHAIN.length)):
        slope, shift, _, lean, push = steps[k]
        a, b = a * slope**2 - 0.5 * weight * lean**2, (2 * a * shift + b) * slope - weight * lean * push
        values[float(CHAIN.times[k])] = (a, b)
    return float(gradient), float(kl.detach()), values


def value_function(values):
    def critic(x, t):
        a, b = values[float(t)]
        return (a * x**2 + b * x)[:, 0]

    return critic


THETA = 0.2
"""So far from the base that the KL to come of a step, which depends on where the step leads, is seen in the gradient."""
METHODS = {
    "ddpo": (PolicyGradient(kl=False), 0.0),
    "dpok": (PolicyGradient(), 1.0),
    "no baseline": (PolicyGradient(baseline=False), 1.0),
    "scores as actions": (None, 1.0),
    "back-propagation": (DirectBackpropagation(), 1.0),
}


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_unbiased(name):
    how, weight = METHODS[name]
    exact, _, values = exact_gradient(THETA, weight)
    how = how or ScoresAsActions(critic=value_function(values))
    n = 8000
    tuned = Leaning(normal(), n, THETA)
    each, _, _ = how.loss(rollout_of(CHAIN, tuned, normal(), lambda x: -((x[:, 0] - 2) ** 2), n))
    (found,) = torch.autograd.grad(-each.sum(), tuned.theta)
    stderr = float(found.std()) / math.sqrt(n)
    assert abs(float(found.mean()) - exact) < 4 * stderr, (float(found.mean()), exact, stderr)
    assert stderr < 0.5 * abs(exact)  # or the bar would say nothing


def test_some_of_the_steps_stand_for_all():
    rollout = rollout_of(CHAIN, normal(), normal(), lambda x: x[:, 0], 2)
    seen = torch.zeros(20)
    for _ in range(2000):
        steps, scale = rollout.chosen(5)
        seen[steps] += scale / 2000
    assert scale == 4
    assert float((seen - 1).abs().max()) < 5 * math.sqrt(3 / 2000)  # variance of 4 times a coin of 1/4 is 3
    assert rollout.chosen(None) == (list(range(20)), 1.0)


def test_known_gradients_of_a_chain():
    """At theta = 0, a shift of the score: dE[-(x - 2)^2] = 1.368658; the KL of theta = 0.1 is 0.052732 over paths."""
    assert abs(exact_gradient(0.0, 0.0, plain=True)[0] - 1.368658) < 1e-6
    assert abs(exact_gradient(0.1, 1.0, plain=True)[1] - 0.052732) < 1e-6
    tuned = Leaning(normal(), 4, 0.1, plain=True)
    paths = rollout_of(CHAIN, tuned, normal(), lambda x: x[:, 0], 4).paths()
    assert torch.allclose(paths.step_kl.sum(0), torch.full((4,), 0.052732, dtype=F64), atol=1e-6)
    mean, variance = 0.0, 1.0
    for k in range(CHAIN.length):
        slope, _, std = affine(CHAIN, normal(), k)
        push = float(affine(CHAIN, tuned, k)[1].detach()) - float(affine(CHAIN, normal(), k)[1])
        mean, variance = float(slope) * mean + push, float(slope**2) * variance + float(std) ** 2
    assert abs(0.5 * mean**2 / variance - 0.009024) < 1e-6  # of the samples: less than that of the paths


def test_a_batch_that_is_used_again_is_held_by_its_clip():
    """Where a step has become improbable, samples that did badly push no further, and those that did well still pull back."""
    chain, how = Chain(sf.EulerMaruyama(), torch.tensor([1.0, 0.5], dtype=F64)), PolicyGradient(inner=2, kl=False)
    tuned = Leaning(normal(), 64, 0.0, plain=True)
    rollout = rollout_of(chain, tuned, normal(), lambda x: x[:, 0], 64)
    first = how.loss(rollout)
    with torch.no_grad():
        tuned.theta += 2.0
    again = how.loss(rollout)
    assert again[1] is first[1]
    assert torch.equal(again[2], first[2])
    (slope,) = torch.autograd.grad(again[0].sum(), tuned.theta)
    assert torch.equal(slope[:, 0] == 0, first[2] < first[2].mean())
    assert how.loss(rollout)[1] is not first[1]


# ---------------------------------------------------------------------------------------------------- recordings


class Table(sf.GaussianSDE):
    """Noise levels of a list of products alpha^2, times being their places."""

    T = 999.0

    def __init__(self, products):
        self.products = products

    def alpha(self, t):
        return torch.sqrt(self.products[t.long()])

    def sigma(self, t):
        return torch.sqrt(1 - self.products[t.long()])


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_log_probabilities_are_those_of_ddpo(kind, eta):
    """Recorded as means over the event; ours are sums."""
    data = recording("26_ddpo_step")
    sde = Table(data["alphas_cumprod"])
    for i, at in enumerate(data["timestep"].tolist()):
        t, s = (torch.tensor(float(v), dtype=F64) for v in (at, max(at - 20, 0)))
        out, x = data["model_output"][i : i + 1].clone().requires_grad_(), data["sample"][i : i + 1]
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        told = alpha * out + sigma * x if kind == "v_prediction" else out
        model = sf.ScoreModel(lambda x, t, told=told: told, sde, "data" if kind == "sample" else "noise")
        mean, std = sf.DDIM(eta).kernel(Field.of(model, {}, 1), x, t, s)
        found = log_density(data["prev_sample"][i : i + 1], mean, std)
        (slope,) = torch.autograd.grad(found.sum(), out)
        known = data[f"{kind}_eta{eta}_log_prob"][i] * 144
        assert torch.allclose(found[0], known, rtol=1e-10)
        assert torch.allclose(slope[0], 144 * data[f"{kind}_eta{eta}_grad"][i], rtol=1e-8, atol=1e-9)


def test_chain_adjoint_and_loss_are_those_of_adjoint_matching():
    data = recording("26_adjoint_matching")
    products = torch.cat([data["alphas_cumprod"][data["timesteps"]], data["final_alpha_cumprod"]]).flip(0)
    sde, size = Table(products), 3

    def net(c):
        def predict(x, t):
            a = products[t.long()].reshape(-1, 1, 1, 1)
            bent = torch.tanh(x.flatten(1) @ data["W"].T).reshape(x.shape)
            return torch.sqrt(1 - a) / (a / 4 + 1 - a) * x + 0.1 * c * bent

        return Field.of(sf.ScoreModel(predict, sde, "noise", shape=(2, 3, 3)), {}, size)

    draws = iter(data["noise"])
    chain = Chain(sf.DDIM(1.0), torch.arange(10, -1, -1, dtype=F64))
    tuned, base = net(-1.0), net(1.0)
    paths = follow(chain, tuned, base, data["trajectory"][:, 0], FromFunction(size, lambda shape: next(draws)))
    assert torch.allclose(torch.stack(paths.states, 1), data["trajectory"], atol=1e-9)
    last = paths.states[-1]
    adjoint = torch.stack(lean_adjoint(chain, base, paths.states, -2 * (data["b"] - last / 2)), 1)
    assert torch.allclose(adjoint, data["adjoint"], rtol=1e-5, atol=1e-6)
    controls = torch.stack(paths.controls, 1)
    assert torch.allclose(controls, data["control_sqrt_dt"], atol=1e-7)
    std = torch.stack(paths.std).reshape(1, 10, 1, 1, 1)
    before = torch.square(controls + std * adjoint[:, :-1]).flatten(2).sum(2)  # theirs is the adjoint before the step
    assert torch.allclose(before, data["loss"], rtol=1e-5)


# ------------------------------------------------------------------------------------------------------ the door


class Bias(torch.nn.Module):
    """A network with a vector to learn beside a standard normal's noise."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))
        self.bias = torch.nn.Parameter(torch.zeros(2))

    def forward(self, x, t):
        return torch.einsum("bi,b->bi", x + x @ self.weight + self.bias, sf.VP().sigma(t).to(x.dtype))


def small():
    return sf.ScoreModel(Bias(), sf.VP(), "noise", shape=(2,))


OPTIONS = {"steps": 6, "batch_size": 16, "chain_steps": 5, "progress": False}


@pytest.mark.parametrize("how", [AdjointMatching(), PolicyGradient(), ScoresAsActions(), DirectBackpropagation(last=3)])
def test_the_reward_rises(how):
    tuned = finetune(small(), lambda x: x[:, 0] - x[:, 1], how, lr=0.05, **(OPTIONS | {"steps": 12, "batch_size": 32}))
    assert tuned.after.reward > tuned.before.reward + 4 * 0.01
    assert 0 < tuned.after.kl < 5
    assert 0 < tuned.after.ess <= 1
    assert tuned.before.kl == 0
    assert "nats" in repr(tuned)
    assert tuned.path is None


def test_a_run_goes_on_where_it_ended(tmp_path):
    def reward(x):
        return x[:, 0] - x[:, 1]

    straight = finetune(small(), reward, out=tmp_path / "a", **OPTIONS)
    finetune(small(), reward, out=tmp_path / "b", **(OPTIONS | {"steps": 3}))
    halved = finetune(small(), reward, out=tmp_path / "b", **OPTIONS)
    for a, b in zip(straight.model.parameters(), halved.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert (tmp_path / "b" / "reward.jsonl").read_text().count("ess") == 2
    with pytest.raises(sf.errors.CheckpointError, match="other data"):
        finetune(small(), reward, temperature=2.0, out=tmp_path / "b", **OPTIONS)


@pytest.mark.parametrize(
    ("reward", "options", "told"),
    [
        (lambda x: x, {}, r"the reward returned \(256, 2\); expected one number a sample, a tensor of shape \(256,\)"),
        (lambda x: x[:, 0].sqrt(), {}, "the reward is nan for"),
        (lambda x: 3.0, {}, "the reward returned float"),
        (lambda x: 0 * x[:, 0] + 2, {}, "the reward is 2 for each of 256 samples"),
        (lambda x: (x[:, 0] > 0).float(), {}, "the reward has no gradient"),
        (lambda x: (x[:, 0] > 0).float(), {"how": DirectBackpropagation()}, "the reward has no gradient"),
        (lambda x: x[:, 0], {"temperature": 0.0}, "temperature=0.0"),
        (lambda x: x[:, 0], {"solver": sf.Heun()}, "makes no Gaussian steps"),
        (lambda x: x[:, 0], {"solver": sf.DDIM()}, "has no noise in its step"),
        (lambda x: x[:, 0], {"chain_steps": 0}, "chain_steps"),
        (lambda x: x[:, 0], {"samples": 0}, "samples=0"),
        (lambda x: x[:, 0], {"how": "ddpo"}, "give a method"),
        (lambda x: x[:, 0], {"how": PolicyGradient(inner=2), "accumulate": 2}, "accumulate and inner"),
    ],
)
def test_bad_input_is_one_line(reward, options, told):
    with pytest.raises(ValueError, match=told) as caught:
        finetune(small(), reward, **(OPTIONS | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make", [lambda: PolicyGradient(clip=0), lambda: PolicyGradient(inner=0), lambda: AdjointMatching(0)]
)
def test_methods_refuse_what_means_nothing(make):
    with pytest.raises(ValueError, match=r"give|positive"):
        make()


def test_no_noise_is_drawn_by_the_flow():
    assert torch.isfinite(
        sf.DDIM().step(line(normal()), torch.ones(1, 1), *torch.tensor([0.5, 0.4]), None, NoNoise(1))[0]
    ).all()
