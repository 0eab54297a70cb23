"""Every network on a device without float64, under a process whose times stay on the CPU (see `accelerator`)."""

import pytest
import torch

import scorefield as sf
from accelerator import DEVICE, Accelerator, OnDevice
from scorefield.ladder import DDPMScore, SMLDLabels, TableLabels, TableSDE
from scorefield.nn import ADM, MLP, NCSN, DiT, NCSNv2, NoiseScales, UNet

TABLE = TableSDE(tuple(0.99 ** (i + 1) for i in range(50)))
NETWORKS = {
    "UNet": lambda: UNet(1, 8, (1, 2), 1, (1,), num_classes=2, fir=(1, 2, 1), nonlinearity="lrelu"),
    "UNet by noise level": lambda: UNet(1, 8, (1, 2), 1, (), embedding="fourier", scale_by_sigma=True),
    "UNet by label": lambda: UNet(
        1, 8, (1, 2), 1, (), scale_by_sigma=True, scales=NoiseScales(0.01, 1.0, 50), time_scale=1.0
    ),
    "DDPMScore": lambda: DDPMScore(UNet(1, 8, (1, 2), 1, ())),
    "MLP": lambda: MLP(64, 16, 1),
    "NCSN": lambda: NCSN(1, 4, 50),
    "NCSNv2": lambda: NCSNv2(1, 4, scales=NoiseScales(0.01, 1.0, 50), normalization="VarianceNorm"),
    "ADM": lambda: ADM(1, 32, (1, 2), 1, (1,), head_channels=16, learn_sigma=True),
    "DiT": lambda: DiT(1, 4, 1, 8, 2, num_classes=2),
}
CLOCKS = {"UNet by noise level": "sigma", "NCSN": SMLDLabels(50), "NCSNv2": SMLDLabels(50), "ADM": TableLabels(50)}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("t", [0.5, torch.tensor([0.1, 0.9])], ids=["one", "each"])
def test_on_a_device_without_float64(name, t):
    net = NETWORKS[name]().eval()
    with Accelerator() as device:
        sde = TABLE if name == "ADM" else sf.VE() if name in CLOCKS else sf.VP()
        model = sf.ScoreModel(net.to(DEVICE), sde, "score", shape=(1, 8, 8), clock=CLOCKS.get(name))
        x = torch.zeros(2, 1, 8, 8).to(DEVICE)
        cond = {"label": torch.tensor([0, 1]).to(DEVICE)} if getattr(net, "num_classes", 0) else {}
        with torch.no_grad():
            assert isinstance(model.velocity(x, t, **cond), OnDevice)
        assert device.read == 0


def test_a_model_of_diffusers_on_a_device_without_float64():
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), add_attention=False,
    ).eval()  # fmt: skip
    with Accelerator() as device:
        model = sf.pretrained.from_diffusers(net.to(DEVICE), diffusers.DDIMScheduler())
        with torch.no_grad():
            assert isinstance(model.noise(torch.zeros(2, 1, 8, 8).to(DEVICE), 0.5), OnDevice)
        assert device.read == 0
