"""The paper's configurations against the official ones, field by field."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from scorefield import presets
from scorefield.ladder import DDPMScore
from scorefield.presets import Preset
from scorefield.sdes import VE, VP, SubVP
from scorefield.solve.pc import PC, AnnealedLangevin, Identity, Langevin
from scorefield.solve.reverse import Ancestral, EulerMaruyama, ReverseDiffusion

OFFICIAL = json.loads((Path(__file__).parent / "data" / "parity" / "official_configs.json").read_text())


def test_names_are_the_official_ones():
    assert presets.names() == sorted(OFFICIAL)
    assert len(OFFICIAL) == 39


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_every_field_is_the_official_one(name):
    preset = presets.get(name)
    assert preset.name == name
    assert preset.official() == OFFICIAL[name]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_an_official_configuration_is_typed_and_comes_back(name):
    preset = Preset.from_official(OFFICIAL[name], name)
    assert preset == presets.get(name)
    assert preset.official() == OFFICIAL[name]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_values_are_frozen_and_typed(name):
    preset = presets.get(name)
    assert hash(preset) == hash(presets.get(name))
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset.optim.lr = 1.0


# Counted with the official code.
COUNTS = {
    "ve/cifar10_ncsnpp_continuous": 62_758_915,
    "subvp/cifar10_ddpmpp_continuous": 61_804_419,
    "vp/ddpm/cifar10": 35_218_947,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = presets.get(name).score_model()
    assert sum(p.numel() for p in model.net.parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_every_preset_builds_its_model(name):
    preset = presets.get(name)
    with torch.device("meta"):
        model = preset.score_model()
    size = preset.data.image_size
    assert model.shape == (3, size, size)
    assert model.sde == preset.sde
    expected = {"ve": VE, "vp": VP, "subvp": SubVP}[name.split("/")[0]]
    assert type(model.sde) is expected
    x = torch.empty(1, 3, min(size, 128), min(size, 128), device="meta")
    assert model.net(x, torch.empty(1, device="meta")).shape == x.shape


def test_which_are_discrete():
    discrete = {name for name in presets.names() if presets.get(name).discrete}
    assert discrete == {name for name in OFFICIAL if "continuous" not in name}


def test_discrete_variance_preserving_models_use_the_table():
    with torch.device("meta"):
        assert isinstance(presets.get("vp/ddpm/cifar10").score_model().net, DDPMScore)


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("ve/cifar10_ncsnpp_continuous", PC(ReverseDiffusion(), Langevin(snr=0.16, steps=1))),
        ("vp/cifar10_ddpmpp_continuous", EulerMaruyama()),
        ("vp/ddpm/church", Ancestral(variance="transition")),
        ("ve/ncsn/celeba", PC(Identity(), AnnealedLangevin(snr=0.316, steps=100))),
    ],
)
def test_samplers(name, solver):
    assert presets.get(name).sampler() == solver


@pytest.mark.parametrize(("name", "steps"), [("ve/church_ncsnpp_continuous", 2000), ("ve/ncsnv2/bedroom", 1086)])
def test_steps(name, steps):
    assert presets.get(name).steps == steps


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match=r"did you mean ve/cifar10_ncsnpp"):
        presets.get("ve/cifar_ncsnpp")
