"""Guidance on exact models: what comes out is known in closed form or by integrating the exact guided flow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import scorefield as sf
from scorefield.guide import Autoguidance, ClassifierFree, ClassifierGuidance, Guided

torch.set_num_threads(1)
ROTATED = torch.tensor([[0.30, 0.12], [0.12, 0.15]], dtype=torch.float64)
MEANS = torch.tensor([[0.9, -0.4], [-0.7, 0.6], [0.1, 1.2]], dtype=torch.float64)
COVS = torch.stack([ROTATED, 0.2 * torch.eye(2, dtype=torch.float64), ROTATED.flip(0, 1)])
SDES = [sf.VP(), sf.SubVP(), sf.VE(sigma_max=20.0)]


class Labelled(Guided):
    """A network with classes, exactly: the mixture without a label, its component with one."""

    def __init__(self, sde: sf.GaussianSDE) -> None:
        super().__init__(sf.GaussianMixture(MEANS, COVS, None, sde))
        self.parts = [sf.GaussianMixture(m[None], c[None], None, sde) for m, c in zip(MEANS, COVS, strict=True)]

    def denoise(self, x: Tensor, t: object, label: Tensor | None = None) -> Tensor:
        if label is None:
            return self.base.denoise(x, t)
        every = torch.stack([part.denoise(x, t) for part in self.parts])
        return every[label, torch.arange(len(x))]


def exact_classifier(mixture: sf.GaussianMixture):
    return lambda x, t: mixture.posterior(x, t).log()


def points(n: int = 40) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("view", ["denoise", "noise", "score", "velocity"])
def test_the_exact_classifier_at_scale_one_gives_the_exact_component(sde, view):
    mixture = sf.GaussianMixture(MEANS, COVS, [0.5, 0.2, 0.3], sde)
    label = torch.arange(40) % 3
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), label)
    t = torch.linspace(0.02, 1.0, 40, dtype=torch.float64)
    for k in range(3):
        part = sf.GaussianMixture(MEANS[k : k + 1], COVS[k : k + 1], None, sde)
        mine = label == k
        expected = getattr(part, view)(points(), t)[mine]
        assert torch.allclose(getattr(guided, view)(points(), t)[mine], expected, rtol=1e-8, atol=1e-9)


def test_guided_samples_have_the_moments_of_their_component():
    """Song et al. 2021, eq. 14, exact: mean within 2 %, covariance within 5 %, through the default sampler."""
    mixture = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), 0)
    x = sf.sample(guided, 20_000, steps=40, seed=torch.Generator().manual_seed(0))
    assert (x.mean(0) - MEANS[0]).norm() < 0.02 * MEANS[0].norm()
    assert (x.T.cov() - COVS[0]).norm() < 0.05 * COVS[0].norm()


@pytest.mark.parametrize(
    ("solver", "steps"), [(sf.Dopri5(), None), (sf.PC(sf.Ancestral(), sf.Langevin(0.1)), 40), (sf.Heun(), 30)]
)
def test_classifier_scale_zero_is_bitwise_unconditional(solver, steps):
    mixture = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    label = torch.arange(6) % 3
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), label, scale=0.0)
    plain, zero = (sf.sample(m, 6, solver, steps=steps, seed=3) for m in (mixture, guided))
    assert torch.equal(plain, zero)


def test_labels_follow_their_samples_out_of_the_batch():
    mixture = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    clf, label = exact_classifier(mixture), torch.tensor([0, 1, 2, 2, 1])
    together = sf.sample(mixture | ClassifierGuidance(clf, label), 5, sf.Dopri5(), seed=[7, 8, 9, 10, 11])
    apart = [
        sf.sample(mixture | ClassifierGuidance(clf, int(k)), 1, sf.Dopri5(), seed=[7 + i]) for i, k in enumerate(label)
    ]
    assert torch.allclose(together, torch.cat(apart), rtol=1e-9, atol=1e-9)


def test_likelihood_of_a_guided_model_is_that_of_the_component():
    mixture = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), 1)
    part = sf.GaussianMixture(MEANS[1:2], COVS[1:2], None, sf.VP())
    x = part.sample(4, seed=0)
    found = sf.log_prob(guided, x, trace="exact", solver=sf.Dopri5(1e-8, 1e-8), prior=part)
    assert torch.allclose(found.nats, part.log_prob(x, 1e-5), atol=1e-5)


def test_guidance_beyond_one_integrates_the_sharpened_flow():
    """Dhariwal & Nichol 2021: modes at -2 and 2 of std 0.5, scale 3, give mean 2.51 and std 0.31."""
    mixture = sf.GaussianMixture(torch.tensor([[-2.0], [2.0]]).double(), 0.25, None, sf.VP())
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), 1, scale=3.0)
    # Quantiles of the prior in place of random draws.
    quantiles = torch.special.ndtri((torch.arange(200, dtype=torch.float64) + 0.5) / 200).unsqueeze(1)
    x = sf.sample(guided, 200, sf.Heun(), steps=150, x_init=quantiles)
    assert abs(float(x.mean()) - 2.51) < 0.01
    assert abs(float(x.std()) - 0.31) < 0.01


def test_guidance_survives_the_end_where_alpha_is_zero():
    class Cubic(sf.GaussianSDE):
        def alpha(self, t):
            return 1 - torch.as_tensor(t, dtype=torch.float64) ** 3

        def sigma(self, t):
            return torch.as_tensor(t, dtype=torch.float64)

    mixture = sf.GaussianMixture(MEANS, COVS, None, Cubic())
    guided = mixture | ClassifierGuidance(exact_classifier(mixture), 2)
    x = sf.sample(guided, 4000, sf.DDIM(), steps=200, seed=torch.Generator().manual_seed(0))
    assert (x.mean(0) - MEANS[2]).norm() < 0.05


@pytest.mark.parametrize("view", ["denoise", "noise", "score", "velocity"])
def test_classifier_free_scales(view):
    """0 is bitwise the model without its label, 1 bitwise the one with it, 2 lies as far again beyond."""
    model = Labelled(sf.VP())
    x, label = points(6), torch.arange(6) % 3
    none, full, beyond = (getattr(model | ClassifierFree(w), view)(x, 0.4, label=label) for w in (0.0, 1.0, 2.0))
    assert torch.equal(none, getattr(model, view)(x, 0.4))
    assert torch.equal(full, getattr(model, view)(x, 0.4, label=label))
    assert torch.allclose(beyond, 2 * full - none, atol=1e-12)


def test_classifier_free_equals_the_exact_classifier():
    """With exact predictions both kinds of guidance are the same field."""
    model = Labelled(sf.VP())
    x, label = points(6), torch.arange(6) % 3
    free = model | ClassifierFree(2.5)
    clf = model.net | ClassifierGuidance(exact_classifier(model.net), label, scale=2.5)
    assert torch.allclose(free.denoise(x, 0.3, label=label), clf.denoise(x, 0.3), atol=1e-9)


def test_outside_its_interval_guidance_is_the_conditional_model_bitwise():
    model = Labelled(sf.VP())
    guided = model | ClassifierFree(4.0, interval=(0.2, 0.6))
    x, label = points(6), torch.arange(6) % 3
    t = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.61, 0.9], dtype=torch.float64)
    out, plain = guided.denoise(x, t, label=label), model.denoise(x, t, label=label)
    same = (out == plain).all(1)
    assert same.tolist() == [True, False, False, False, True, True]


def test_null_label_of_ones_own():
    seen = []

    def net(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label.clone())
        return x

    model = sf.ScoreModel(net, sf.VP(), shape=(2,)) | ClassifierFree(2.0, null={"label": 10})
    model.noise(points(3), 0.5, label=torch.tensor([1, 2, 3]))
    assert [s.tolist() for s in seen] == [[1, 2, 3], [10, 10, 10]]


def test_autoguidance_extrapolates_from_the_weaker_model():
    good = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    weak = sf.GaussianMixture(MEANS, COVS + 0.1 * torch.eye(2), None, sf.VP())
    x = points()
    expected = weak.denoise(x, 0.3) + 1.7 * (good.denoise(x, 0.3) - weak.denoise(x, 0.3))
    assert torch.allclose((good | Autoguidance(weak, 1.7)).denoise(x, 0.3), expected, atol=1e-12)
    assert torch.equal((good | Autoguidance(weak, 1.0)).score(x, 0.3), good.score(x, 0.3))


def test_a_likelihood_of_ones_own_serves_as_classifier():
    """log p(c | x_t) of any kind: here a Gaussian observation of x_t itself, whose posterior is a product of Gaussians."""
    model = sf.GaussianMixture(torch.zeros(1, 2).double(), 1.0, None, sf.VP())  # N(0, 1) at all times
    guided = model | ClassifierGuidance(lambda x, t: -((x - 1) ** 2).sum(1) / 2)
    assert torch.allclose(guided.score(points(), 0.3), 1 - 2 * points(), atol=1e-10)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda m: ClassifierGuidance(exact_classifier(m), 0.5), "label has shape"),
        (lambda m: ClassifierFree(2.0, interval=(0.6, 0.2)), "interval="),
        (lambda m: (m | ClassifierGuidance(exact_classifier(m), 7)).score(points(2), 0.5), "classes run from 0 to 2"),
        (lambda m: (m | ClassifierGuidance(lambda x, t: x[0], 0)).score(points(2), 0.5), "clf returned shape"),
        (lambda m: sf.sample(m | ClassifierGuidance(exact_classifier(m), [0, 1]), 3), "conditions for 2 samples"),
    ],
)
def test_errors_name_the_argument(build, message):
    with pytest.raises(ValueError, match=message):
        build(sf.GaussianMixture(MEANS, COVS, None, sf.VP()))


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_a_model_that_overrides_denoise_alone_has_all_four_views(sde):
    model = Labelled(sde)
    x, t, label = points(6), torch.linspace(0.1, 1.0, 6, dtype=torch.float64), torch.full((6,), 2)
    for view in ("denoise", "noise", "score", "velocity"):
        expected = getattr(model.parts[2], view)(x, t)
        torch.testing.assert_close(getattr(model, view)(x, t, label=label), expected, rtol=1e-9, atol=1e-9)


def test_a_guided_model_that_overrides_nothing_says_so():
    with pytest.raises(TypeError, match=r"Guided: override view\(name, x, t, cond\), or denoise"):
        Guided(sf.GaussianMixture(MEANS, COVS, None, sf.VP())).score(points(2), 0.5)


def test_a_weaker_model_under_another_process_is_refused():
    good = sf.GaussianMixture(MEANS, COVS, None, sf.VP())
    with pytest.raises(ValueError, match=r"weak: its SDE is VE.*, the model's VP"):
        good | Autoguidance(sf.GaussianMixture(MEANS, COVS, None, sf.VE()))
    with pytest.raises(ValueError, match=r"weak: its event shape is \(3,\), the model's \(2,\)"):
        good | Autoguidance(sf.GaussianMixture(torch.zeros(1, 3), 1.0, None, sf.VP()))
    assert good | Autoguidance(sf.GaussianMixture(MEANS, COVS, None, sf.VP(beta_max=20.0))) is not good


def test_a_condition_that_was_not_given_is_named():
    model = Labelled(sf.VP()) | ClassifierFree(2.0)
    with pytest.raises(ValueError, match="the condition label= was not given, but no condition"):
        model.score(points(2), 0.5)
    with pytest.raises(ValueError, match=r"label= was not given, but word; .*null=\{name: value\}"):
        (sf.ScoreModel(lambda x, t, word: x, sf.VP()) | ClassifierFree(2.0)).score(points(2), 0.5, word=points(2))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale):
    for kind in (lambda s: ClassifierFree(s), lambda s: ClassifierGuidance(exact_classifier, 0, s)):
        with pytest.raises(ValueError, match="scale="):
            kind(scale)
