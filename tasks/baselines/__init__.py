"""Baselines of the tasks: published models, which read or edit networks."""

from tasks.baselines.dmc import DMC
from tasks.baselines.dwsnet import DWSNet
from tasks.baselines.mlp import FlatMLP
from tasks.baselines.nfn import NFNHNP, NFNNP
from tasks.baselines.probegen import ProbeGen
from tasks.baselines.set_network import SetNetwork
from tasks.baselines.statnn import StatNN

BASELINES = (StatNN, FlatMLP, SetNetwork, DMC, ProbeGen, NFNNP, NFNHNP, DWSNet)

__all__ = ["BASELINES"]
