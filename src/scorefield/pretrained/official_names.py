"""How the official code names the weights of our networks: one rule per official key, usable in both directions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from scorefield.nn.blocks import Attention, Combine, ResidualBlock
from scorefield.nn.embeddings import FourierFeatures
from scorefield.nn.refinenet import Refine, Residual, _RefineNet
from scorefield.nn.resample import ConvDown, ConvUp
from scorefield.nn.unet import UNet


@dataclass(frozen=True)
class Rule:
    """A tensor of another layout: its key, the key of ours that holds it, as which part (index, count), if transposed."""

    theirs: str
    ours: str
    part: tuple[int, int] | None = None
    axis: int = 0
    matrix: bool = False

    def pick(self, tensor: Tensor) -> Tensor:
        """The view of our tensor that is theirs."""
        if self.part is not None:
            index, parts = self.part
            tensor = tensor.chunk(parts, self.axis)[index]
            tensor = tensor.squeeze(0) if self.axis else tensor
        return tensor.flatten(1).t() if self.matrix else tensor


def official_rules(net: nn.Module) -> list[Rule]:
    """The official names of every weight of a `UNet`, `NCSN` or `NCSNv2` built from an official configuration.

    Raises:
        ValueError: the network has parts that the official code does not have.
    """
    if isinstance(net, UNet):
        return [rule for i, (name, unit) in enumerate(_units(net)) for rule in _unit_rules(i, name, unit)]
    if isinstance(net, _RefineNet):
        return list(_refinenet_rules(net))
    raise ValueError(f"{type(net).__name__} has no official counterpart; expected UNet, NCSN or NCSNv2")


def to_official(net: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under our names (weights, gradients, moments), renamed, split and transposed to the official ones."""
    return {rule.theirs: rule.pick(tensors[rule.ours]) for rule in official_rules(net)}


def _units(net: UNet) -> Iterator[tuple[str, nn.Module]]:
    """Our modules in the order of the official flat list."""
    if net.cond_channels or net.num_classes or net.dims != 2:
        raise ValueError("the official code has no classes, image conditions, signals or volumes")
    if net.conditioning is not None:
        if isinstance(net.conditioning.features, FourierFeatures):
            yield "conditioning.features", net.conditioning.features
        yield "conditioning.dense1", net.conditioning.dense1
        yield "conditioning.dense2", net.conditioning.dense2
    elif net.config["embedding"] == "fourier":
        yield "", nn.Identity()  # the official list has the frequencies there, unused
    yield "stem", net.stem
    for side in ("down", "middle", "up"):
        if side == "middle":
            for name in ("middle1", "middle_attn", "middle2"):
                yield name, getattr(net, name)
            continue
        for i, level in enumerate(getattr(net, side)):
            yield from _level_units(f"{side}.{i}", side, level)
    if net.head is not None:
        yield "head.norm", net.head.norm
        yield "head.conv", net.head.conv


