"""What a configuration of the paper says, as frozen values; fields carry the names of the official configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from scorefield.ladder import DDPMScore, SMLDLabels
from scorefield.model import Clock, ScoreModel
from scorefield.nn import NCSN, NCSNv2, NoiseScales, UNet, ddpm, levels_at
from scorefield.presets.official import from_official
from scorefield.sde import GaussianSDE
from scorefield.sdes import VE, VP, SubVP
from scorefield.solve.integrate import Solver
from scorefield.solve.pc import PC, AnnealedLangevin, Identity, Langevin
from scorefield.solve.reverse import Ancestral, EulerMaruyama, ReverseDiffusion
from scorefield.views import Predict

Sizes = tuple[int, ...]
Nonlinearity = Literal["swish", "elu", "relu", "lrelu"]


@dataclass(frozen=True)
class Data:
    """The data set and how it is shown."""

    needed: ClassVar[tuple[str, ...]] = ("image_size", "num_channels", "centered")

    dataset: str = "CIFAR10"
    category: str | None = None
    image_size: int = 32
    num_channels: int = 3
    centered: bool = False
    """Shown in [-1, 1] rather than [0, 1]."""
    random_flip: bool = True
    uniform_dequantization: bool = False


@dataclass(frozen=True)
class Network:
    """What every network has, with the noise levels it was made for and the rate of its weight average."""

    needed: ClassVar[tuple[str, ...]] = ("name", "nf", "num_scales", "sigma_min", "sigma_max", "nonlinearity")
    """Fields without which an official configuration does not say what the network is."""

    name: Literal["ncsnpp", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256"] = "ncsnpp"
    nf: int = 128
    dropout: float = 0.1
    ema_rate: float = 0.999
    embedding_type: Literal["fourier", "positional"] = "fourier"
    nonlinearity: Nonlinearity = "swish"
    normalization: str = "GroupNorm"
    num_scales: int = 1000
    scale_by_sigma: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50
    sigma_begin: float | None = None
    beta_min: float | None = 0.1
    beta_max: float | None = 20.0

    @property
    def scales(self) -> NoiseScales:
        """The noise level of each label."""
        return NoiseScales(self.sigma_min, self.sigma_max, self.num_scales)

    def build(self, data: Data) -> nn.Module:
        """The network with fresh weights, called with the official labels."""
        raise NotImplementedError


@dataclass(frozen=True)
class DDPM(Network):
    """The U-Net of Ho et al. 2020."""

    needed: ClassVar[tuple[str, ...]] = (
        *Network.needed,
        *("dropout", "scale_by_sigma", "ch_mult", "num_res_blocks", "attn_resolutions", "resamp_with_conv"),
    )

    ch_mult: Sizes = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sizes = (16,)
    resamp_with_conv: bool = True
    conditional: bool = True
    conv_size: int | None = None

    def build(self, data: Data) -> nn.Module:
        """The network with fresh weights; it reads the label even where `conditional` is False, as the official one."""
        return ddpm(*self._widths(data), **self._shared(data, labelled=True))

    def _widths(self, data: Data) -> tuple[int, int, Sizes, int, Sizes]:
        attn = levels_at(self.attn_resolutions, data.image_size, len(self.ch_mult))
        return data.num_channels, self.nf, self.ch_mult, self.num_res_blocks, attn

    def _shared(self, data: Data, labelled: bool) -> dict[str, Any]:
        return {
            "dropout": self.dropout,
            "resamp_with_conv": self.resamp_with_conv,
            "nonlinearity": self.nonlinearity,
            "scale_by_sigma": self.scale_by_sigma,
            "scales": self.scales if self.scale_by_sigma and labelled else None,
            "centered": data.centered,
            "time_scale": 1.0,
        }


@dataclass(frozen=True)
class NCSNpp(DDPM):
    """NCSN++ and DDPM++: the U-Net of Song et al. 2021, appendix H."""

    needed: ClassVar[tuple[str, ...]] = (
        *DDPM.needed,
        *("embedding_type", "conditional", "resblock_type", "fir", "skip_rescale", "progressive", "progressive_input"),
        *("progressive_combine", "init_scale"),
    )

    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    fir: bool = True
    fir_kernel: tuple[Any, ...] = (1, 3, 3, 1)
    """Taps, or square rows of them."""
    fourier_scale: float | None = 16
    skip_rescale: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    attention_type: str = "ddpm"
    init_scale: float = 0.0
    conv_size: int | None = 3

    def build(self, data: Data) -> nn.Module:
        """The network with fresh weights."""
        return UNet(
            *self._widths(data),
            embedding=self.embedding_type,
            fourier_scale=16.0 if self.fourier_scale is None else self.fourier_scale,
            conditional=self.conditional,
            resblock=self.resblock_type,
            fir=self.fir_kernel if self.fir else None,
            skip_rescale=self.skip_rescale,
            progressive=self.progressive,
            progressive_input=self.progressive_input,
            combine=self.progressive_combine,
            init_scale=self.init_scale,
            **self._shared(data, labelled=self.embedding_type == "positional"),
        )


@dataclass(frozen=True)
class RefineNet(Network):
    """NCSN and NCSNv2 (Song & Ermon 2019, 2020)."""

    needed: ClassVar[tuple[str, ...]] = (*Network.needed, "normalization")

    nonlinearity: Nonlinearity = "elu"
    normalization: Literal["InstanceNorm++", "InstanceNorm", "VarianceNorm", "GroupNorm", "NoneNorm"] = "InstanceNorm++"
    interpolation: str = "bilinear"

    def build(self, data: Data) -> nn.Module:
        """The network with fresh weights."""
        shared: dict[str, Any] = {
            "centered": data.centered,
            "nonlinearity": self.nonlinearity,
            "normalization": self.normalization,
        }
        if self.name == "ncsn":
            return NCSN(data.num_channels, self.nf, self.num_scales, **shared)
        size: Any = int(self.name.removeprefix("ncsnv2_"))
        return NCSNv2(data.num_channels, self.nf, size, self.scales, **shared)


@dataclass(frozen=True)
class Optim:
    """The optimiser; a grad_clip below 0 does not clip."""

    optimizer: str = "Adam"
    lr: float = 2e-4
    beta1: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 0
    amsgrad: bool | None = None
    warmup: int = 5000
    grad_clip: float = 1.0


@dataclass(frozen=True)
class Sampling:
    """The sampler of the configuration."""

    method: str = "pc"
    predictor: Literal["reverse_diffusion", "euler_maruyama", "ancestral_sampling", "none"] = "reverse_diffusion"
    corrector: Literal["langevin", "ald", "none"] = "langevin"
    snr: float = 0.16
    n_steps_each: int = 1
    noise_removal: bool = True
    probability_flow: bool = False


@dataclass(frozen=True)
class Training:
    """The SDE, the objective, and the schedule of training."""

    needed: ClassVar[tuple[str, ...]] = ("continuous",)

    sde: Literal["vesde", "vpsde", "subvpsde"] | None = "vesde"
    loss: Literal["vesde", "vpsde", "subvpsde"] | None = None
    """Where one configuration names its SDE."""
    continuous: bool = True
    continuouse: bool | None = None
    """Misspelt in one configuration, whose network is discrete all the same."""
    likelihood_weighting: bool = False
    reduce_mean: bool = False
    """Mean of the loss over pixels, rather than half the sum."""
    batch_size: int = 128
    n_iters: int = 1300001
    eval_freq: int = 100
    log_freq: int = 50
    snapshot_freq: int = 50000
    snapshot_freq_for_preemption: int = 10000
    snapshot_sampling: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Which checkpoints the authors evaluated, and how."""

    batch_size: int = 1024
    begin_ckpt: int = 9
    end_ckpt: int = 26
    num_samples: int = 50000
    bpd_dataset: str | None = "test"
    enable_bpd: bool | None = False
    enable_loss: bool | None = True
    enable_sampling: bool | None = False


