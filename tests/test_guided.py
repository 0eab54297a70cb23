"""Guided diffusion: its schedules, its published models, its files."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import scorefield as sf
from scorefield.cli import main
from scorefield.data.open import as_dataset
from scorefield.errors import CheckpointError, InputError
from scorefield.nn import DiT, UNet
from scorefield.presets.guided import GUIDED, Guided
from scorefield.pretrained import guided_model, load_guided
from scorefield.training.recipes import recipe

FLAGS = {
    "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1,2", "attention_resolutions": 8,
    "num_head_channels": 16, "learn_sigma": True, "resblock_updown": True, "use_fp16": False, "model_path": "models/x.pt",
}  # fmt: skip


def weights(flags=FLAGS):
    g = torch.Generator().manual_seed(0)
    net = Guided.from_flags(flags).network()
    return {k: v + 0.1 * torch.randn(v.shape, generator=g) for k, v in net.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("imagenet64", 296),
        ("imagenet128", 422),
        ("imagenet256", 554),
        ("imagenet512", 559),
        ("imagenet256_unconditional", 553),
    ],
)
def test_published_sizes(name, millions):
    """Dhariwal & Nichol 2021, Table 4 and its appendix: parameters of the models conditioned on classes."""
    with torch.device("meta"):
        net = GUIDED[f"adm/{name}"].network()
    assert round(sum(p.numel() for p in net.parameters()) / 1e6) == millions


def test_the_model_of_faces():
    with torch.device("meta"):
        model = guided_model("adm/ffhq256")
    assert model.shape == (3, 256, 256)
    assert model.net.config["attn"] == (4,)
    assert model.predict == "noise"
    with pytest.raises(InputError, match="did you mean adm/ffhq256"):
        guided_model("adm/ffhq")


def test_the_line_of_betas():
    product, sde = 1.0, GUIDED["adm/ffhq256"].sde
    for i in range(1000):
        product *= 1 - (1e-4 + i / 999 * (0.02 - 1e-4))
        if i in (0, 1, 500, 999):
            assert float(sde.alpha((i + 1) / 1000)) ** 2 == pytest.approx(product, rel=1e-10)


def test_the_cosine():
    """Nichol & Dhariwal 2021, eq. 17, betas clipped at 0.999."""

    def bar(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    sde = GUIDED["adm/imagenet64"].sde
    for i in (0, 500, 997):
        assert float(sde.alpha((i + 1) / 1000)) ** 2 == pytest.approx(bar((i + 1) / 1000) / bar(0), rel=1e-9)
    assert float(sde.alpha(1.0)) ** 2 == pytest.approx(1e-3 * bar(0.999) / bar(0), rel=1e-9)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_labels_and_the_half_of_the_mean(steps):
    model = guided_model(FLAGS | {"diffusion_steps": steps, "rescale_timesteps": True}, weights())
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        label = torch.full((2,), 300 * 1000 / steps)
        both = model.net.both(x, label)
        torch.testing.assert_close(model.noise(x, 301 / steps), both[0], rtol=1e-5, atol=1e-5)
    assert both[1].shape == x.shape
    assert sf.sample(model, 1, sf.UniPC(), steps=2, seed=0).isfinite().all()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files_of_weights(suffix, tmp_path):
    state, path = weights(), tmp_path / f"model.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    model = load_guided(path, FLAGS)
    assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items())
    with pytest.raises(CheckpointError, match="this configuration needs"):
        load_guided(path, FLAGS | {"num_channels": 64})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, "expected tensors by name"),
        ([torch.zeros(1)], "expected tensors by name"),
        ({"out.0.weight": torch.zeros(32)}, "lack time_embed"),
        ({"a": torch.nn.Linear(1, 1)}, "it holds a pickled"),
    ],
    ids=["nested", "list", "part", "pickled"],
)
def test_other_files_are_refused(content, message, tmp_path):
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=message) as error:
        load_guided(tmp_path / "m.pt", FLAGS)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        load_guided(tmp_path / "none.pt", FLAGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_channels": None}, r"lacks flags\.num_channels"),
        ({"num_channels": "many"}, r"flags\.num_channels='many': expected a whole number"),
        ({"noise_schedule": "square"}, r"flags\.noise_schedule='square' is unknown; choose one of linear, cosine"),
        ({"attention_resolutions": "8;4"}, r"flags\.attention_resolutions='8;4': expected numbers with commas"),
        ({"channel_mult": ""}, r"flags\.image_size=16: give channel_mult"),
        ({"num_heads_upsample": 2, "num_head_channels": -1}, r"flags\.num_heads_upsample"),
        ({"class_cond": 1}, r"flags\.class_cond=1: expected True or False"),
    ],
)
def test_wrong_flags_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        guided_model(FLAGS | change)


def test_a_checkpoint_becomes_a_run(tmp_path, capsys):
    torch.save(weights(), tmp_path / "m.pt")
    (tmp_path / "flags.json").write_text(json.dumps(FLAGS))
    arguments = [
        "convert",
        str(tmp_path / "m.pt"),
        "--preset",
        str(tmp_path / "flags.json"),
        "--out",
        str(tmp_path / "run"),
    ]
    assert main(arguments) == 0
    assert "parameters" in capsys.readouterr().out
    assert main([*arguments[:-1], str(tmp_path / "other"), "--raw"]) == 2
    assert "--raw: a file of guided diffusion" in capsys.readouterr().err
    assert main(["presets", "adm/ffhq256"]) == 0
    assert "num_channels                  128" in capsys.readouterr().out
    model, direct = sf.load(tmp_path / "run"), load_guided(tmp_path / "m.pt", FLAGS)
    assert model.sde == direct.sde
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model.noise(x, 0.3), direct.noise(x, 0.3))


@pytest.mark.parametrize(("name", "kind"), [("edm", UNet), ("dit", DiT)])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 12)])
def test_recipes_for_images(name, kind, shape):
    data = as_dataset(torch.zeros(2, *shape))
    with torch.device("meta"):
        model = recipe(name).model(data)
        y = model.net(torch.zeros(1, *shape), torch.zeros(1))
    assert isinstance(model.net, kind)
    assert y.shape == (1, *shape)
    assert (model.predict, model.shape) == ("edm", shape)
    with pytest.raises(InputError, match=f"preset {name} takes images"):
        recipe(name).model(as_dataset(torch.zeros(2, 5)))
