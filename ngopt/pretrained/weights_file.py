"""Weights files: safetensors with a metanet, constants or factors of SOAP, or a rule
for one family of training runs.

The metadata name rule, config, cooldown, recipe and measured table. Reading a file uses
no network and unpickles nothing. The default is `SoapConfig()` and has no file.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngopt.functional import UpdateRule
from ngopt.learned_step.predictor import LearnedStep, StepPredictor
from ngopt.metanets import METANETS, Metanet
from ngopt.metanets.imported import find_metanet, metanet_name
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import LearnedOptimizer
from ngopt.pretrained.tensor_files import digest, read_tensors, write_tensors
from ngopt.soap.config import SoapConfig
from ngopt.soap.soap import Soap
from ngopt.specialized import storage
from ngopt.specialized.first_order import FirstOrder
from ngopt.user_warnings import warn

FORMAT = "ngopt-2"
FOLDER = Path(__file__).parent
DEFAULT = "default"
SOAP = "soap"  # the rule, and another name of the default
NONE = "none"  # the name that stands for no base rule, or for no metanet
# Metadata of factors for SOAP: fingerprint of the config they were fitted to.
FITTED_TO = "fitted_to"
SPECIALIZED = "specialized"  # metadata of a rule for one family


def list_pretrained() -> list[str]:
    """Names of the default and of the weights bundled in the package."""
    return sorted([DEFAULT, *(path.stem for path in FOLDER.glob("*.safetensors"))])


Pretrained = Soap | LearnedOptimizer | FirstOrder
"""What a weights file may contain."""


def load_pretrained(name: str | os.PathLike[str] = DEFAULT) -> Pretrained:
    """The rule of a bundled name ("soap" is the default) or of a weights file.

    Its metanet is in float32 on the CPU and needs no gradients. A metanet of your own,
    "module:Class", is loaded only if its module is already imported: reading a file
    imports nothing. Factors for SOAP, as of "learned-step", apply to this version's
    constants; a UserWarning is given if they were fitted to others.

    Raises:
        ValueError: If there is no such name or file, if the file is damaged, or if its
            format, rule, metanet or config is unknown in this version.
    """
    if name in (DEFAULT, SOAP):
        return Soap()
    names = list_pretrained()
    path = FOLDER / f"{name}.safetensors" if name in names else Path(name)
    if not path.is_file():
        raise ValueError(
            f"rule '{os.fspath(name)}': expected one of {', '.join(names)}, or an "
            "existing weights file; got neither"
        )
    metadata, tensors = read_tensors(path, "weights file", FORMAT)
    try:
        rule = _read(metadata, tensors)
    except ValueError as error:
        raise ValueError(f"weights file '{path}': {error}") from None
    is_fitted = isinstance(rule, Soap) and isinstance(rule.multiplier, LearnedStep)
    if is_fitted and metadata.get(FITTED_TO) != _fingerprint(SoapConfig()):
        warn(
            f"weights file '{path}': its factors were fitted to an older version of "
            "the rule 'soap'. They may no longer help; compare with rule='default'."
        )
    return rule


def _read(metadata: dict[str, str], tensors: dict[str, Tensor]) -> Pretrained:
    """Raises ValueError, which does not name the file yet, as `load_pretrained`."""
    recipe = json.loads(metadata["recipe"])
    table = json.loads(metadata["table"])
    name = metadata["metanet"]
    if SPECIALIZED in metadata:
        return storage.from_file(metadata[SPECIALIZED], tensors, recipe, table)
    if name == NONE:
        if metadata["base"] != SOAP:
            raise ValueError(f"expected rule '{SOAP}'; got {metadata['base']!r}")
        if tensors:
            return Soap(
                multiplier=LearnedStep(StepPredictor.of(tensors), recipe, table)
            )
        return Soap(_config(SOAP, SoapConfig, metadata["base_config"]))
    if metadata["base"] != NONE:
        base = metadata["base"]
        raise ValueError(f"expected no base rule beside a metanet; got {base!r}")
    cls = find_metanet(name, METANETS)
    metanet = cls(_config(name, cls.Config, metadata["config"]))
    metanet.float()  # torch's default dtype may be another one
    try:
        metanet.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"tensors do not fit its config: {error}") from None
    metanet.requires_grad_(False)
    cooldown = None
    if "cooldown" in metadata:
        cooldown = Cooldown(**json.loads(metadata["cooldown"]))
    return LearnedOptimizer(metanet, cooldown, recipe, table)


def _config(name: str, config_class: Any, config: str) -> Any:
    """The config of a rule or a metanet; config: JSON."""
    values = json.loads(config)
    lists = {key: tuple(x) for key, x in values.items() if isinstance(x, list)}
    values.update(lists)
    expected = {field.name for field in fields(config_class)}
    different = sorted(values.keys() ^ expected)
    if different:
        raise ValueError(
            f"expected the config of this version's '{name}'; got one that differs in "
            f"{', '.join(different)}"
        )
    return config_class(**values)


def as_rule(rule: Any) -> UpdateRule:
    """What `NGOptimizer(rule=)` takes, as a rule.

    Raises ValueError for anything else, and as `load_pretrained` does.
    """
    if isinstance(rule, SoapConfig):
        return Soap(rule)
    if isinstance(rule, Metanet):
        return LearnedOptimizer(rule)
    if isinstance(rule, UpdateRule):
        return rule
    if not isinstance(rule, str | os.PathLike):
        raise ValueError(
            "NGOptimizer: rule: expected a name, a path, a SoapConfig, a metanet or an "
            f"UpdateRule; got {type(rule).__name__}"
        )
    return load_pretrained(rule)


def save_pretrained(rule: Pretrained, path: str | os.PathLike[str]) -> None:
    """Writes a weights file atomically.

    Raises:
        ValueError: For a rule or a multiplier of your own, which no file can store.
    """
    is_specialized = storage.rates_of(rule) is not None
    if not (is_specialized or isinstance(rule, Soap | LearnedOptimizer)):
        raise ValueError(
            "save_pretrained: expected a Soap, a LearnedOptimizer or one with Rates; "
            f"got {type(rule).__name__}"
        )
    description = description_of(rule)
    if "multiplier" in description:
        raise ValueError(
            "save_pretrained: expected no multiplier or a LearnedStep; got "
            f"{description['multiplier']}. Save the rule without it."
        )
    metadata = {"format": FORMAT, **description}
    tensors = tensors_of(rule)
    if isinstance(rule, Soap) and tensors and not is_specialized:
        metadata["base_config"] = "{}"  # they apply to this version's constants
        metadata[FITTED_TO] = _fingerprint(rule.config)
    recipe, table = recipe_and_table(rule)
    metadata["recipe"] = json.dumps(recipe)
    metadata["table"] = json.dumps(table)
    write_tensors(Path(path), metadata, tensors)


def _fingerprint(config: Any) -> str:
    """SHA-256 of the values of a config; names make no difference."""
    values = json.dumps([*asdict(config).values()])
    return hashlib.sha256(values.encode()).hexdigest()


def weights_hash(rule: UpdateRule) -> str:
    """SHA-256 of a rule, metanet, their configs, cooldown and tensors.

    Names of constants, recipe, table, and the metanet's device and dtype make no
    difference.
    """
    description = description_of(rule)
    if isinstance(rule, Soap):
        description["base_config"] = _fingerprint(rule.config)
    return digest(description, tensors_of(rule))


def description_of(rule: UpdateRule) -> dict[str, str]:
    """Names and configs of rule, metanet and, if any, cooldown."""
    description = {"base": NONE, "base_config": "{}", "metanet": NONE, "config": "{}"}
    rates = storage.rates_of(rule)
    if rates is not None:
        description[SPECIALIZED] = storage.to_json(rule, rates)
    elif isinstance(rule, Soap):
        description["base"] = SOAP
        description["base_config"] = json.dumps(asdict(rule.config))
        multiplier = rule.multiplier
        if multiplier is not None and not isinstance(multiplier, LearnedStep):
            description["multiplier"] = type(multiplier).__name__
    elif isinstance(rule, LearnedOptimizer):
        description["metanet"] = metanet_name(rule.metanet, METANETS)
        description["config"] = json.dumps(asdict(rule.metanet.config))
        if rule.cooldown is not None:
            description["cooldown"] = json.dumps(asdict(rule.cooldown))
    else:
        description["base"] = type(rule).__name__
    return description


def header_of(rule: UpdateRule) -> dict[str, str]:
    """What a `state_dict` stores of a rule: its description, and a hash of weights."""
    weights = tensors_of(rule)
    return {**description_of(rule), "weights": digest({}, weights) if weights else NONE}


def tensors_of(rule: UpdateRule) -> dict[str, Tensor]:
    """What is learned: float32 tensors on the CPU, by name."""
    values: Mapping[str, Tensor] = {}
    rates = storage.rates_of(rule)
    if rates is not None:
        values = storage.tensors_of(rates)
    elif isinstance(rule, LearnedOptimizer):
        values = rule.metanet.state_dict()
    elif isinstance(rule, Soap) and isinstance(rule.multiplier, LearnedStep):
        values = rule.multiplier.predictor._asdict()
    tensors = {}
    for key, value in values.items():
        tensors[key] = value.detach().to("cpu", torch.float32).contiguous()
    return tensors


def recipe_and_table(rule: UpdateRule) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """How what is learned was made, and what was measured with it; JSON."""
    source = getattr(rule, "multiplier", rule)
    return getattr(source, "recipe", {"stages": []}), getattr(source, "table", {})
