"""Weights made elsewhere: official checkpoint files, and NCSN++ folders of diffusers."""

import io
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scorefield import pretrained
from scorefield.errors import CheckpointError, InputError
from scorefield.ladder import DDPMScore
from scorefield.model import ScoreModel
from scorefield.nn import UNet
from scorefield.presets import Preset
from scorefield.pretrained.official_names import to_official
from scorefield.sdes import VE, VP, SubVP

HERE = Path(__file__).resolve().parent / "data" / "parity"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "parity"


def find(name):
    for folder in (HERE, SHARED):
        if (folder / name).exists():
            return folder / name
    pytest.skip(f"the recording {name} is neither in tests/data/parity nor in ../shared/parity")


def checkpoint(name):
    return find(f"{name}.pth"), json.loads(find(f"{name}.json").read_text())["config"]


@pytest.fixture
def content():
    path, config = checkpoint("12_checkpoint_ve_ncsnpp")
    return torch.load(path, weights_only=False), config


def save(content, tmp_path):
    torch.save(content, tmp_path / "c.pth")
    return tmp_path / "c.pth"


@pytest.mark.parametrize("ema", [True, False], ids=["ema", "raw"])
@pytest.mark.parametrize("name", ["12_checkpoint_ve_ncsnpp", "12_checkpoint_vp_ddpm"])
def test_official_checkpoint_gives_the_recorded_scores(name, ema):
    path, config = checkpoint(name)
    recorded = load_file(find(f"{name}.safetensors"))
    model = pretrained.load_checkpoint(path, config, ema=ema)
    for key, t in (("t001", 0.01), ("t03", 0.3), ("t09", 0.9)):
        expected = next(v for k, v in recorded.items() if k.startswith("ema/" if ema else "model/") and k.endswith(key))
        with torch.no_grad():
            y = model.score(recorded["x"], t)
        assert (y - expected).abs().max() < 3e-4 * expected.square().mean().sqrt()
    assert not model.training


def test_step_and_weights_are_kept():
    path, _ = checkpoint("12_checkpoint_ve_ncsnpp")
    read = pretrained.read_checkpoint(path)
    assert read.step == 3
    assert not any(k.startswith("module.") for k in read.model)


def test_numpy_scalars_of_every_release_are_read(content, tmp_path):
    """Old files name NumPy's modules as they were before NumPy 2."""
    content, config = content
    assert type(content["optimizer"]["param_groups"][0]["lr"]) is np.float64
    path = save(content, tmp_path)
    old = tmp_path / "old.pth"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(old, "w", zipfile.ZIP_STORED) as target:
        for item in source.infolist():
            data = source.read(item)
            if item.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            target.writestr(item, data)
    pretrained.load_checkpoint(old, config)


