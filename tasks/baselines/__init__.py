"""Baselines of the tasks: published models, which read or edit networks."""

from tasks.baselines.dmc import DMC, DMCConfig
from tasks.baselines.dwsnet import DWSNet, DWSNetConfig
from tasks.baselines.equivariant import EquivariantConfig
from tasks.baselines.mlp import FlatMLP, FlatMLPConfig
from tasks.baselines.nfn import NFNHNP, NFNNP
from tasks.baselines.probegen import ProbeGen, ProbeGenConfig
from tasks.baselines.set_network import SetNetwork, SetNetworkConfig
from tasks.baselines.statnn import StatNN, StatNNConfig

BASELINES = {
    model.name: (config, model)
    for config, model in (
        (StatNNConfig, StatNN),
        (FlatMLPConfig, FlatMLP),
        (SetNetworkConfig, SetNetwork),
        (DMCConfig, DMC),
        (ProbeGenConfig, ProbeGen),
        (EquivariantConfig, NFNNP),
        (EquivariantConfig, NFNHNP),
        (DWSNetConfig, DWSNet),
    )
}
"""Configuration and class of every model, by name."""

__all__ = ["BASELINES"]
