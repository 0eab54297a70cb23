"""What people see of a run, and that looking changes nothing."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import scorefield as sf
from scorefield import nn
from scorefield.data import array
from scorefield.errors import InputError
from scorefield.report import Report
from scorefield.training import write_report
from scorefield.training.checkpoint import best_checkpoint, read_state
from scorefield.training.log import read_log
from scorefield.training.loss import level_edges


def pictures(n=20):
    values = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    return array(values, labels=torch.arange(n) % 3)


def picture_model(**options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return sf.ScoreModel(nn.UNet(1, 8, (1,), 1, (), dropout=0.1, **options), sf.VP(), "noise", shape=(1, 8, 8))


def weights(run):
    return {p.name: p.read_bytes() for p in (run / "step-000020").glob("*.safetensors")}


WATCHED = {"sample_every": 7, "sample_count": 4, "held_out": pictures(9), "log_every": 3}
BARE = {"trackers": (), "report": False, "log_every": 20}


def train_pictures(run_training, name, **options):
    settings = {"data": pictures(), "model": picture_model(num_classes=3), "steps": 20, "batch_size": 4, "ema": 0.5}
    return run_training(name, **(settings | options))


def test_watching_changes_no_bit(run_training, tmp_path):
    train_pictures(run_training, "watched", callbacks=[lambda moment: moment.averaged().eval()], **WATCHED)
    train_pictures(run_training, "bare", **BARE)
    assert weights(tmp_path / "watched") == weights(tmp_path / "bare")


def test_stopped_and_watched_equals_unwatched(run_training, tmp_path):
    train_pictures(run_training, "parts", callbacks=[lambda moment: moment.step == 13], **WATCHED)
    train_pictures(run_training, "parts", **WATCHED)
    train_pictures(run_training, "bare", **BARE)
    assert weights(tmp_path / "parts") == weights(tmp_path / "bare")


def test_grids_come_on_schedule_and_from_the_same_seeds(run_training, tmp_path):
    train_pictures(run_training, "run", **WATCHED)
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert [p.name for p in grids] == ["step-000007.png", "step-000014.png", "step-000020.png"]
    label = torch.arange(4) % 3
    x = sf.sample(sf.load(tmp_path / "run"), 4, seed=0, label=label)
    shown = np.asarray(Image.open(grids[-1]))
    pixel = ((x[0, 0].clamp(-1, 1) + 1) * 127.5).round()  # each pixel is 8 x 8 of the grid, 2 from its border
    np.testing.assert_allclose(shown[2:66:8, 2:66:8], pixel, atol=1)


def test_a_stop_is_not_kept_waiting(run_training, tmp_path):
    def stop(moment):
        return moment.step == 14

    train_pictures(run_training, "run", callbacks=[stop], **WATCHED)
    state = read_state(tmp_path / "run" / "step-000014")
    assert "held_out_loss" not in state
    assert [p.name for p in (tmp_path / "run" / "samples").iterdir()] == ["step-000007.png"]


def test_samples_that_are_no_pictures_are_arrays(run_training, tmp_path):
    run_training(sample_every=10, sample_count=5, steps=10)
    assert np.load(tmp_path / "run" / "samples" / "step-000010.npy").shape == (5, 2)


def test_loss_by_level_is_the_mean_over_the_items_of_that_level(run_training, tmp_path):
    def loss(model, x0, *, t, noise):
        # Its value is the log-SNR of the item, so that the mean of a level lies within the level.
        return 2 * model.sde.log_snr(t).float() + 0.0 * sf.dsm_loss(model, x0, t=t, noise=noise)

    run_training(loss=loss, steps=20, log_every=20, explosion=0.0)
    (line,) = read_log(tmp_path / "run")
    edges = level_edges(sf.VP())
    half = 0.5 * float(edges[1] - edges[0])
    inner = [(level, value) for level, value in line["levels"] if abs(level) < float(edges[-1]) - 2 * half]
    assert len(inner) >= 9
    assert all(abs(level - value) <= half + 0.01 for level, value in inner)


def test_held_out_loss_is_that_of_the_averaged_weights_and_decides_which_is_best(run_training, tmp_path, cloud):
    # Held-out data unlike the training data: its loss is not that of training.
    run = run_training(held_out=cloud + 3.0, steps=30, ema=0.5)
    lines = [line for line in read_log(tmp_path / "run") if "held_out_loss" in line]
    assert [line["step"] for line in lines] == [10, 20, 30]
    states = {step: read_state(tmp_path / "run" / f"step-{step:06d}") for step in (10, 20, 30)}
    assert {s["held_out_loss"] for s in states.values()} == {line["held_out_loss"] for line in lines}
    best = min(states, key=lambda step: states[step]["held_out_loss"])
    assert best_checkpoint(tmp_path / "run").name == f"step-{best:06d}"
    mean = float(sf.dsm_loss(run.model, (cloud + 3.0).repeat(50, 1), seed=0).detach().mean()) / 2
    assert lines[-1]["held_out_loss"] == pytest.approx(mean, rel=0.1)
    chosen, newest = sf.load(tmp_path / "run", step="best"), sf.load(tmp_path / "run", step=best)
    assert all(torch.equal(a, b) for a, b in zip(chosen.parameters(), newest.parameters(), strict=True))


def test_held_out_loss_is_of_every_item_once(run_training, tmp_path, cloud):
    # 37 items in batches of 16: the last batch is filled up with items that do not count again.
    seen = []

    def loss(model, x0, *, t, noise):
        if not model.training:
            seen.append(x0)
            return 2 * x0[:, 0]  # a loss that is the item itself, so that the mean tells which took part
        return sf.dsm_loss(model, x0, t=t, noise=noise)

    items = cloud[:37]
    run_training(held_out=items, loss=loss, steps=10)
    (line,) = [line for line in read_log(tmp_path / "run") if "held_out_loss" in line]
    assert line["held_out_loss"] == pytest.approx(float(items[:, 0].mean()), rel=1e-5)
    assert len(torch.cat(seen)) == 48


def test_callbacks_see_every_step_and_may_end_the_run(run_training, tmp_path):
    seen = []

    def callback(moment):
        seen.append((moment.step, moment.steps, moment.loss, moment.lr))
        return moment.step == 12

    run = run_training(callbacks=[callback])
    assert (run.step, run.finished, run.stopped) == (12, False, "a callback")
    assert [s[0] for s in seen] == list(range(1, 13))
    assert all(math.isfinite(s[2]) for s in seen)
    assert (tmp_path / "run" / "step-000012").is_dir()


def test_averaged_model_of_a_callback_is_the_one_that_is_saved(run_training, tmp_path):
    kept = []
    run_training(callbacks=[lambda m: kept.append(m.averaged()) if m.step == 20 else None])
    saved = sf.load(tmp_path / "run", step=20)
    assert all(torch.equal(a, b) for a, b in zip(kept[0].parameters(), saved.parameters(), strict=True))


def test_report_holds_curves_and_grids_and_no_links(run_training, tmp_path):
    train_pictures(run_training, "run", **WATCHED)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<svg") == 4
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert "nan" not in page.split("</style>")[1].split("base64")[0].lower()


def test_report_of_a_run_without_a_step(run_training, tmp_path):
    run_training(steps=1, log_every=1)
    (tmp_path / "run" / "log.jsonl").unlink()
    assert "No step has been logged yet" in write_report(tmp_path / "run").read_text()


@pytest.mark.parametrize(
    ("points", "log_y"),
    [([(0.0, 1.0)], False), ([(0.0, 2.0), (5.0, 2.0)], True), ([(1.0, math.nan), (2.0, 3.0)], False), ([], True)],
)
def test_plots_of_few_points(tmp_path, points, log_y):
    report = Report("a", "b")
    report.curves("loss", "", {"x": points}, ("step", "loss"), log_y=log_y)
    report.write(tmp_path / "page.html")
    assert "nan" not in (tmp_path / "page.html").read_text().split("</style>")[1]


def test_points_of_a_plot_are_where_they_belong():
    report = Report("a", "b")
    report.curves("loss", "", {"x": [(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)]}, ("step", "loss"), log_y=True)
    path = report.parts[0].split("polyline points='")[1].split("'")[0]
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in path.split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.11)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.11)
    assert y2 < y0


def test_bars_are_two_standard_errors_to_each_side():
    report = Report("a", "b")
    report.curves("loss", "", {"x": [(0.0, 1.0, 0.5), (1.0, 3.0)]}, ("step", "loss"))
    path = report.parts[0].split("polyline points='")[1].split("'")[0]
    (_, y0), (_, y1) = (map(float, point.split(",")) for point in path.split())
    bar = report.parts[0].split("stroke='#3b76d6'/>")[-2]
    ends = [float(bar.split(f"{end}='")[-1].split("'")[0]) for end in ("y1", "y2")]
    unit = (y0 - y1) / 2
    assert ends == pytest.approx([y0 + unit, y0 - unit], abs=0.2)


def test_tensorboard_gets_the_log(run_training, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_training(log_every=10)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = read_log(tmp_path / "run")
    assert [step for step, _ in logged] == [10, 20, 30]
    np.testing.assert_allclose([value for _, value in logged], [line["loss"] for line in lines], rtol=1e-6)


def test_unknown_tracker_is_named(run_training):
    with pytest.raises(InputError, match="trackers=tensorbord is unknown; did you mean tensorboard"):
        run_training(trackers=("tensorbord",))


def test_a_tracker_that_fails_costs_a_warning_not_the_run(run_training, monkeypatch):
    tracking = pytest.importorskip("accelerate.tracking")
    monkeypatch.setattr(tracking.TensorBoardTracker, "log", lambda *args, **rest: 1 / 0)
    with pytest.warns(UserWarning, match="tracker tensorboard failed .*going on without it") as told:
        assert run_training(trackers=("tensorboard",)).finished
    assert len(told) == 1


def test_labels_take_part_where_the_network_has_classes(run_training, tmp_path):
    seen = []

    def loss(model, x0, *, t, noise, label):
        seen.append(label)
        return sf.dsm_loss(model, x0, t=t, noise=noise, label=label)

    train_pictures(run_training, "run", loss=loss, label_dropout=0.3)
    assert set(torch.cat(seen).tolist()) == {-1, 0, 1, 2}
    with pytest.raises(InputError, match="has class 2 and the network knows 2 classes"):
        train_pictures(run_training, "few", model=picture_model(num_classes=2))
