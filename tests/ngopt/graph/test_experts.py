"""Sparse experts, to which tokens go as the data decide."""

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

from ngopt import parameter_roles
from ngopt.graph.connectivity import components, unconnected
from tests.graph_checks import check
from tests.networks import FromFunction

TOKENS, WIDTH, HIDDEN, EXPERTS = 11, 6, 8, 3


class Experts(nn.Module):
    """The best two of three experts for each token, one expert after the other."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        layers = [
            (nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)
        ]
        self.experts = nn.ModuleList(nn.Sequential(a, nn.GELU(), b) for a, b in layers)

    def forward(self, x):
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            result[token] += weights[token, rank, None] * expert(x[token])
        return result


class Summed(Experts):
    """With a function for sums by index."""

    def forward(self, x):
        weights, chosen = self.gate(x).topk(1, -1)
        weights = weights.sigmoid()
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, rank = torch.where(chosen == number)
            result.index_add_(0, token, weights[token, rank, None] * expert(x[token]))
        return result


class Network(nn.Module):
    def __init__(self, experts):
        super().__init__()
        self.table = nn.Embedding(TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.experts, self.last = experts, nn.Linear(WIDTH, TOKENS)
        self.double()

    def forward(self, tokens):
        x = self.table(tokens).flatten(0, 1)
        return self.last(x + self.experts(self.norm(x)))


def tokens():
    return torch.arange(14).reshape(2, 7) * 5 % TOKENS


@pytest.mark.parametrize("experts", [Experts, Summed])
def test_experts_are_connected_and_symmetric(experts):
    graph = check((Network(experts()), tokens()))
    assert (unconnected(graph), len(set(components(graph)))) == ([], 1)


def mixtral(implementation):
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {
        "vocab_size": TOKENS,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 3,
        "max_position_embeddings": 16,
    }
    model = MixtralForCausalLM(MixtralConfig.from_dict(sizes))
    model.set_experts_implementation(implementation)
    return model


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_mixtral_is_whole(implementation):
    model = FromFunction(
        lambda m, tokens: m.model(input_ids=tokens, use_cache=False).logits,
        model=mixtral(implementation),
    )
    # its norms and gates compute in single precision whatever their inputs are
    graph = check((model, tokens()), tolerance=1e-4)
    assert (unconnected(graph), len(set(components(graph)))) == ([], 1)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_each_stacked_expert_is_a_matrix(implementation):
    """Gates and what they are multiplied with are two matrices for each expert."""
    roles = parameter_roles(mixtral(implementation), {"input_ids": tokens()})
    stacks = "model.layers.0.mlp.experts."
    for name, shape in (("gate_up_proj", (6, 12, 8)), ("down_proj", (3, 8, 12))):
        stack = roles[f"{stacks}{name}"]
        assert stack.role == "matrix"
        assert [block.view.shape for block in stack.blocks] == [shape]