@pytest.mark.parametrize("part", ["weight", "optimizer"])
def test_a_pickled_object_is_refused_by_name_and_not_run(content, tmp_path, part):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    content, config = content
    if part == "weight":
        content["model"]["module.all_modules.3.bias"] = Attack()
    else:
        content["optimizer"]["note"] = Attack()
    with pytest.raises(
        CheckpointError, match=r"c\.pth: it holds a pickled \S*(Path|touch|getattr)\S*; only tensors"
    ) as error:
        pretrained.load_checkpoint(save(content, tmp_path), config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_numpy_object_arrays_are_refused(content, tmp_path):
    content, config = content
    content["optimizer"]["note"] = np.array([{"a": 1}], dtype=object)
    with pytest.raises(CheckpointError, match="it holds"):
        pretrained.load_checkpoint(save(content, tmp_path), config)


def test_a_renamed_key_is_named(content, tmp_path):
    content, config = content
    model = content["model"]
    content["model"] = {
        ("module.all_modules.3.wait" if k == "module.all_modules.3.weight" else k): v for k, v in model.items()
    }
    with pytest.raises(
        CheckpointError, match=r"hold all_modules\.3\.wait, .* expected all_modules\.3\.weight, which is missing"
    ):
        pretrained.load_checkpoint(save(content, tmp_path), config)


def test_a_missing_key_is_named(content):
    content, config = content
    state = {k: v for k, v in content["model"].items() if k != "module.all_modules.3.weight"}
    with pytest.raises(CheckpointError, match=r"lack all_modules\.3\.weight"):
        pretrained.official_model(config, state)


@pytest.mark.parametrize("key", ["all_modules.3.weight", "all_modules.8.NIN_0.W"])
def test_a_wrong_shape_is_named(content, key):
    content, config = content
    state = dict(content["model"])
    right = tuple(state[f"module.{key}"].shape)
    state[f"module.{key}"] = state[f"module.{key}"][:-1]
    with pytest.raises(CheckpointError) as error:
        pretrained.official_model(config, state)
    assert key in str(error.value)
    assert str(right) in str(error.value)
    assert "\n" not in str(error.value)


def test_refused_weights_leave_the_network_alone(content):
    content, config = content
    net = Preset.from_official(config).network()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = dict(content["model"]) | {"module.all_modules.19.bias": torch.zeros(7)}
    with pytest.raises(CheckpointError):
        pretrained.load_weights(net, state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_averages_that_do_not_fit_are_named(content, tmp_path):
    content, config = content
    shadow = content["ema"]["shadow_params"]
    content["ema"]["shadow_params"] = shadow[:-1]
    with pytest.raises(CheckpointError, match="155 tensors, the model 156"):
        pretrained.load_checkpoint(save(content, tmp_path), config)
    content["ema"]["shadow_params"] = [shadow[1], shadow[0], *shadow[2:]]
    with pytest.raises(CheckpointError, match=r"moving average of all_modules\.1\.weight"):
        pretrained.load_checkpoint(save(content, tmp_path), config)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a checkpoint"),
        (b"From: someone", "cannot read"),
        (pickle.dumps({"a": 1}), "cannot read"),
    ],
    ids=["empty", "text", "pickle"],
)
def test_other_files_are_refused_in_one_line(tmp_path, data, message):
    path = tmp_path / "c.pth"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as error:
        pretrained.read_checkpoint(path)
    assert "c.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_in_one_line(tmp_path):
    path, _ = checkpoint("12_checkpoint_ve_ncsnpp")
    (tmp_path / "c.pth").write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"c\.pth") as error:
        pretrained.read_checkpoint(tmp_path / "c.pth")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [{"weights": 1}, [1, 2], {"model": {}, "ema": {}, "step": 0}])
def test_other_contents_are_refused(tmp_path, value):
    with pytest.raises(CheckpointError, match="expected a dict of optimizer, model, ema and step"):
        pretrained.read_checkpoint(save(value, tmp_path))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        pretrained.read_checkpoint(tmp_path / "none.pth")


def test_fresh_weights():
    _, config = checkpoint("12_checkpoint_ve_ncsnpp")
    model = pretrained.official_model(config)
    assert model.shape == (3, 16, 16)
    assert model.score(torch.rand(2, 3, 16, 16), 0.5).abs().max() < 1e-3


def test_unused_weights_of_an_unconditional_network_are_left_out(content):
    """The official code makes Dense_0 in every block even where nothing is fed to it."""
    content, config = content
    config = config | {"model": config["model"] | {"conditional": False, "embedding_type": "positional"}}
    net = Preset.from_official(config).network()
    state = dict(to_official(net, net.state_dict()))
    state["all_modules.1.Dense_0.weight"] = torch.zeros(8, 32)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    pretrained.load_weights(net, state)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


SDES = {"vesde": VE(0.01, 50.0), "vpsde": VP(), "subvpsde": SubVP()}


@pytest.mark.parametrize("name", SDES)
def test_the_sde_of_a_configuration(name, content):
    config = content[1] | {"training": {"sde": name, "continuous": True}}
    assert Preset.from_official(config).sde == SDES[name]


def test_an_unknown_sde_is_named(content):
    with pytest.raises(ValueError, match=r"training\.sde='ousde' is unknown"):
        pretrained.official_model(content[1] | {"training": {"sde": "ousde", "continuous": True}})


def test_an_unknown_network_is_named(content):
    config = content[1] | {"model": content[1]["model"] | {"name": "vit"}}
    with pytest.raises(ValueError, match=r"model\.name='vit' is unknown"):
        pretrained.official_model(config)


