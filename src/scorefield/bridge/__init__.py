"""Processes with two ends: bridges, restoration of pairs, interpolants of any two samples, Schrodinger bridges."""

from scorefield.bridge.interpolant import InterpolantModel, InterpolantSDE, interpolant_loss
from scorefield.bridge.paired import BridgeAncestral, BridgeModel, bridge_loss
from scorefield.bridge.process import I2SB, Bridge
from scorefield.bridge.schrodinger import SchrodingerBridge, gaussian_bridge, markovian_projection, schrodinger_bridge

__all__ = [
    "I2SB",
    "Bridge",
    "BridgeAncestral",
    "BridgeModel",
    "InterpolantModel",
    "InterpolantSDE",
    "SchrodingerBridge",
    "bridge_loss",
    "gaussian_bridge",
    "interpolant_loss",
    "markovian_projection",
    "schrodinger_bridge",
]
