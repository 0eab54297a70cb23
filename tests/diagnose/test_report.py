"""Planted diseases are found and named, and nothing else is; a healthy model is not accused."""

from __future__ import annotations

import json
import math

import pytest
import torch

import scorefield as sf
from oracles import gaussian, mixture
from scorefield.diagnose import chapters, chapters_of_use, report
from scorefield.prior import Prior

SDE = sf.VP()
GM = mixture(SDE, 2)
STANDARD = sf.GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0, None, SDE)
CHAPTERS = (
    "start",
    "calibration",
    "precision",
    "curl",
    "gap",
    "memory",
    "samplers",
    "trajectory",
    "likelihood",
    "posterior",
)


class WrongStart(sf.VP):
    """Starts from twice the noise."""

    def prior(self, shape):
        return Prior(tuple(shape), 2.0)


class Short(sf.VP):
    """Ends at a fifth of the time."""

    T = 0.2


def loud_near_data(x, t):
    """1.2 times the score where there is little noise."""
    size = torch.where(SDE.log_snr(t) > 0, 1.2, 1.0).to(x).reshape(-1, *[1] * (x.ndim - 1))
    return size * GM.score(x, t)


def turning(x, t):
    """The score of N(0, I), and a rotation that adds 4 % to its square, under which N(0, I) stays what it is."""
    return -x + 0.2 * torch.stack([-x[:, 1], x[:, 0]], 1)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer likelihoods and posteriors, for speed."""
    monkeypatch.setattr(chapters, "FLOWN", 10)
    monkeypatch.setattr(chapters_of_use, "JUDGED", 4)
    monkeypatch.setattr(chapters_of_use, "TRUTHS", 40)


def acted(model, oracle, train=None, only=None):
    found = report(model, oracle.sample(1000, seed=1), oracle.sample(1000, seed=2) if train is None else train, only)
    return {name for name, chapter in found.chapters.items() if chapter.verdict == "act"}, found


@pytest.mark.parametrize("oracle", [GM, gaussian(SDE, 3, low=0.1, high=1.5)], ids=["mixture", "gaussian"])
def test_an_exact_model_is_not_accused(oracle):
    bad, found = acted(oracle, oracle)
    assert not bad
    assert tuple(found.chapters) == CHAPTERS
    assert [c.verdict for name, c in found.chapters.items() if name != "samplers"] == ["good"] * 9


ON_A_LINE = sf.GaussianMixture(
    torch.zeros(1, 2, dtype=torch.float64), torch.tensor([[[0.8, 0.4], [0.4, 0.2]]]).double(), None, SDE
)


@pytest.mark.parametrize(
    ("disease", "model", "oracle", "named"),
    [
        ("score too large near the data", sf.ScoreModel.from_score(loud_near_data, SDE, (2,)), GM, {"calibration"}),
        ("wrong variance of the prior", STANDARD.under(WrongStart()), STANDARD, {"start"}),
        ("too little diffusion", mixture(Short(), 2), mixture(Short(), 2), {"start"}),
        ("data without a density", ON_A_LINE, ON_A_LINE, {"likelihood"}),
        # What is plainly no score has ways that do not arrive, and one that is no gradient has no posterior by its Jacobian.
        (
            "a velocity read as noise",
            sf.ScoreModel(GM.velocity, SDE, "noise", shape=(2,)),
            GM,
            {"calibration", "trajectory", "posterior"},
        ),
        ("a curl", sf.ScoreModel.from_score(turning, SDE, (2,)), STANDARD, {"curl", "posterior"}),
    ],
    ids=lambda v: v.replace(" ", "-") if isinstance(v, str) else "",
)
def test_a_planted_disease_is_named(disease, model, oracle, named):
    bad, found = acted(model, oracle, only=[name for name in CHAPTERS if name not in ("gap", "samplers")])
    assert bad == named, disease
    assert all(found.chapters[name].advice for name in named)


def test_a_model_that_memorises_is_named():
    train = GM.sample(40, seed=3)
    bad, _ = acted(sf.Empirical(train, SDE), GM, train, only=("start", "curl", "memory", "trajectory"))
    assert bad == {"memory"}


def test_flow_and_sde_apart_are_named(tmp_path):
    model = sf.ScoreModel.from_score(lambda x, t: -1.2 * x, SDE, shape=(2,)).double()
    found = report(model, only=["gap"])
    assert found.chapters["gap"].verdict == "act"
    found.write(tmp_path / "page.html")
    assert "<td>floor</td>" in (tmp_path / "page.html").read_text()


def test_the_page_holds_every_chapter_and_the_values_are_json(tmp_path):
    found = report(GM, GM.sample(100, seed=4), only=["start", "memory", "curl"])
    assert set(found.left_out) == {"memory"}
    assert math.isfinite(json.loads(json.dumps(found.values()))["chapters"]["start"]["figures"]["kl"])
    found.write(tmp_path / "page.html", "A mixture")
    page = (tmp_path / "page.html").read_text()
    assert "Is T long enough?" in page
    assert "<svg" in page
    assert "it needs the training data" in page
    assert "href='#is-t-long-enough'" in page
    assert "id='is-t-long-enough'" in page
    assert "<h2>Is the score a gradient? <b class='good'>good</b></h2>" in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("data", "only", "message"),
    [
        (torch.zeros(50, 3), None, "items of shape"),
        (torch.zeros(5, 2), None, "calibration, precision, curl, likelihood and width need 16 or more, memory 16 of"),
        (None, ["colour"], "unknown chapter colour"),
        ("digits", None, "needs a run"),
    ],
)
def test_input_that_does_not_fit_is_refused(data, only, message):
    with pytest.raises(ValueError, match=message):
        report(GM, data, only=only)


PICTURES = sf.ScoreModel.from_score(lambda x, t: -x, SDE, shape=(1, 4, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.rand(20, 1, 4, 4), r"lies in \[.*\] and the model expects \[-1, 1\]; rescale it"),
        (torch.rand(20, 1, 4, 4) * 255, r"the model expects \[-1, 1\]"),
        (torch.full((20, 1, 4, 4), math.nan), "not finite"),
    ],
    ids=["0 to 1", "0 to 255", "nan"],
)
def test_pictures_in_another_range_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        report(PICTURES, data, only=["start"])
    assert report(PICTURES, torch.rand(20, 1, 4, 4) * 2 - 1, only=["start"]).chapters


def test_without_data_what_needs_none_is_answered():
    found = report(GM, only=["start", "calibration", "samplers"], n=4)
    assert tuple(found.chapters) == ("samplers",)
    assert set(found.left_out) == {"start", "calibration"}


def linear():
    net = torch.nn.Linear(2, 2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.eye(2))
        net.bias.zero_()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return SDE.sigma(t.double()).to(x)[:, None] * self.net(x)

    return sf.ScoreModel(Net(), SDE, "noise", shape=(2,))


def test_a_stopped_diagnosis_goes_on_with_what_it_kept(tmp_path, monkeypatch):
    model, data, file, asked = linear(), STANDARD.sample(50, seed=1), tmp_path / "kept.json", []

    def watched(name, stop=False):
        ask, needs = chapters.CHAPTERS[name]

        def asking(case):
            asked.append(name)
            if stop:
                raise KeyboardInterrupt
            return ask(case)

        return asking, needs

    only = ["start", "calibration", "curl"]
    with monkeypatch.context() as patch:
        patch.setitem(chapters.CHAPTERS, "curl", watched("curl", stop=True))
        with pytest.raises(KeyboardInterrupt):
            report(model, data, only=only, keep=file)
    for name in only:
        monkeypatch.setitem(chapters.CHAPTERS, name, watched(name))
    asked.clear()
    found = report(model, data, only=only, keep=file)
    assert asked == ["curl"]
    assert json.dumps(found.values()) == json.dumps(report(model, data, only=only).values())
    found.write(tmp_path / "page.html")
    for change in ({"overwrite": True}, {"seed": 1}, {}):
        if not change:
            with torch.no_grad():
                next(model.parameters()).mul_(1.5)
        asked.clear()
        report(model, data, only=only, keep=file, **change)
        assert asked == only
    file.write_text("{}")
    with pytest.raises(ValueError, match="holds no chapters of a diagnosis"):
        report(model, data, only=only, keep=file)
    assert file.read_text() == "{}"


def test_what_was_kept_of_another_model_is_not_taken_for_this_one(tmp_path):
    """Two mixtures of the same means, and two functions, have the same weights: what they say tells them apart."""
    means, file = torch.zeros(1, 2, dtype=torch.float64), tmp_path / "kept.json"
    data = STANDARD.sample(40, seed=0)
    models = [sf.GaussianMixture(means, v, None, SDE) for v in (1.0, 4.0)]
    models += [sf.ScoreModel(lambda x, t, k=k: k * x, SDE, shape=(2,)).double() for k in (0.5, 1.0)]
    for model in models:
        found = report(model, data, only=["calibration"], n=40, keep=file, progress=False).values()
        assert json.dumps(found) == json.dumps(report(model, data, only=["calibration"], n=40, progress=False).values())


@pytest.mark.parametrize("part", ["chapters", "of", "lines", "title"])
def test_a_damaged_file_of_chapters_is_one_line(tmp_path, part):
    file, data = tmp_path / "kept.json", STANDARD.sample(40, seed=0)
    report(STANDARD, data, only=["curl"], n=40, keep=file, progress=False)
    content = json.loads(file.read_text())
    (content if part in content else content["chapters"]["curl"]).pop(part)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="holds no chapters of a diagnosis"):
        report(STANDARD, data, only=["curl"], n=40, keep=file, progress=False)