@pytest.mark.parametrize("form", ["mapping", "wrapped", "preset", "file", "path", "ConfigDict"])
def test_a_configuration_is_taken_as_it_comes(form, tmp_path):
    _, config = checkpoint("12_checkpoint_ve_ncsnpp")
    file = tmp_path / "c.json"
    file.write_text(json.dumps({"config": config, "notes": "as recorded"}))

    class ConfigDict:  # of ml_collections: items by key, but no Mapping
        def to_dict(self):
            return config

    forms = {
        "mapping": config, "wrapped": {"config": config}, "preset": Preset.from_official(config), "file": str(file),
        "path": file, "ConfigDict": ConfigDict(),
    }  # fmt: skip
    model, plain = pretrained.official_model(forms[form]), pretrained.official_model(config)
    assert model.net.config == plain.net.config
    assert (model.sde, model.shape) == (plain.sde, plain.shape)


def test_the_name_of_a_preset_is_a_configuration():
    with torch.device("meta"):
        model = pretrained.official_model("ve/cifar10_ncsnpp_continuous")
    assert model.sde == VE(0.01, 50.0)
    with pytest.raises(InputError, match="preset 've/cifar' is unknown"):
        pretrained.official_model("ve/cifar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "lacks the section 'data'"),
        ({"data": 3}, "section 'data' of the configuration must be a mapping"),
        ({"data": {"num_channels": 3, "centered": True}}, r"lacks data\.image_size"),
        ({"model": {"nf": "128"}}, r"model\.nf='128': expected a whole number"),
        ({"model": {"nf": True}}, r"model\.nf=True: expected a whole number"),
        ({"model": {"fir": 1}}, r"model\.fir=1: expected True or False"),
        ({"model": {"ch_mult": 2}}, r"model\.ch_mult=2: expected a list"),
        ({"model": {"ch_mult": None}}, r"lacks model\.ch_mult"),
        (
            {"model": {"nonlinearity": "gelu"}},
            r"model\.nonlinearity='gelu' is unknown; choose one of swish, elu, relu, lrelu",
        ),
        (
            {"model": {"resblock_type": "resnet"}},
            r"model\.resblock_type='resnet' is unknown; choose one of biggan, ddpm",
        ),
        ({"training": {"continuous": False}}, r"model\.embedding_type='fourier' reads noise levels"),
    ],
)
def test_wrong_configurations_are_refused_by_field(change, message):
    _, config = checkpoint("12_checkpoint_ve_ncsnpp")
    changed = {k: config[k] | v if k != "data" and v else v for k, v in change.items()}
    with pytest.raises(ValueError, match=message) as error:
        pretrained.official_model(config | changed)
    assert "\n" not in str(error.value)


def test_what_the_official_code_does_not_read_is_left_aside():
    _, config = checkpoint("12_checkpoint_ve_ncsnpp")
    extra = config | {"model": config["model"] | {"note": "mine"}, "device": "cpu"}
    assert Preset.from_official(extra) == Preset.from_official(config)


def test_discrete_vp_scores_follow_the_table():
    _, config = checkpoint("12_checkpoint_vp_ddpm")
    model = pretrained.official_model(config)
    assert isinstance(model.net, DDPMScore)
    assert model.net.num_scales == config["model"]["num_scales"]


# --- diffusers


def skip_unet(attn=(False, True), widths=(32, 128), layers=1, center=True):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kinds = ["AttnSkipDownBlock2D" if a else "SkipDownBlock2D" for a in attn]
    return diffusers.UNet2DModel(
        sample_size=16,
        time_embedding_type="fourier",
        center_input_sample=center,
        down_block_types=tuple(kinds),
        up_block_types=tuple(k.replace("Down", "Up") for k in reversed(kinds)),
        block_out_channels=widths,
        layers_per_block=layers,
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
        norm_num_groups=None,
        attention_head_dim=None,
        downsample_padding=1,
    ).eval()


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("attn", "widths"), [((False, True), (32, 128)), ((False, False, True), (64, 64, 128))])
@pytest.mark.parametrize("center", [True, False])
def test_a_folder_of_diffusers_is_read(tmp_path, attn, widths, layers, center):
    theirs = skip_unet(attn, widths, layers, center)
    theirs.save_pretrained(tmp_path)
    model = pretrained.load_diffusers(tmp_path, VE(0.01, 348.0))
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.3, 20.0])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, sigma), theirs(x, sigma).sample, rtol=1e-4, atol=1e-4)
    assert model.shape == (3, 16, 16)


