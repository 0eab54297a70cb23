"""Training that can be stopped at any moment and started again: configuration, loop, weight averages, checkpoints."""

import sys
from types import ModuleType
from typing import Any

from scorefield.train.config import OptimConfig, TrainConfig
from scorefield.train.ema import EMA
from scorefield.train.observe import Moment
from scorefield.train.page import write_report
from scorefield.train.posthoc import post_hoc_ema
from scorefield.train.run import RunInfo, load, read_run
from scorefield.train.trainer import Run, train

__all__ = [
    "EMA",
    "Moment",
    "OptimConfig",
    "Run",
    "RunInfo",
    "TrainConfig",
    "load",
    "post_hoc_ema",
    "read_run",
    "train",
    "write_report",
]


class _CallableModule(ModuleType):
    """`scorefield.train` is this package and also the function: whichever of the two was imported, it can be called."""

    def __call__(self, *args: Any, **options: Any) -> Run:
        return train(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
