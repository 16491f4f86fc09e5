"""Optimizers by name: baselines with grids of learning rates, and learned ones."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from schedulefree import AdamWScheduleFree
from torch import nn
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LinearLR

from meta_train.comparison.amuse import Amuse
from meta_train.comparison.celo2 import Celo2WithAdam
from meta_train.training.rules import as_learned
from ngopt import NGOptimizer, UpdateRule, list_pretrained, load_pretrained
from ngopt.metanets import METANETS
from ngopt.metanets.imported import find_metanet
from ngopt.pretrained import weights_hash
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.race.muon import MuonWithAdam
from ngopt.race.optimizers import (
    WARMUP,
    WEIGHT_DECAY,
    Built,
    Make,
    OptimizerSpec,
    from_torch,
    soap,
    with_cosine,
)
from ngopt.schedule import cosine_schedule

ADAMW_WEIGHT_DECAY = 0.1  # as in most recipes for transformers

# Suffixes of a weights name.
OPTIONS = ":traced", ":bfloat16", ":open", ":scheduled"
TRACED, BFLOAT16, OPEN, SCHEDULED = OPTIONS
ARGUMENT = r":(?P<key>scale|weight_decay)=(?P<value>\d+\.?\d*|\.\d+)"
OPTION = re.compile(f"({'|'.join([*OPTIONS, ARGUMENT])})$")
# Adam trains them, as Muon's author recommends (on gpt-text the loss is .1 lower).
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)

# Spaced by a factor of two or three. Short runs need high rates, SIRENs low ones.
ADAM_LRS = (0.001, 0.003, 0.006, 0.01, 0.02, 0.04, 0.08)
MUON_LRS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
SOAP_LRS = (0.003, 0.01, 0.02, 0.04, 0.08)
# On small networks; its authors use 3e-5 to 3e-4 on large ones, and 1e-3 in between.
CELO2_LRS = (0.0001, 0.0003, 0.001, 0.003, 0.01)
SCHEDULE_FREE_LRS = (0.001, 0.003, 0.01, 0.02, 0.05, 0.1)
# For all other problems: fine-tuning needs the lowest rates, vectors that begin at
# zero the highest.
WIDE_LRS = (1e-5, 3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WIDE_MUON_LRS = (3e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class ComparedOptimizer(OptimizerSpec):
    """A baseline or a learned optimizer.

    weights: SHA-256 of a learned optimizer's weights, else None.
    traced: whether the graph is traced without `:traced` in the name, because the
        metanet reads connections.
    """

    weights: str | None = None
    traced: bool = False

    def refusal(self, model: nn.Module) -> str | None:
        """The reason why it cannot train a network; None if it can."""
        if self.weights is None:
            return None
        optimizer, _ = self.build(model, None, 1)
        assert isinstance(optimizer, NGOptimizer)
        try:
            if isinstance(optimizer.rule, LearnedOptimizer):
                optimizer.rule.metanet.check(optimizer.graph)
        except ValueError as error:
            return str(error)
        return None


def load_optimizer(name: str) -> ComparedOptimizer:
    """A baseline of `OPTIMIZERS`, `WIDE` or `RIVALS`, or a learned optimizer.

    name: of a baseline or of bundled weights, or the path of a weights file. Weights
    may have suffixes:
        ":traced": the graph is traced, not inferred from names and shapes. Metanets
            that read connections always trace it.
        ":bfloat16": the metanet computes in bfloat16.
        ":open": without total_steps.
        ":scheduled": without total_steps, and a scheduler decays the learning rate to
            zero, as in Hugging Face's Trainer.
        ":scale=2", ":weight_decay=1": arguments.

    Raises ValueError if the name is unknown, a package that it needs is missing, or the
    weights cannot be loaded.
    """
    baselines = {**OPTIMIZERS, **WIDE, **RIVALS}
    if name in baselines:
        baselines[name].check()
        return baselines[name]
    weights, options, settings = _split_options(name)
    bundled = list_pretrained()
    if weights not in bundled and not Path(weights).is_file():
        known = ", ".join([*baselines, *bundled])
        raise ValueError(
            f"optimizer '{name}': expected one of {known}, or the path of an existing "
            "weights file"
        )
    rule = load_pretrained(weights)
    is_traced = reads_connections(rule)
    scale = settings.pop("scale", 1.0)
    all_options = options | {TRACED} if is_traced else options
    return ComparedOptimizer(
        name,
        partial(_learned, rule, all_options, settings),
        lr=scale,
        weights=weights_hash(rule),
        traced=is_traced and TRACED not in options,
    )


def import_metanet(name: str | None) -> None:
    """Imports module:Class of your own metanet, so that weights can be loaded."""
    if name is not None:
        find_metanet(name, METANETS, may_import=True)


def load_learned(weights: str, metanet: str | None) -> LearnedOptimizer:
    """Bundled weights of a metanet or those of a file.

    metanet: see `import_metanet`. Raises ValueError for weights of another rule.
    """
    import_metanet(metanet)
    return as_learned(load_pretrained(weights))


def reads_connections(rule: UpdateRule) -> bool:
    """Whether updates depend on the edges of the neural graph."""
    return isinstance(rule, LearnedOptimizer) and rule.metanet.d_context > 0


def _split_options(name: str) -> tuple[str, set[str], dict[str, Any]]:
    """Splits a name into weights, options and arguments."""
    options: set[str] = set()
    settings: dict[str, Any] = {}
    while match := OPTION.search(name):
        if match["key"]:
            settings[match["key"]] = float(match["value"])
        else:
            options.add(match[0])
        name = name.removesuffix(match[0])
    return name, options, settings


def _constant(make: Make) -> Callable[[nn.Module, float, int], Built]:
    """Without a schedule."""
    return lambda model, lr, total_steps: (make(model, lr), None)


def _schedule_free(model: nn.Module, lr: float, total_steps: int) -> Built:
    """AdamW with averaged weights and no schedule (Defazio et al. 2024).

    `eval()` puts the averaged weights into the model, `train()` the others.
    """
    warmup = round(WARMUP * total_steps)
    optimizer = AdamWScheduleFree(model.parameters(), lr, warmup_steps=warmup)
    optimizer.train()
    return optimizer, None


def _beside_adam(kind: Callable[..., Optimizer], **options: Any) -> Make:
    """An optimizer of matrices and kernels, with Adam for embeddings and vectors."""

    def make(model: nn.Module, lr: float) -> Optimizer:
        return kind(model.parameters(), lr, _embeddings(model), **options)

    return make


def _prodigy(model: nn.Module, lr: float) -> Optimizer:
    """Without a learning rate to tune (Mishchenko and Defazio 2024). Its authors have a
    cosine schedule, and `safeguard_warmup` with a warm-up."""
    prodigy = import_module("prodigyopt").Prodigy
    return prodigy(model.parameters(), lr=lr, safeguard_warmup=True)


def _ademamix(model: nn.Module, lr: float, total_steps: int) -> Built:
    """AdamW with a second, slow momentum, whose share and decay grow over the run
    (Pagliardini et al. 2025)."""
    kind = import_module("pytorch_optimizer").AdEMAMix
    optimizer = kind(model.parameters(), lr=lr, t_alpha_beta3=total_steps)
    return optimizer, cosine_schedule(optimizer, total_steps, WARMUP)


def _amuse(model: nn.Module, lr: float, total_steps: int) -> Built:
    warmup = round(WARMUP * total_steps)
    return Amuse(model.parameters(), lr, warmup, _embeddings(model)), None


def _embeddings(model: nn.Module) -> list[nn.Parameter]:
    modules = [module for module in model.modules() if isinstance(module, EMBEDDINGS)]
    return [p for module in modules for p in module.parameters()]


def _learned(
    rule: UpdateRule,
    options: set[str],
    settings: Mapping[str, Any],
    model: nn.Module,
    scale: float,
    total_steps: int,
) -> Built:
    optimizer = NGOptimizer(
        model.named_parameters(),
        scale=scale,
        rule=rule,
        total_steps=None if options & {OPEN, SCHEDULED} else total_steps,
        **settings,
        model=model if TRACED in options else None,
        compute_dtype=torch.bfloat16 if BFLOAT16 in options else None,
    )
    if SCHEDULED in options:
        return optimizer, LinearLR(optimizer, 1.0, 0.0, total_steps)
    return optimizer, None


_adam = _constant(from_torch(Adam))
_adam_cosine = with_cosine(from_torch(Adam))
_adamw_cosine = with_cosine(from_torch(AdamW, weight_decay=ADAMW_WEIGHT_DECAY))
_adamw_wide = with_cosine(from_torch(AdamW, weight_decay=WEIGHT_DECAY))
# beta1 = .5 as for GANs (Radford et al. 2016)
_adam_games = with_cosine(from_torch(Adam, betas=(0.5, 0.999)))
_muon_cosine = with_cosine(_beside_adam(MuonWithAdam))
# torch's Muon with updates of AdamW's size, so that it takes AdamW's rate
_muon_at_adams_rate = _beside_adam(MuonWithAdam, adjust_lr_fn="match_rms_adamw")
_kl_soap = partial(soap, kind="KLSOAP")
_celo2_cosine = with_cosine(_beside_adam(Celo2WithAdam))
_celo2_base = with_cosine(_beside_adam(Celo2WithAdam, orthogonalize=False))


def _by_name(*specs: ComparedOptimizer) -> dict[str, ComparedOptimizer]:
    return {spec.name: spec for spec in specs}


OPTIMIZERS = _by_name(
    ComparedOptimizer("adam", _adam, ADAM_LRS),
    ComparedOptimizer("adam-cosine", _adam_cosine, ADAM_LRS),
    ComparedOptimizer("adamw-cosine", _adamw_cosine, ADAM_LRS),
    ComparedOptimizer("schedule-free", _schedule_free, SCHEDULE_FREE_LRS),
    ComparedOptimizer("muon-cosine", _muon_cosine, MUON_LRS),
    ComparedOptimizer("soap-cosine", with_cosine(soap), SOAP_LRS),
    ComparedOptimizer("kl-soap-cosine", with_cosine(_kl_soap), SOAP_LRS),
    ComparedOptimizer("adam-default", _adam, lr=0.001),  # torch's
    ComparedOptimizer("muon-default", _muon_cosine, lr=0.02),  # its author's
)

# Learned optimizers of others, and untuned ones with their authors' settings.
RIVALS = _by_name(
    ComparedOptimizer("celo2", _celo2_cosine, CELO2_LRS),
    ComparedOptimizer("celo2-base", _celo2_base, CELO2_LRS),
    ComparedOptimizer("celo2-default", _celo2_cosine, lr=0.001),
    ComparedOptimizer("adamw-default", _constant(from_torch(AdamW)), lr=0.001),
    ComparedOptimizer("soap-default", _constant(soap), lr=0.003, needs="heavyball"),
    ComparedOptimizer("schedule-free-default", _schedule_free, lr=0.0025),
    ComparedOptimizer("amuse-default", _amuse, lr=0.01),
    ComparedOptimizer("prodigy", with_cosine(_prodigy), needs="prodigyopt"),
    ComparedOptimizer(
        "ademamix-default", _ademamix, lr=0.001, needs="pytorch_optimizer"
    ),
    ComparedOptimizer("muon-adamw-rate", with_cosine(_muon_at_adams_rate), lr=0.001),
)

# With grids for any problem, for `meta_train.problems.situations`.
WIDE = _by_name(
    ComparedOptimizer("adam-wide", _adam, WIDE_LRS),
    ComparedOptimizer("adam-games", _adam_games, WIDE_LRS),
    ComparedOptimizer("adam-cosine-wide", _adam_cosine, WIDE_LRS),
    ComparedOptimizer("adamw-wide", _adamw_wide, WIDE_LRS),
    ComparedOptimizer("muon-wide", _muon_cosine, WIDE_MUON_LRS),
)
