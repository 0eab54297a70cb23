"""Training that can be stopped at any moment and started again: configuration, loop, weight averages, checkpoints."""

from scorefield.training.averages import EMA, post_hoc_ema
from scorefield.training.config import OptimConfig, TrainConfig
from scorefield.training.monitor import Moment
from scorefield.training.page import write_report
from scorefield.training.run import RunInfo, load, read_run
from scorefield.training.trainer import Run, train

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
