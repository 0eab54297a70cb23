"""Training that can be stopped at any moment and started again: configuration, loop, weight averages, checkpoints."""

import sys
from types import ModuleType
from typing import Any

from scorefield.train.config import OptimConfig, TrainConfig
from scorefield.train.ema import EMA
from scorefield.train.run import RunInfo, load, read_run
from scorefield.train.trainer import Run, train

__all__ = ["EMA", "OptimConfig", "Run", "RunInfo", "TrainConfig", "load", "read_run", "train"]


class _CallableModule(ModuleType):
    """`scorefield.train` is this package and also the function: whichever of the two was imported, it can be called."""

    def __call__(self, *args: Any, **options: Any) -> Run:
        return train(*args, **options)


sys.modules[__name__].__class__ = _CallableModule
