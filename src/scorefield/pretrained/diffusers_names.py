"""U-Nets of ours in the layout of diffusers: UNet2DModel with its names and options, of Skip blocks (NCSN++) or plain."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from scorefield.nn.blocks import Attention, Combine, Head, ResidualBlock
from scorefield.nn.embeddings import FourierFeatures, PositionalFeatures
from scorefield.nn.resample import ConvDown, ConvUp
from scorefield.nn.unet import UNet
from scorefield.pretrained.official_names import Rule

_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}

# What every network of Skip blocks has in common; the first release of the package wrote None for the group counts.
_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "class_embed_type": None,
    "downsample_padding": 1,
    "mid_block_scale_factor": math.sqrt(2),
    "norm_eps": 1e-6,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "fourier",
}


def current_name(key: str) -> str:
    """A key of any release of diffusers, under its name in the present one."""
    parts = key.split(".")
    if "attentions" in parts and len(parts) > 1 and parts[-2] in _OLD:
        parts[-2] = _OLD[parts[-2]]
    return ".".join(parts)


def unet_from_diffusers(config: Mapping[str, Any]) -> UNet:
    """The network of a UNet2DModel configuration, with fresh weights.

    Raises:
        ValueError: it is no NCSN++ of Skip blocks; one line names the option.
    """
    _check_skip(config)
    down, widths = list(config["down_block_types"]), list(config["block_out_channels"])
    nf = widths[0]
    attn = tuple(i for i, kind in enumerate(down) if kind == "AttnSkipDownBlock2D")
    _check_groups(config, [widths[i] for i in attn], widths)
    return UNet(
        3,
        nf,
        tuple(w // nf for w in widths),
        config["layers_per_block"],
        attn,
        dropout=config.get("dropout", 0.0),
        embedding="fourier",
        fir=(1, 3, 3, 1),
        progressive="output_skip",
        progressive_input="input_skip",
        scale_by_sigma=True,
        centered=not config.get("center_input_sample", False),
    )


def _check_skip(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that is not one of Skip blocks as NCSN++ has them."""
    for key, value in _FIXED.items():
        got = config.get(key, value)
        if got != value and not (isinstance(value, float) and math.isclose(got, value, rel_tol=1e-6)):
            raise ValueError(f"{key}={got!r} in config.json is not that of NCSN++; expected {value!r}")
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    known = ("SkipDownBlock2D", "AttnSkipDownBlock2D")
    if any(kind not in known for kind in down) or up != [kind.replace("Down", "Up") for kind in reversed(down)]:
        raise ValueError("down_block_types and up_block_types in config.json must be matching Skip blocks")
    widths = list(config["block_out_channels"])
    if any(w % widths[0] for w in widths):
        raise ValueError(f"block_out_channels={widths} in config.json must be multiples of the first")
    if config["in_channels"] != 3 or config["out_channels"] != 3:
        raise ValueError("in_channels and out_channels in config.json must be 3, as the Skip blocks are written")


_SKIP: dict[str, Any] = {
    "in_channels": (3,),
    "out_channels": (None, 3),
    "embedding": ("fourier",),
    "resblock": ("biggan",),
    "skip_rescale": (True,),
    "progressive": ("output_skip",),
    "progressive_input": ("input_skip",),
    "combine": ("sum",),
    "scale_by_sigma": (True,),
    "scales": (None,),
    "max_groups": (None,),
    "fir": ((1, 3, 3, 1),),
}
_PLAIN: dict[str, Any] = {
    "embedding": ("positional",),
    "resblock": ("ddpm",),
    "resamp_with_conv": (True,),
    "skip_rescale": (False,),
    "progressive": ("none",),
    "progressive_input": ("none",),
    "scale_by_sigma": (False,),
    "fir": (None,),
}
_BOTH: dict[str, Any] = {
    "dims": (2,),
    "conditional": (True,),
    "num_classes": (0,),
    "cond_channels": (0,),
    "nonlinearity": ("swish",),
}


