"""`ngopt.audit` on optimizers made by other libraries, right and wrong ones."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ngopt

TOKENS = torch.arange(8).expand(2, 8)


class Block(nn.Module):
    """Attention with separate q, k, v, or with all in one matrix; a gated unit with
    separate or with fused halves."""

    def __init__(self, width: int = 16, is_fused: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.is_fused = is_fused
        if is_fused:
            self.qkv = nn.Linear(width, 3 * width)
            self.w13 = nn.Linear(width, 4 * width, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
            self.w1 = nn.Linear(width, 2 * width, bias=False)
            self.w3 = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.w2 = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        parts = (
            self.qkv(h).chunk(3, -1)
            if self.is_fused
            else (self.q(h), self.k(h), self.v(h))
        )
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = (
            self.w13(x).chunk(2, -1) if self.is_fused else (self.w1(x), self.w3(x))
        )
        return x + self.w2(nn.functional.silu(gate) * up)


class Decoder(nn.Module):
    def __init__(self, is_fused: bool = False):
        super().__init__()
        self.tok = nn.Embedding(20, 16)
        self.blocks = nn.Sequential(Block(is_fused=is_fused), Block(is_fused=is_fused))
        self.ln = nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.ln(self.blocks(self.tok(tokens))))


class MuonWithAuxAdam(torch.optim.SGD):
    """Has the groups of K. Jordan's class: `use_muon` in each."""


class OptimizersContainer:
    """As torchtitan's, a list of optimizers that is no optimizer."""

    def __init__(self, *optimizers: torch.optim.Optimizer):
        self.optimizers = list(optimizers)


def muon_and_adamw(
    model: nn.Module, is_hidden: Callable[[str, Tensor], bool], decay: float = 0.0
) -> list[torch.optim.Optimizer]:
    named = list(model.named_parameters())
    hidden = [p for name, p in named if is_hidden(name, p)]
    others = [p for name, p in named if not is_hidden(name, p)]
    adamw = torch.optim.AdamW(others, weight_decay=decay)
    return [torch.optim.Muon(hidden), adamw]


def by_dimension(name: str, p: Tensor) -> bool:
    return p.dim() == 2


def by_usual_names(name: str, p: Tensor) -> bool:
    return p.dim() == 2 and "tok" not in name and "head" not in name


def found(optimizer: Any, model: nn.Module) -> dict[str, str]:
    """Name of each wrong parameter -> what is wrong; "" -> of no parameter."""
    result = ngopt.audit(optimizer, model, TOKENS)
    wrong = {p.name: "; ".join(p.problems) for p in result.parameters if p.problems}
    if result.problems:
        wrong[""] = "; ".join(result.problems)
    assert result.is_right == (not wrong)
    json.dumps(result.to_json())
    return wrong


@pytest.fixture
def model() -> Decoder:
    return Decoder()


# ------------------------------------------------------------------ right


def test_muon_by_names(model):
    assert found(muon_and_adamw(model, by_usual_names), model) == {}


def test_groups_of_ngopt(model):
    groups = ngopt.optimizer_groups(model, TOKENS)
    hidden = [group for group in groups if group["role"] == "matrix"]
    others = [group for group in groups if group["role"] != "matrix"]
    optimizers = torch.optim.Muon(hidden), torch.optim.AdamW(others)
    assert found(OptimizersContainer(*optimizers), model) == {}


def test_trainer_of_transformers(model):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    arguments = transformers.TrainingArguments(
        output_dir="unused", weight_decay=0.1, report_to=[], use_cpu=True
    )
    trainer = transformers.Trainer(model, arguments)
    assert found(trainer.create_optimizer(), model) == {}


def test_heavyball_soap(model):
    heavyball = pytest.importorskip("heavyball")
    assert (
        found(heavyball.SOAP(model.parameters(), lr=1e-3, weight_decay=0), model) == {}
    )


def test_ngopt_itself(model):
    assert found(ngopt.NGOptimizer(model.named_parameters()), model) == {}


def test_timm_without_decay_of_vectors(model):
    timm = pytest.importorskip("timm.optim")
    optimizer = timm.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1)
    assert found(optimizer, model) == {}


# ------------------------------------------------------------------ wrong


def test_embedding_by_dimension(model):
    wrong = found(muon_and_adamw(model, by_dimension), model)
    assert wrong == {"tok.weight": "an embedding, orthogonalized by Muon"}


def test_fused_queries_keys_and_values():
    model = Decoder(is_fused=True)
    wrong = found(muon_and_adamw(model, by_usual_names), model)
    assert wrong == {
        f"blocks.{i}.{name}.weight": f"{n} matrices, orthogonalized as one by Muon"
        for i in range(2)
        for name, n in (("qkv", 3), ("w13", 2))
    }


def test_pattern_that_misses_names(model):
    # as w[123] does not match w13
    is_hidden = lambda name, p: p.dim() == 2 and "blocks" in name and "w1" not in name  # noqa: E731
    wrong = found(muon_and_adamw(model, is_hidden), model)
    assert wrong == {
        f"blocks.{i}.w1.weight": "a hidden matrix, with an elementwise update of AdamW"
        for i in range(2)
    }


def test_flag_that_is_never_set(model):
    # every parameter falls to Adam, as under a wrapper that renames parameters
    groups = [{"params": list(model.parameters()), "use_muon": False}]
    wrong = found(MuonWithAuxAdam(groups, lr=0.1), model)
    assert {name for name in wrong if "elementwise" in wrong[name]} == {
        name for name, p in model.named_parameters() if by_usual_names(name, p)
    }