def _level_units(at: str, side: str, level: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules of one resolution of a side, in the official order."""
    for j, block in enumerate(level.blocks):
        yield f"{at}.blocks.{j}", block
        if side == "down" and len(level.attns):
            yield f"{at}.attns.{j}", level.attns[j]
    if side == "up" and len(level.attns):
        yield f"{at}.attns.0", level.attns[0]
    if side == "down" and level.resample is not None:
        yield f"{at}.resample", level.resample
    if isinstance(level.pyramid, ConvDown | ConvUp):
        yield f"{at}.pyramid", level.pyramid
    if isinstance(level.merge, Combine):
        yield f"{at}.merge", level.merge
    elif level.merge is not None:
        yield f"{at}.merge.norm", level.merge.norm
        yield f"{at}.merge.conv", level.merge.conv
    if side == "up" and level.resample is not None:
        yield f"{at}.resample", level.resample


def _unit_rules(index: int, name: str, unit: nn.Module) -> Iterator[Rule]:
    at = f"all_modules.{index}"

    def both(official: str, ours: str) -> Iterator[Rule]:
        dot = f"{at}.{official}" if official else at
        own = f"{name}.{ours}" if ours else name
        yield Rule(f"{dot}.weight", f"{own}.weight")
        yield Rule(f"{dot}.bias", f"{own}.bias")

    match unit:
        case FourierFeatures():
            yield Rule(f"{at}.W", f"{name}.weight")
        case ResidualBlock():
            yield from both("GroupNorm_0", "norm1")
            yield from both("Conv_0", "conv1")
            if unit.embed is not None:
                yield from both("Dense_0", "embed")
            yield from both("GroupNorm_1", "norm2")
            yield from both("Conv_1", "conv2")
            if unit.shortcut is not None and unit.dense_shortcut:
                yield Rule(f"{at}.NIN_0.W", f"{name}.shortcut.weight", matrix=True)
                yield Rule(f"{at}.NIN_0.b", f"{name}.shortcut.bias")
            elif unit.shortcut is not None:
                yield from both("Conv_2", "shortcut")
        case Attention():
            yield from both("GroupNorm_0", "norm")
            for k in range(3):
                yield Rule(f"{at}.NIN_{k}.W", f"{name}.qkv.weight", part=(k, 3), matrix=True)
                yield Rule(f"{at}.NIN_{k}.b", f"{name}.qkv.bias", part=(k, 3))
            yield Rule(f"{at}.NIN_3.W", f"{name}.out.weight", matrix=True)
            yield Rule(f"{at}.NIN_3.b", f"{name}.out.bias")
        case ConvDown() | ConvUp():
            yield from both("Conv_0" if unit.filter is None else "Conv2d_0", "conv")
        case Combine():
            yield from both("Conv_0", "conv")
        case nn.Linear() | nn.Conv2d() | nn.GroupNorm():
            yield from both("", "")


_STAGES = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 3 31 4 5"}
_REFINES = {4: "1 2 3 4", 5: "1 2 3 4 5", 6: "1 2 31 3 4 5"}


def _refinenet_rules(net: _RefineNet) -> Iterator[Rule]:
    yield from _conv("begin_conv", "begin")
    yield from _norm(net, "normalizer", "norm")
    yield from _conv("end_conv", "end")
    count = len(net.stages)
    for i, stage in enumerate(_STAGES[count].split()):
        for j, block in enumerate(cast(nn.ModuleList, net.stages[i])):
            assert isinstance(block, Residual)
            yield from _residual_rules(net, f"res{stage}.{j}", f"stages.{i}.{j}", block)
    for i, stage in enumerate(_REFINES[count].split()):
        refine = net.refines[i]
        assert isinstance(refine, Refine)
        yield from _refine_rules(net, f"refine{stage}", f"refines.{i}", refine)


def _conv(official: str, ours: str, bias: bool = True) -> Iterator[Rule]:
    yield Rule(f"{official}.weight", f"{ours}.weight")
    if bias:
        yield Rule(f"{official}.bias", f"{ours}.bias")


def _norm(net: _RefineNet, official: str, ours: str) -> Iterator[Rule]:
    parts = net.norm.parts
    if net.num_labels:
        yield Rule(f"{official}.embed.weight", f"{ours}.table")
        return
    for k, name in enumerate(parts):
        yield Rule(f"{official}.{name}", f"{ours}.table", part=(k, len(parts)), axis=1)


def _residual_rules(net: _RefineNet, at: str, own: str, block: Residual) -> Iterator[Rule]:
    inner = ".conv" if block.pool else ""
    yield from _conv(f"{at}.conv1", f"{own}.conv1")
    yield from _norm(net, f"{at}.normalize2", f"{own}.norm2")
    yield from _conv(f"{at}.conv2{inner}", f"{own}.conv2")
    if block.shortcut is not None:
        yield from _conv(f"{at}.shortcut{inner}", f"{own}.shortcut")
    yield from _norm(net, f"{at}.normalize1", f"{own}.norm1")


def _refine_rules(net: _RefineNet, at: str, own: str, refine: Refine) -> Iterator[Rule]:
    for k, adapt in enumerate(refine.adapt):
        yield from _chain_rules(net, f"{at}.adapt_convs.{k}", f"{own}.adapt.{k}", adapt)
    yield from _chain_rules(net, f"{at}.output_convs", f"{own}.output", refine.output)
    for k in range(len(refine.adapt) if refine.fuse is not None else 0):
        yield from _conv(f"{at}.msf.convs.{k}", f"{own}.fuse.convs.{k}")
        if net.num_labels:
            yield from _norm(net, f"{at}.msf.norms.{k}", f"{own}.fuse.norms.{k}")
    for k in range(2):
        yield from _conv(f"{at}.crp.convs.{k}", f"{own}.pool.convs.{k}", bias=False)
        if net.num_labels:
            yield from _norm(net, f"{at}.crp.norms.{k}", f"{own}.pool.norms.{k}")


def _chain_rules(net: _RefineNet, official: str, ours: str, module: nn.Module) -> Iterator[Rule]:
    for k in range(len(module.convs)):  # type: ignore[arg-type]
        label = f"{official}.{k // 2 + 1}_{k % 2 + 1}"
        if net.num_labels:
            yield from _norm(net, f"{label}_norm", f"{ours}.norms.{k}")
        yield from _conv(f"{label}_conv", f"{ours}.convs.{k}", bias=False)
