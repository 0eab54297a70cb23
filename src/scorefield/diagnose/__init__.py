"""What is wrong with a model: how long to diffuse, whether its flow and its SDE agree, the way its samples take."""

from scorefield.diagnose.gap import FlowGap, flow_gap
from scorefield.diagnose.prior import fit_prior
from scorefield.diagnose.time import DiffusionTime, diffusion_time
from scorefield.diagnose.trajectory import Trajectory, trajectory
from scorefield.fokker_planck import fokker_planck_residual

__all__ = [
    "DiffusionTime",
    "FlowGap",
    "Trajectory",
    "diffusion_time",
    "fit_prior",
    "flow_gap",
    "fokker_planck_residual",
    "trajectory",
]