@dataclass(frozen=True)
class Preset:
    """One configuration of the paper.

    Main arguments:
        name: its official name.
        data, model, training, optim, sampling, eval: its sections; a field that is None is absent from it.
    """

    name: str
    data: Data = Data()
    model: Network = NCSNpp()
    training: Training = Training()
    optim: Optim = Optim()
    sampling: Sampling = Sampling()
    eval: Evaluation = Evaluation()
    seed: int = 42

    def but(self, name: str, network: Network | None = None, **sections: Mapping[str, Any]) -> Preset:
        """The preset under another name, with some fields of some sections replaced, and perhaps another network."""
        base = self if network is None else replace(self, model=network)
        changed = {key: replace(getattr(base, key), **values) for key, values in sections.items()}
        return replace(base, name=name, **changed)

    @classmethod
    def from_official(cls, config: Mapping[str, Any], name: str = "") -> Preset:
        """The preset of an official configuration: nested mappings, of which "data", "model" and "training" are needed.

        Fields that the official code does not have are left aside; those that it has and the configuration lacks have their
        defaults, unless network or SDE depend on them.

        Raises:
            ValueError: a needed field is missing, or a value is not one that the official code takes; the message names it.
        """
        model = config.get("model")
        kind = model.get("name") if isinstance(model, Mapping) else None
        network = {"ncsnpp": NCSNpp, "ddpm": DDPM}.get(str(kind), RefineNet)
        sections = {"data": Data, "model": network, "training": Training, "optim": Optim, "sampling": Sampling}
        return cls(name, **from_official(config, {**sections, "eval": Evaluation}), seed=config.get("seed", 42))

    def official(self) -> dict[str, Any]:
        """The configuration as the nested dict of the official code."""
        sections = {k: v for k, v in asdict(self).items() if isinstance(v, dict)}
        present = {k: {f: _plain(v) for f, v in s.items() if v is not None} for k, s in sections.items()}
        return present | {"seed": self.seed}

    @property
    def sde(self) -> GaussianSDE:
        """The SDE it was trained under."""
        kind = self.training.sde or self.training.loss
        if kind == "vesde":
            return VE(sigma_min=self.model.sigma_min, sigma_max=self.model.sigma_max)
        low, high = self.model.beta_min, self.model.beta_max
        if low is None or high is None:
            raise ValueError("the configuration lacks model.beta_min or model.beta_max, which its SDE needs")
        return (VP if kind == "vpsde" else SubVP)(beta_min=low, beta_max=high)

    @property
    def discrete(self) -> bool:
        """Whether it was trained on a ladder of noise levels (SMLD, DDPM) rather than in continuous time."""
        # The networks of NCSN have tables of labels, whatever `continuous` says: one configuration misspells it.
        return isinstance(self.model, RefineNet) or not (self.training.continuous or self.training.sde == "subvpsde")

    def network(self) -> nn.Module:
        """Its network with fresh weights, called with the official labels.

        Raises:
            ValueError: its options exclude each other.
        """
        if isinstance(self.model, NCSNpp) and self.model.embedding_type == "fourier" and self.discrete:
            raise ValueError(
                "model.embedding_type='fourier' reads noise levels, and training.continuous=False gives labels; "
                "set it to 'positional'"
            )
        return self.model.build(self.data)

    def score_model(self, net: nn.Module | None = None) -> ScoreModel:
        """Its network as a score model in evaluation mode; `net` is one that `network` made, None makes it now."""
        net, sde = self.network() if net is None else net, self.sde
        predict: Predict = "score"
        clock: Clock = 999.0
        if isinstance(sde, VE):
            clock = SMLDLabels(self.model.num_scales) if self.discrete else "sigma"
        elif isinstance(sde, VP) and self.discrete:
            net, clock = DDPMScore(net, sde.beta_min, sde.beta_max, self.model.num_scales), "t"
        else:
            predict = "noise"
        shape = (self.data.num_channels, self.data.image_size, self.data.image_size)
        return ScoreModel(net, sde, predict, shape=shape, clock=clock).eval()

    def sampler(self) -> Solver:
        """Its sampler; `steps` of them make a sample."""
        plan = self.sampling
        variance: Literal["posterior", "transition"] = "posterior" if self.training.sde == "vesde" else "transition"
        predictors: dict[str, Solver] = {
            "reverse_diffusion": ReverseDiffusion(),
            "euler_maruyama": EulerMaruyama(),
            "ancestral_sampling": Ancestral(variance=variance),
            "none": Identity(),
        }
        predictor = predictors[plan.predictor]
        if plan.corrector == "none":
            return predictor
        corrector = Langevin if plan.corrector == "langevin" else AnnealedLangevin
        return PC(predictor, corrector(snr=plan.snr, steps=plan.n_steps_each))

    @property
    def steps(self) -> int:
        """Steps of its sampler."""
        return self.model.num_scales


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple) else value