def diffusers_config(net: UNet, size: int | None = None) -> dict[str, Any]:
    """The UNet2DModel configuration of a network: of Skip blocks where it reads noise levels, else of plain ones.

    Raises:
        ValueError: diffusers has no blocks for it; one line names the option.
    """
    options, skip = net.config, net.config["embedding"] == "fourier"
    _check_options(options, skip)
    channels = options["in_channels"]
    widths = [options["nf"] * m for m in options["ch_mult"]]
    attn, levels = set(options["attn"]), range(len(widths))
    block = "SkipDownBlock2D" if skip else "DownBlock2D"
    kinds = [f"{'Attn' if i in attn else ''}{block}" for i in levels]
    config = {
        "_class_name": "UNet2DModel",
        **(_FIXED if skip else _FIXED | {"mid_block_scale_factor": 1, "time_embedding_type": "positional"}),
        "attention_head_dim": None,
        "block_out_channels": widths,
        "center_input_sample": not options["centered"],
        "down_block_types": kinds,
        "dropout": options["dropout"],
        "in_channels": channels,
        "layers_per_block": options["num_res_blocks"],
        "norm_num_groups": None if skip else _groups(net),
        "out_channels": channels,
        "sample_size": size,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(kinds)],
    }
    if skip:
        _check_groups(config, [widths[i] for i in attn], widths)
    else:
        config |= {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
    return config


def _check_options(options: Mapping[str, Any], skip: bool) -> None:
    """Refuse a network that diffusers has no blocks for."""
    for key, allowed in ((_SKIP if skip else _PLAIN) | _BOTH).items():
        got = tuple(options[key]) if isinstance(options[key], list | tuple) else options[key]
        if got not in allowed:
            kind = "NCSN++" if skip else "DDPM"
            raise ValueError(f"{key}={options[key]!r}: the diffusers layout of {kind} has only {allowed[-1]!r}")
    channels, exit_channels = options["in_channels"], options["out_channels"] or options["in_channels"]
    if exit_channels != channels or options["ch_mult"][0] != 1:
        raise ValueError(
            f"out_channels={exit_channels}, ch_mult={options['ch_mult']}: diffusers needs out_channels="
            f"{channels} and a first multiple of 1"
        )


def _groups(net: UNet) -> int:
    """The one number of groups that all normalisations have."""
    found = {module.num_groups for module in net.modules() if isinstance(module, nn.GroupNorm)}
    if len(found) > 1:
        said = " and ".join(map(str, sorted(found)))
        raise ValueError(
            f"max_groups={net.config['max_groups']}: the normalisations have {said} groups, diffusers one number"
        )
    return found.pop()


def _check_groups(config: Mapping[str, Any], attended: Sequence[int], widths: Sequence[int]) -> None:
    """Skip blocks fix 32 groups, and their attention's heads by width, where NCSN++ lets the width decide."""
    head = config.get("attention_head_dim")
    if head is not None and any(width > head for width in [*attended, widths[-1]]):
        raise ValueError(f"attention_head_dim={head}: the attention of NCSN++ has one head of full width")
    if any(width < 128 for width in attended):
        raise ValueError(f"attention at width {min(attended)}: the Skip blocks of diffusers need 128 at least")
    groups = config.get("norm_num_groups")
    if groups is not None and any(min(width // 4, 32) != groups for width in (widths[0], widths[-1])):
        raise ValueError(f"norm_num_groups={groups}: NCSN++ has a quarter of the width, and 32 at most")


def diffusers_rules(net: UNet) -> list[Rule]:
    """The diffusers names of every weight of a network for which `diffusers_config` exists."""
    return [rule for theirs, ours, module in _modules(net) for rule in _rules(theirs, ours, module)]


def idle_attention(net: UNet) -> dict[str, Tensor]:
    """Attentions that diffusers has and we do not, one after every block on the way up but the last: they change nothing."""
    weights: dict[str, Tensor] = {}
    skip, blocks = net.head is None, net.config["num_res_blocks"]
    for i, level in enumerate(net.up):
        width = net.config["nf"] * net.config["ch_mult"][net.levels - 1 - i]
        for j in range(blocks if not skip and len(cast(nn.ModuleList, level.attns)) else 0):
            at = f"up_blocks.{i}.attentions.{j}"
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                weights |= {f"{at}.{name}.weight": torch.zeros(width, width), f"{at}.{name}.bias": torch.zeros(width)}
            weights |= {f"{at}.group_norm.weight": torch.ones(width), f"{at}.group_norm.bias": torch.zeros(width)}
    return weights


def _modules(net: UNet) -> Iterator[tuple[str, str, nn.Module]]:
    assert net.conditioning is not None
    assert net.conditioning.features is not None
    yield "conv_in", "stem", net.stem
    yield "time_proj", "conditioning.features", net.conditioning.features
    yield "time_embedding.linear_1", "conditioning.dense1", net.conditioning.dense1
    yield "time_embedding.linear_2", "conditioning.dense2", net.conditioning.dense2
    yield "mid_block.resnets.0", "middle1", net.middle1
    yield "mid_block.attentions.0", "middle_attn", net.middle_attn
    yield "mid_block.resnets.1", "middle2", net.middle2
    for side in ("down", "up"):
        for i, level in enumerate(getattr(net, side)):
            yield from _level(net, side, i, level)
    if net.head is not None:
        yield "conv_norm_out", "head.norm", net.head.norm
        yield "conv_out", "head.conv", net.head.conv


def _level(net: UNet, side: str, i: int, level: Any) -> Iterator[tuple[str, str, nn.Module]]:
    theirs, ours = f"{side}_blocks.{i}", f"{side}.{i}"
    for j, block in enumerate(level.blocks):
        yield f"{theirs}.resnets.{j}", f"{ours}.blocks.{j}", block
    # Plain blocks of diffusers have an attention after each block on the way up; ours, one a level, is the last of them.
    first = len(level.blocks) - len(level.attns) if side == "up" and net.head is not None else 0
    for j, attn in enumerate(level.attns):
        yield f"{theirs}.attentions.{first + j}", f"{ours}.attns.{j}", attn
    if isinstance(level.resample, ConvDown | ConvUp):
        yield f"{theirs}.{side}samplers.0.conv", f"{ours}.resample.conv", level.resample.conv
    elif level.resample is not None:
        yield f"{theirs}.resnet_{side}", f"{ours}.resample", level.resample
    if isinstance(level.merge, Combine):
        yield f"{theirs}.skip_conv", f"{ours}.merge.conv", level.merge.conv
    elif isinstance(level.merge, Head):
        last = i == net.levels - 1  # what the topmost level adds to the pyramid is the exit of UNet2DModel
        norm, conv = ("conv_norm_out", "conv_out") if last else (f"{theirs}.skip_norm", f"{theirs}.skip_conv")
        yield norm, f"{ours}.merge.norm", level.merge.norm
        yield conv, f"{ours}.merge.conv", level.merge.conv


def _rules(theirs: str, ours: str, module: nn.Module) -> Iterator[Rule]:
    pairs: list[tuple[str, str]] = [("", "")]
    match module:
        case FourierFeatures():
            yield Rule(f"{theirs}.weight", f"{ours}.weight")
            return
        case PositionalFeatures():
            return
        case ResidualBlock():
            pairs = [("norm1", "norm1"), ("conv1", "conv1"), ("time_emb_proj", "embed"), ("norm2", "norm2")]
            pairs += [("conv2", "conv2")] + ([("conv_shortcut", "shortcut")] if module.shortcut is not None else [])
        case Attention():
            for k, name in enumerate(("to_q", "to_k", "to_v")):
                yield Rule(f"{theirs}.{name}.weight", f"{ours}.qkv.weight", part=(k, 3))
                yield Rule(f"{theirs}.{name}.bias", f"{ours}.qkv.bias", part=(k, 3))
            pairs = [("group_norm", "norm"), ("to_out.0", "out")]
    for a, b in pairs:
        for kind in ("weight", "bias"):
            yield Rule(".".join(filter(None, (theirs, a, kind))), ".".join(filter(None, (ours, b, kind))))
