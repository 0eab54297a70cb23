"""The configurations of guided diffusion (Dhariwal & Nichol 2021) that inverse-problem papers start from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from scorefield.errors import InputError, closest
from scorefield.ladder import TableLabels, TableSDE
from scorefield.model import ScoreModel
from scorefield.nn import ADM, levels_at
from scorefield.presets.official import from_official, read_json

WIDTHS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}
"""Width of each level, by image size, where `channel_mult` does not say it."""


@dataclass(frozen=True)
class Guided:
    """One configuration of guided diffusion, its fields named as the flags of the authors' scripts; -1 means "not given"."""

    needed: ClassVar[tuple[str, ...]] = ("image_size", "num_channels", "num_res_blocks", "attention_resolutions")

    image_size: int = 256
    num_channels: int = 256
    num_res_blocks: int = 2
    channel_mult: str = ""
    attention_resolutions: str = "32,16,8"
    learn_sigma: bool = True
    class_cond: bool = False
    dropout: float = 0.0
    num_heads: int = 4
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = True
    resblock_updown: bool = True
    use_new_attention_order: bool = False
    diffusion_steps: int = 1000
    noise_schedule: Literal["linear", "cosine"] = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False

    @classmethod
    def from_flags(cls, flags: Mapping[str, Any]) -> Guided:
        """The configuration of flags in a mapping, as the configuration files of inverse-problem papers hold them.

        Flags that are absent have the defaults of the authors' scripts; those that say how to run, such as use_fp16, and not
        what the network is, are left aside.

        Raises:
            ValueError: a flag that is needed is missing, or has a value that the scripts do not take; the message names it.
        """
        default = {"learn_sigma": False, "resblock_updown": False}
        lists = {k: flags[k] for k in ("channel_mult", "attention_resolutions") if flags.get(k) is not None}
        read = {**default, **flags, **{k: _words(v) for k, v in lists.items()}}
        made = from_official({"flags": read}, {"flags": cls})
        config: Guided = made["flags"]
        if config.num_heads_upsample not in (-1, config.num_heads) and config.num_head_channels == -1:
            raise ValueError("flags.num_heads_upsample: other heads on the way up than down are not supported")
        return config

    def network(self) -> ADM:
        """Its network with fresh weights."""
        widths = tuple(_numbers("channel_mult", self.channel_mult)) or WIDTHS.get(self.image_size)
        if widths is None:
            raise ValueError(f"flags.image_size={self.image_size}: give channel_mult, such as '1,2,2,2'")
        resolutions = [int(r) for r in _numbers("attention_resolutions", self.attention_resolutions)]
        return ADM(
            3,
            self.num_channels,
            widths,
            self.num_res_blocks,
            levels_at(resolutions, self.image_size, len(widths)),
            num_classes=1000 if self.class_cond else 0,
            learn_sigma=self.learn_sigma,
            dropout=self.dropout,
            heads=self.num_heads,
            head_channels=None if self.num_head_channels == -1 else self.num_head_channels,
            scale_shift=self.use_scale_shift_norm,
            resblock_updown=self.resblock_updown,
            new_attention_order=self.use_new_attention_order,
        )

    @property
    def sde(self) -> TableSDE:
        """The SDE through its table of alphas (Nichol & Dhariwal 2021, eq. 17 for the cosine; Ho et al. 2020 for the line)."""
        n = self.diffusion_steps
        steps = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
        if self.noise_schedule == "cosine":
            bars = torch.cos((steps + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bars[1:] / bars[:-1]).clamp_max(0.999)
        else:
            betas = torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64, device="cpu")
        return TableSDE(tuple(torch.exp(torch.log1p(-betas).cumsum(0)).tolist()))

    def score_model(self, net: ADM | None = None) -> ScoreModel:
        """Its network as a score model in evaluation mode; `net` is one that `network` made, None makes it now."""
        n = self.diffusion_steps
        clock = TableLabels(n, 1000 / n if self.rescale_timesteps else 1.0)
        shape = (3, self.image_size, self.image_size)
        predict: Literal["data", "noise"] = "data" if self.predict_xstart else "noise"
        return ScoreModel(self.network() if net is None else net, self.sde, predict, shape=shape, clock=clock).eval()


def _words(value: Any) -> Any:
    return (
        ",".join(map(str, value))
        if isinstance(value, list | tuple)
        else str(value)
        if isinstance(value, int)
        else value
    )


def _numbers(name: str, words: str) -> list[float]:
    try:
        return [float(word) for word in words.split(",") if word]
    except ValueError:
        raise ValueError(f"flags.{name}={words!r}: expected numbers with commas between them") from None


_IMAGENET = Guided(num_head_channels=64)
_LSUN = replace(_IMAGENET, dropout=0.1)
GUIDED: dict[str, Guided] = {
    "adm/ffhq256": replace(_IMAGENET, num_channels=128, num_res_blocks=1, attention_resolutions="16"),
    "adm/imagenet256_unconditional": _IMAGENET,
    "adm/imagenet256": replace(_IMAGENET, class_cond=True),
    "adm/imagenet512": replace(_IMAGENET, class_cond=True, image_size=512),
    "adm/imagenet128": replace(_IMAGENET, class_cond=True, image_size=128, num_head_channels=-1),
    "adm/imagenet64": Guided(
        image_size=64, num_channels=192, num_res_blocks=3, num_head_channels=64, class_cond=True, dropout=0.1,
        use_new_attention_order=True, noise_schedule="cosine",
    ),
    "adm/lsun_bedroom": _LSUN,
    "adm/lsun_cat": _LSUN,
    "adm/lsun_horse": _LSUN,
}  # fmt: skip
"""The authors' published models, and that of FFHQ by Chung et al. 2023 (diffusion posterior sampling)."""


def guided(config: Guided | Mapping[str, Any] | str | Path) -> Guided:
    """The configuration that is meant: itself, flags in a mapping or a JSON file, or a name such as "adm/ffhq256".

    Raises:
        InputError: the name is unknown, or the file cannot be read.
        ValueError: the flags are not those of guided diffusion.
    """
    if isinstance(config, Guided):
        return config
    if isinstance(config, Mapping):
        return Guided.from_flags(config)
    if str(config).endswith(".json"):
        return Guided.from_flags(read_json(config))
    if config not in GUIDED:
        raise InputError(f"preset {config!r} is unknown{closest(str(config), GUIDED)}")
    return GUIDED[str(config)]


def is_guided(config: str) -> bool:
    """Whether a name or a JSON file means a configuration of guided diffusion rather than one of the paper."""
    return config.startswith("adm/") or (config.endswith(".json") and "num_channels" in read_json(config))