def test_vector_with_the_flag(model):
    groups = [
        {
            "params": [p for p in model.parameters() if p is not model.tok.weight],
            "use_muon": True,
        },
        {"params": [model.tok.weight], "use_muon": False},
    ]
    wrong = found(MuonWithAuxAdam(groups, lr=0.1), model)
    vectors = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert wrong.keys() == vectors
    assert set(wrong.values()) == {"no matrix, orthogonalized by MuonWithAuxAdam"}


def test_flag_of_a_parameter(model):
    # DeepSpeed marks parameters, not groups
    for name, p in model.named_parameters():
        p.use_muon = p.dim() == 2 and "head" not in name
    wrong = found(MuonWithAuxAdam(model.parameters(), lr=0.1), model)
    assert wrong == {"tok.weight": "an embedding, orthogonalized by MuonWithAuxAdam"}


def test_parameter_in_none(model):
    kept = [p for name, p in model.named_parameters() if name != "head.weight"]
    assert found(torch.optim.SGD(kept), model) == {"head.weight": "no optimizer has it"}


def test_parameter_in_two(model):
    muon, adamw = muon_and_adamw(model, by_usual_names)
    adamw.add_param_group({"params": [model.blocks[0].out.weight]})
    wrong = found([muon, adamw], model)["blocks.0.out.weight"]
    assert wrong.startswith("it is 2 times in optimizers: AdamW and Muon")


def test_decay_of_norms_and_biases(model):
    wrong = found(torch.optim.AdamW(model.parameters()), model)
    vectors = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert wrong.keys() == vectors
    assert wrong["ln.weight"] == "weight decay of 0.01 on a norm"
    assert wrong["blocks.0.q.bias"] == "weight decay of 0.01 on a bias"


def test_timm_with_decay_of_vectors(model):
    timm = pytest.importorskip("timm.optim")
    optimizer = timm.create_optimizer_v2(
        model, "adamw", lr=1e-3, weight_decay=0.1, filter_bias_and_bn=False
    )
    assert found(optimizer, model)["ln.bias"] == "weight decay of 0.1 on a norm"


def test_timm_muon_takes_tables(model):
    timm = pytest.importorskip("timm.optim")
    optimizer = timm.create_optimizer_v2(model, "muon", lr=1e-3, weight_decay=0.1)
    wrong = found(optimizer, model)
    assert wrong == {"tok.weight": "an embedding, orthogonalized by Muon"}


def test_optimizer_of_another_model(model):
    wrong = found(torch.optim.SGD(Decoder().parameters()), model)
    assert wrong[""].startswith("SGD has 30 parameters that the model has not")
    assert wrong.pop("") and set(wrong.values()) == {"no optimizer has it"}


def test_wrapped_optimizer(model):
    muon, adamw = muon_and_adamw(model, by_dimension)
    wrapper = SimpleNamespace(_inner=muon, param_groups=muon.param_groups)
    assert found({"main": [wrapper, adamw]}, model).keys() == {"tok.weight"}


def test_optimizer_that_splits_parameters():
    model = Decoder(is_fused=True)
    optimizers = muon_and_adamw(model, by_usual_names)
    assert ngopt.audit(optimizers, model, TOKENS, splits=True).is_right


def test_dion_says_its_algorithm(model):
    class Dion(torch.optim.SGD):
        pass

    matrices = [p for name, p in model.named_parameters() if by_usual_names(name, p)]
    others = [p for name, p in model.named_parameters() if not by_usual_names(name, p)]
    groups = [{"params": matrices}, {"params": others, "algorithm": "adamw"}]
    assert found(Dion(groups, lr=0.1), model) == {}
    groups[1]["algorithm"] = "muon"
    assert "tok.weight" in found(Dion(groups, lr=0.1), model)


# ------------------------------------------------------------------ the report


def test_table_merges_layers(model):
    text = str(ngopt.audit(torch.optim.AdamW(model.parameters()), model, TOKENS))
    assert "blocks.*.q.weight (2)" in text
    assert "note: no optimizer of matrices is there, such as Muon or SOAP" in text
    lines = text.splitlines()
    assert lines[-3] == "30 parameters: 14 problems"
    assert lines[-2:] == [
        "  8 x weight decay of 0.01 on a bias",
        "  6 x weight decay of 0.01 on a norm",
    ]


def test_the_worst_comes_first(model):
    model = Decoder(is_fused=True)
    text = str(ngopt.audit(muon_and_adamw(model, by_usual_names), model, TOKENS))
    assert text.splitlines()[-4:] == [
        "20 parameters: 4 problems",
        "  2 x 3 matrices, orthogonalized as one by Muon",
        "  2 x 2 matrices, orthogonalized as one by Muon",
        "ngopt.BlockwiseOptimizer runs an optimizer on each matrix in a parameter.",
    ]


def test_frozen_parameters_are_left_out(model):
    model.tok.requires_grad_(False)
    result = ngopt.audit(muon_and_adamw(model, by_dimension), model, TOKENS)
    assert result.is_right
    assert "tok.weight" not in {p.name for p in result.parameters}


@pytest.mark.parametrize("wrong", [None, 3, [], {}])
def test_expects_an_optimizer(model, wrong):
    with pytest.raises(ValueError, match="audit: expected an optimizer"):
        ngopt.audit(wrong, model, TOKENS)


def test_expects_a_module(model):
    with pytest.raises(TypeError, match="audit: model: expected a torch.nn.Module"):
        ngopt.audit(torch.optim.SGD(model.parameters()), "model")  # type: ignore
