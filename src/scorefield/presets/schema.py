"""What a configuration of the paper says, as frozen values; fields carry the names of the official configurations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from scorefield.model import ScoreModel
from scorefield.pretrained.load import is_discrete, official_model, official_sde
from scorefield.sde import GaussianSDE
from scorefield.solve.integrate import Solver
from scorefield.solve.pc import PC, AnnealedLangevin, Identity, Langevin
from scorefield.solve.reverse import Ancestral, EulerMaruyama, ReverseDiffusion

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Data:
    """The data set and how it is shown."""

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

    name: Literal["ncsnpp", "ddpm", "ncsn", "ncsnv2_64", "ncsnv2_128", "ncsnv2_256"] = "ncsnpp"
    nf: int = 128
    dropout: float = 0.1
    ema_rate: float = 0.999
    embedding_type: Literal["fourier", "positional"] = "fourier"
    nonlinearity: str = "swish"
    normalization: str = "GroupNorm"
    num_scales: int = 1000
    scale_by_sigma: bool = True
    sigma_min: float = 0.01
    sigma_max: float = 50
    sigma_begin: float | None = None
    beta_min: float | None = 0.1
    beta_max: float | None = 20.0


@dataclass(frozen=True)
class DDPM(Network):
    """The U-Net of Ho et al. 2020."""

    ch_mult: Sizes = (1, 2, 2, 2)
    num_res_blocks: int = 4
    attn_resolutions: Sizes = (16,)
    resamp_with_conv: bool = True
    conditional: bool = True
    conv_size: int | None = None


@dataclass(frozen=True)
class NCSNpp(DDPM):
    """NCSN++ and DDPM++: the U-Net of Song et al. 2021, appendix H."""

    resblock_type: Literal["biggan", "ddpm"] = "biggan"
    fir: bool = True
    fir_kernel: Sizes = (1, 3, 3, 1)
    fourier_scale: float | None = 16
    skip_rescale: bool = True
    progressive: Literal["none", "output_skip", "residual"] = "none"
    progressive_input: Literal["none", "input_skip", "residual"] = "residual"
    progressive_combine: Literal["sum", "cat"] = "sum"
    attention_type: str = "ddpm"
    init_scale: float = 0.0
    conv_size: int | None = 3


@dataclass(frozen=True)
class RefineNet(Network):
    """NCSN and NCSNv2 (Song & Ermon 2019, 2020)."""

    nonlinearity: str = "elu"
    normalization: str = "InstanceNorm++"
    interpolation: str = "bilinear"


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

    sde: Literal["vesde", "vpsde", "subvpsde"] | None = "vesde"
    loss: str | None = None
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

    def official(self) -> dict[str, Any]:
        """The configuration as the nested dict of the official code."""
        sections = {k: v for k, v in asdict(self).items() if isinstance(v, dict)}
        present = {k: {f: _plain(v) for f, v in s.items() if v is not None} for k, s in sections.items()}
        return present | {"seed": self.seed}

    @property
    def sde(self) -> GaussianSDE:
        """The SDE it was trained under."""
        return official_sde(self.official())

    @property
    def discrete(self) -> bool:
        """Whether it was trained on a ladder of noise levels (SMLD, DDPM) rather than in continuous time."""
        return is_discrete(self.official())

    def score_model(self) -> ScoreModel:
        """Its network with fresh weights, as a score model."""
        return official_model(self.official())

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
    return list(value) if isinstance(value, tuple) else value
