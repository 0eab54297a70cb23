"""Training, stopping, and going on."""

import json
import os
import signal
import warnings

import pytest
import torch

import scorefield as sf
from scorefield import nn
from scorefield.data import array
from scorefield.errors import CheckpointError, DivergedError, InputError
from scorefield.training import OptimConfig, read_run
from scorefield.training.checkpoint import list_checkpoints
from scorefield.training.interrupt import only_process
from scorefield.training.log import read_log


def files(folder, step):
    path = folder / f"step-{step:06d}"
    return {p.name: p.read_bytes() for p in path.glob("*.safetensors")}


def small_unet():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.UNet(1, 8, (1, 2), 1, (1,), dropout=0.2, num_classes=3)
        return sf.ScoreModel(net, sf.VP(), "noise", shape=(1, 8, 8))


def small_images():
    values = torch.randint(0, 256, (37, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return array(values, labels=torch.arange(37) % 3)


IMAGE_OPTIONS = {"flip": True, "dequantize": True, "channels_last": True, "batch_size": 5}


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_broken_off_and_continued_equals_unbroken_bitwise(run_training, tmp_path, optimizer):
    # 37 items and batches of 5: the break at step 17 is in the middle of an epoch. Dropout, flips, dequantisation,
    # withheld labels and memory format all take part.
    options = IMAGE_OPTIONS | {"data": small_images(), "steps": 24, "optim": OptimConfig(name=optimizer)}
    run_training("whole", model=small_unet(), **options)

    def interrupted(model, x0, *, t, noise, **cond):
        interrupted.calls += 1
        if interrupted.calls == 17:
            os.kill(os.getpid(), signal.SIGTERM)
        return sf.dsm_loss(model, x0, t=t, noise=noise, **cond)

    interrupted.calls = 0
    first = run_training("parts", model=small_unet(), loss=interrupted, **options)
    assert (first.step, first.stopped, first.finished) == (17, "SIGTERM", False)
    second = run_training("parts", model=small_unet(), **options)
    assert second.finished
    assert files(tmp_path / "parts", 24) == files(tmp_path / "whole", 24)


def test_resume_needs_the_checkpoint(run_training, tmp_path):
    # The same comparison must fail when the continued run starts from other weights: it is not trivially true.
    run_training("whole", steps=20)
    run_training("other", steps=20, seed=1)
    assert files(tmp_path / "other", 20) != files(tmp_path / "whole", 20)


def test_training_learns_the_score_of_a_gaussian(run_training, tmp_path):
    # Data N(0.5, 0.09): score -(x - a m) / (a^2 0.09 + s^2); the trained one must be far closer than that of no data.
    run = run_training(steps=400, batch_size=128, lr=1e-2, warmup=20, data=0.3 * torch.randn(4000, 2) + 0.5, ema=0.98)
    t, sde = 0.3, sf.VP()
    a, s = float(sde.alpha(t)), float(sde.sigma(t))
    x = torch.randn(500, 2) * (a**2 * 0.09 + s**2) ** 0.5 + a * 0.5
    exact = -(x - a * 0.5) / (a**2 * 0.09 + s**2)
    with torch.no_grad():
        error = float((run.model.score(x, t) - exact).square().mean() / exact.square().mean())
    assert error < 0.05


def test_same_command_again_does_nothing_when_finished(run_training, tmp_path):
    run_training()
    before = files(tmp_path / "run", 30)
    again = run_training()
    assert again.finished
    assert files(tmp_path / "run", 30) == before


def test_more_steps_extend_a_run_as_if_planned(run_training, tmp_path):
    run_training("grown", steps=10)
    run_training("grown", steps=20)
    run_training("planned", steps=20)
    assert files(tmp_path / "grown", 20) == files(tmp_path / "planned", 20)


def test_a_schedule_cannot_be_extended(run_training):
    run_training(steps=10, schedule="cosine")
    with pytest.raises(CheckpointError, match="cosine schedule that ends at steps=10"):
        run_training(steps=20, schedule="cosine")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 1e-3}, r"was trained with optim\.lr=0\.0002, not 0\.001"),
        ({"seed": 4}, "seed=0, not 4"),
        ({"data": torch.zeros(100, 2)}, "trained on other data"),
        ({"steps": 3}, "has 10 steps already, more than steps=3"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(run_training, change, words):
    run_training(steps=10)
    with pytest.raises(InputError, match=words):
        run_training(**({"steps": 10} | change))


def test_another_network_in_the_same_folder_is_refused(run_training, make_model):
    run_training(steps=10)
    with pytest.raises(CheckpointError, match="another net"):
        run_training(steps=10, model=make_model(dropout=0.5))


class Deaf(torch.nn.Module):
    """A network that does not take what it is called with."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight * x


def test_a_first_try_that_failed_does_not_stand_in_the_way(run_training, make_model, tmp_path):
    with pytest.raises(ValueError, match=r"called as Deaf\(x, t\)"):
        run_training(model=sf.ScoreModel(Deaf(), sf.VP(), "noise", shape=(2,)))
    assert run_training().step == 30
    assert sf.load(tmp_path / "run").state_dict().keys() == make_model().state_dict().keys()
    with pytest.raises(CheckpointError, match="another net"):  # but one that began does
        run_training(model=make_model(dropout=0.5))


def test_load_gives_the_averaged_weights(run_training, tmp_path):
    run = run_training()
    model = sf.load(tmp_path / "run")
    assert not model.training
    assert isinstance(model.sde, sf.VP)
    for (name, a), b in zip(model.state_dict().items(), run.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert sf.sample(model, 3, seed=0).shape == (3, 2)


def test_load_with_a_network_of_the_users_own(run_training, tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x, t):
            return self.layer(x)

    run_training(model=sf.ScoreModel(Own(), sf.VE(), "noise"))
    with pytest.raises(InputError, match="load it with net="):
        sf.load(tmp_path / "run")
    assert isinstance(sf.load(tmp_path / "run", net=Own()).net, Own)


def test_load_falls_back_when_the_newest_checkpoint_is_cut_to_half(run_training, tmp_path):
    run_training()
    file = tmp_path / "run" / "step-000030" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.warns(UserWarning, match="step-000030 is damaged .* continuing from step-000020"):
        sf.load(tmp_path / "run")


def test_resume_from_the_fallback_is_still_bitwise(run_training, tmp_path):
    run_training("whole")
    run_training("hurt")
    (tmp_path / "hurt" / "step-000030" / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="continuing from step-000020"):
        run_training("hurt")
    assert files(tmp_path / "hurt", 30) == files(tmp_path / "whole", 30)


def test_ctrl_c_saves_and_raises(run_training, tmp_path):
    def loss(model, x0, **rest):
        if len(list_checkpoints(tmp_path / "run")) == 2:
            signal.raise_signal(signal.SIGINT)
        return sf.dsm_loss(model, x0, **rest)

    with pytest.raises(KeyboardInterrupt):
        run_training(loss=loss)
    assert [p.name for p in list_checkpoints(tmp_path / "run")][-1] == "step-000011"


def test_nan_stops_with_step_and_noise_level_and_keeps_the_checkpoint(run_training, tmp_path):
    def loss(model, x0, *, t, noise):
        each = sf.dsm_loss(model, x0, t=t, noise=noise)
        loss.calls += 1
        return torch.where(t == t.min(), torch.nan, each) if loss.calls == 13 else each

    loss.calls = 0
    with pytest.raises(
        DivergedError, match=r"stopped at step 12: the loss is nan, .* sigma=0\.\d+ .*step 10 is intact"
    ):
        run_training(loss=loss)
    assert [p.name for p in list_checkpoints(tmp_path / "run")][-1] == "step-000010"


def test_gradient_that_is_not_finite_stops_too(run_training):
    def loss(model, x0, *, t, noise):
        each = sf.dsm_loss(model, x0, t=t, noise=noise)
        return each + torch.sqrt(0.0 * each)  # a finite value whose derivative is infinite times zero

    with pytest.raises(DivergedError, match="the gradient is not finite"):
        run_training(loss=loss)


def test_log_has_one_line_an_interval_also_after_resuming(run_training, tmp_path):
    run_training(steps=20)
    with open(tmp_path / "run" / "log.jsonl", "a") as file:
        file.write('{"step": 29, "loss": 1.0}\n{"step": 3')  # what a killed process may leave
    run_training(steps=30)
    lines = read_log(tmp_path / "run")
    assert [line["step"] for line in lines] == [10, 20, 30]
    assert set(lines[0]) >= {"loss", "grad_norm", "lr", "steps_per_second", "seconds"}


def test_callers_random_state_is_left_alone(run_training):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run_training(steps=10)
    assert torch.equal(torch.rand(3), expected)


def test_precisions_follow_each_other_in_one_process(run_training):
    for precision in ("fp32", "bf16", "fp32"):
        assert run_training(precision, steps=10, precision=precision).finished


def test_sum_is_half_the_dimension_times_mean(run_training, tmp_path):
    # (1/2) sum over D entries against their mean: a factor D/2, which is 1 for D = 2.
    mean = run_training("mean", steps=10, data=torch.zeros(8, 2))
    total = run_training("sum", steps=10, data=torch.zeros(8, 2), reduce="sum")
    assert total.loss == pytest.approx(mean.loss, rel=1e-6)


def test_a_run_in_use_is_refused(run_training, tmp_path):
    with only_process(tmp_path / "run"), pytest.raises(InputError, match="being trained by another process"):
        run_training()


def test_data_of_another_shape_is_refused(run_training):
    with pytest.raises(InputError, match=r"items of shape \(3,\) and the model expects \(2,\)"):
        run_training(data=torch.zeros(5, 3))


def test_folder_that_is_not_a_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no run\.json"):
        sf.load(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        sf.load(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 1, "model": 3}', "null"])
def test_damaged_description_is_named(run_training, tmp_path, text):
    run_training(steps=10)
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        sf.load(tmp_path / "run")


def test_run_json_says_how_to_read_the_model(run_training, tmp_path):
    data = array(torch.zeros(10, 2, dtype=torch.uint8), levels=17)
    run_training(data=data, steps=10)
    info = read_run(tmp_path / "run")
    assert (info.levels, info.range, info.shape) == (17, (-1.0, 1.0), (2,))
    json.loads((tmp_path / "run" / "run.json").read_text())


def test_training_warns_of_nothing(run_training):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_training(steps=10).finished


def test_data_in_other_units_is_told(run_training, cloud):
    with pytest.warns(RuntimeWarning, match=r"runs from .* where the model learns from data in \[-1, 1\]"):
        run_training(data=500 + 100 * cloud, steps=1)


def test_noise_that_is_made_for_large_data_is_no_mistake(run_training, make_model, cloud):
    model = make_model()
    model.sde = sf.VE(0.1, 2000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        run_training(model=model, data=500 + 100 * cloud, steps=1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_trained_model_knows_whether_its_data_has_levels(whole, run_training, cloud, tmp_path):
    data = torch.randint(0, 17, (100, 2), generator=torch.Generator().manual_seed(0)) if whole else cloud
    data = sf.data.array(data, levels=17) if whole else data
    told = (17, (-1.0, 1.0)) if whole else (0, None)
    for model in (run_training(data=data, steps=1).model, sf.load(tmp_path / "run")):
        assert (model.data_levels, model.data_range) == told
        lp = sf.log_prob(model, cloud[:2], trace="exact", seed=0, solver=sf.Dopri5(1e-2, 1e-2))
        assert (lp.levels, lp.range) == told