def test_a_folder_for_diffusers_is_written_and_comes_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    net = UNet(
        3, 32, (1, 4), 1, (1,), embedding="fourier", fir=(1, 3, 3, 1), progressive="output_skip",
        progressive_input="input_skip", scale_by_sigma=True, centered=False, init_scale=1.0,
    )  # fmt: skip
    model = ScoreModel(net, VE(0.01, 348.0), "score", shape=(3, 16, 16), clock="sigma").eval()
    pretrained.save_diffusers(model, tmp_path)
    theirs = diffusers.ScoreSdeVePipeline.from_pretrained(tmp_path).unet.eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.2, 0.7])
    sigma = model.sde.sigma(t).float()
    with torch.no_grad():
        expected = model.score(x, t)
        torch.testing.assert_close(theirs(x, sigma).sample, expected, rtol=1e-4, atol=1e-4)
        back = pretrained.load_diffusers(tmp_path)
        torch.testing.assert_close(back.score(x, t), expected, rtol=1e-6, atol=1e-6)
    assert back.sde == model.sde
    scheduler = diffusers.ScoreSdeVeScheduler.from_pretrained(tmp_path / "scheduler")
    assert scheduler.config.sigma_max == 348.0


def test_names_of_old_releases_are_understood(tmp_path):
    """Before 0.19 the attention projections were called query, key, value and proj_attn."""
    from safetensors.torch import save_file

    theirs = skip_unet()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in load_file(path).items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        state[key] = value
    save_file(state, path)
    assert any("proj_attn" in k for k in state)
    model = pretrained.load_diffusers(tmp_path, VE())
    x, sigma = torch.randn(1, 3, 16, 16), torch.tensor([2.0])
    with torch.no_grad():
        torch.testing.assert_close(model.net(x, sigma), theirs(x, sigma).sample, rtol=1e-4, atol=1e-4)


def test_a_pipeline_folder_is_read(tmp_path):
    skip_unet().save_pretrained(tmp_path / "unet")
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"sigma_min": 0.02, "sigma_max": 380}')
    assert pretrained.load_diffusers(tmp_path).sde == VE(0.02, 380)


def test_without_an_sde_the_remedy_is_named(tmp_path):
    skip_unet().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"scheduler_config\.json; give the SDE"):
        pretrained.load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time_embedding_type": "positional"}, "time_embedding_type='positional'"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "matching Skip blocks"),
        ({"block_out_channels": [32, 100]}, "multiples of the first"),
        ({"attention_head_dim": 8}, "attention_head_dim=8"),
        ({"in_channels": 1}, "must be 3"),
        ({"norm_num_groups": 16}, "norm_num_groups=16"),
    ],
)
def test_other_unets_of_diffusers_are_refused(tmp_path, change, message):
    skip_unet().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        pretrained.load_diffusers(tmp_path, VE())


@pytest.mark.parametrize("option", [{"progressive": "none"}, {"num_classes": 2}, {"fir": None}, {"nf": 16}])
def test_networks_that_diffusers_lacks_are_refused(tmp_path, option):
    options = {
        "nf": 128, "ch_mult": (1, 1), "num_res_blocks": 1, "attn": (1,), "embedding": "fourier", "fir": (1, 3, 3, 1),
        "progressive": "output_skip", "progressive_input": "input_skip", "scale_by_sigma": True,
    }  # fmt: skip
    model = ScoreModel(UNet(3, **(options | option)), VE(), "score", clock="sigma")
    with pytest.raises(ValueError, match=next(iter(option)) if "nf" not in option else "width 16"):
        pretrained.save_diffusers(model, tmp_path)


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        pretrained.load_diffusers(tmp_path, VE())
    skip_unet().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(io.BytesIO(b"\x00" * 20).read())
    with pytest.raises(CheckpointError, match=r"diffusion_pytorch_model\.safetensors"):
        pretrained.load_diffusers(tmp_path, VE())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        pretrained.load_diffusers(tmp_path, VE())
