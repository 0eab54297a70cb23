"""Results as figures: each kind is drawn as what it is, with the numbers of the result."""

import json

import numpy as np
import pytest
import torch

import scorefield as sf
from scorefield.cli import main
from scorefield.evaluation.calibration import Calibration, calibrate
from scorefield.inverse.restore import Restored
from scorefield.likelihood import LogProb
from scorefield.solve.integrate import Solution

charts = pytest.importorskip("scorefield.charts", reason="matplotlib is not installed")


def draws(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def solution(*shape):
    path = torch.stack([draws(8, *shape, seed=k) for k in range(5)])
    return Solution(path[-1], torch.full((8,), 4), torch.zeros(8), path, torch.linspace(1, 0, 5))


def ink(figure):
    """Share of pixels that are not white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return float((pixels < 250).any(-1).mean())


def test_vectors_are_drawn_in_pairs_with_their_names():
    x, y = draws(50, 3), draws(70, 3, seed=1)
    figure = charts.items({"samples": x, "data": y}, names=["a", "b", "c"])
    axes = figure.axes
    assert [ax.get_xlabel() for ax in axes[6:]] == ["a", "b", "c"]
    first, second = axes[3].collections  # row b, column a
    assert np.allclose(first.get_offsets(), x[:, [0, 1]])
    assert np.allclose(second.get_offsets(), y[:, [0, 1]])


def test_signals_are_traces_of_their_values():
    x = draws(3, 2, 40)
    figure = charts.items({"samples": x})
    assert len(figure.axes) == 2
    assert np.allclose([line.get_ydata() for line in figure.axes[1].lines], x[:, 1])


def test_volumes_are_their_three_middle_slices():
    x = torch.zeros(1, 1, 6, 8, 4)
    x[0, 0, 3] = 1.0  # the middle of the first side
    cut = charts._slices(x)
    assert cut.shape == (3, 1, 8, 8)
    assert torch.equal(cut[0, 0, :, :4], torch.ones(8, 4))
    assert [int(part.sum()) for part in cut] == [32, 4, 8]


def test_pictures_are_shown_in_their_range():
    figure = charts.items({"a": torch.full((4, 3, 8, 8), 1.0), "b": torch.full((4, 3, 8, 8), -1.0)}, (-1.0, 1.0))
    white, black = (np.asarray(ax.images[0].get_array()) for ax in figure.axes)
    assert white[4, 4].tolist() == [255] * 3
    assert black[4, 4].tolist() == [0] * 3


@pytest.mark.parametrize("shape", [(2,), (1, 30), (3, 8, 8), (1, 6, 6, 6)], ids=str)
def test_solutions_and_posteriors_of_every_kind_have_figures(shape):
    done = solution(*shape)
    assert ink(done.plot()) > 0.01
    assert ink(done.plot(path=True)) > 0.01
    assert ink(Restored(draws(2, 5, *shape), 3.0).plot()) > 0.01


def test_ranks_are_counted_beside_the_band_of_even_ones():
    truth, samples = draws(400, 2), torch.stack([draws(400, 2, seed=k + 1) for k in range(9)], 1)
    found = calibrate(samples, truth)
    heights = [bar.get_height() for bar in found.plot().axes[1].patches if hasattr(bar, "get_height")]
    counts = torch.bincount(found.ranks[:, 1], minlength=10).tolist()
    assert counts == [h for h in heights if h in counts][-10:]


def test_likelihoods_are_shown_in_order_with_their_errors():
    lp = LogProb.of_draws(draws(20, 4).double(), torch.ones(20), torch.zeros(20), 3)
    line = lp.plot().axes[1].lines[0].get_ydata()
    assert np.allclose(line, lp.nats.sort().values)


def test_a_run_shows_its_losses(tmp_path):
    x = draws(64, 2)
    model = sf.ScoreModel(sf.nn.MLP(2, 8), sf.VP(), shape=(2,))
    run = sf.train(model, x, out=tmp_path / "run", held_out=x[:8], steps=6, log_every=2, batch_size=8, progress=False)
    lines = {line.get_label(): line for line in run.plot().axes[0].lines}
    assert lines["training"].get_xdata().tolist() == [2, 4, 6]
    assert len(lines["held out"].get_ydata()) >= 1
    assert "step 6 of 6" in repr(run)


@pytest.mark.parametrize(
    "value",
    [
        sf.ScoreModel(sf.nn.MLP(2, 8), sf.VP(), shape=(2,)),
        sf.GaussianMixture(torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2), None, sf.VP()),
        solution(2),
        Calibration(torch.randint(0, 6, (30, 2), generator=torch.Generator().manual_seed(0)), 5),
        Restored(draws(2, 5, 3), 3.0),
        LogProb.of_draws(draws(20, 4), torch.ones(20), torch.zeros(20), 3),
    ],
    ids=lambda v: type(v).__name__,
)
def test_results_say_themselves_in_one_line(value):
    text = repr(value)
    assert text.startswith(type(value).__name__ + "(")
    assert "\n" not in text
    assert len(text) < 200


def test_figures_show_themselves_in_notebooks_and_go_into_files(tmp_path):
    figure = charts.items({"x": draws(9, 2)})
    assert figure._repr_png_()[:4] == b"\x89PNG"
    charts.save_figure(figure, tmp_path / "x.svg")
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()


def test_commands_write_figures_of_what_is_no_image(tmp_path, capsys):
    x = draws(60, 2) @ torch.tensor([[3.0, 1.0], [0.0, 2.0]]) + 5
    np.save(tmp_path / "x.npy", x.numpy())
    run, out = tmp_path / "run", tmp_path / "s.png"
    words = ["train", "--data", tmp_path / "x.npy", "--out", run, "--steps", 20, "--device", "cpu"]
    assert main([str(w) for w in words]) == 0
    assert {"fit.png", "loss.png"} <= {p.name for p in run.iterdir()}
    quick = ["--sampler", "euler", "--steps", 3, "--device", "cpu"]
    words = ["sample", run, "-n", 30, *quick, "--data", tmp_path / "x.npy", "--out", out]
    assert main([str(w) for w in words]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG"
    words = ["likelihood", run, "--data", tmp_path / "x.npy", "-n", 5, "--plot", tmp_path / "l.pdf", "--json"]
    capsys.readouterr()
    assert main([str(w) for w in words]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 5
    assert (tmp_path / "l.pdf").read_bytes()[:4] == b"%PDF"
    words = ["sample", run, "-n", 3, *quick, "--data", tmp_path / "x.npy", "--out", tmp_path / "s.npy"]
    assert main([str(w) for w in words]) == 2
    assert "is drawn beside the samples in a figure" in capsys.readouterr().err
