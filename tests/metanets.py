"""Metanets for tests."""

from ngopt.graph import NeuralGraph
from ngopt.metanets import METANETS, Metanet
from ngopt.metanets.nfn import NeuralFunctional, NFNConfig, chain_of

# Sizes that keep tests fast; in small networks all neurons attend to all.
SMALL = {
    "lstm": {"width": 6},
    "ng-gnn": {"width": 8},
    "ng-t": {"width": 8, "heads": 2, "complete_up_to": 40},
}


def metanet_for(name: str, graph: NeuralGraph) -> Metanet:
    """A metanet of the default size, in float64; "nfn" for the layers of the graph."""
    if name == NeuralFunctional.name:
        kernels = chain_of(graph)
        assert kernels is not None
        return NeuralFunctional(NFNConfig(kernels=kernels)).double()
    return METANETS[name]().double()


def small_metanet(name: str = "ng-gnn") -> Metanet:
    cls = METANETS[name]
    return cls(cls.Config(d_out=3, hidden=(8,), **SMALL[name])).double()
