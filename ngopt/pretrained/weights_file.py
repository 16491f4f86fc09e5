"""Weights files: safetensors with a base rule or a metanet.

The metadata name base rule, metanet, cooldown, recipe and measured table. Reading a
file uses no network and unpickles nothing. The default is `SoapConfig()` and has no
file.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ngopt.learned_step.predictor import LearnedStep, StepPredictor
from ngopt.metanets import METANETS, Metanet
from ngopt.metanets.imported import find_metanet, metanet_name
from ngopt.metanets.stepping.cooldown import Cooldown
from ngopt.pretrained.learned_optimizer import BASES, LearnedOptimizer
from ngopt.pretrained.tensor_files import digest, read_tensors, write_tensors
from ngopt.soap.soap import Soap

FORMAT = "ngopt-2"
FOLDER = Path(__file__).parent
DEFAULT = "default"
NONE = "none"  # the name that stands for no base rule, or for no metanet
# Metadata of tensors for a base rule: fingerprint of the config they were fitted to.
FITTED_TO = "fitted_to"


def list_pretrained() -> list[str]:
    """Names of the default and of the weights bundled in the package."""
    return sorted([DEFAULT, *(path.stem for path in FOLDER.glob("*.safetensors"))])


def load_pretrained(weights: str | os.PathLike = DEFAULT) -> LearnedOptimizer:
    """The learned optimizer of bundled weights (by name) or of a file (by path).

    Its metanet is in float32 on the CPU and needs no gradients. A metanet of your own,
    "module:Class", is loaded only if its module is already imported: reading a file
    imports nothing. Tensors of a base rule, as of "learned-step", apply to this
    version's constants; a UserWarning is given if they were fitted to others.

    Raises:
        ValueError: If there is no such name or file, if the file is damaged, or if its
            format, base rule, metanet or config is unknown in this version.
    """
    if weights == DEFAULT:
        return LearnedOptimizer(base=Soap())
    names = list_pretrained()
    path = FOLDER / f"{weights}.safetensors" if weights in names else Path(weights)
    if not path.is_file():
        raise ValueError(
            f"weights '{os.fspath(weights)}': expected one of {', '.join(names)}, or "
            "an existing weights file; got neither"
        )
    metadata, tensors = read_tensors(path, "weights file", FORMAT)
    try:
        learned = _read(metadata, tensors)
    except ValueError as error:
        raise ValueError(f"weights file '{path}': {error}") from None
    base = learned.base
    if base is not None and tensors and metadata.get(FITTED_TO) != _fingerprint(base):
        warnings.warn(
            f"weights file '{path}': its factors were fitted to an older version of "
            f"the rule '{base.name}'. They may no longer help; compare with "
            "weights='default'.",
            stacklevel=2,
        )
    return learned


def _read(metadata: dict[str, str], tensors: dict[str, Tensor]) -> LearnedOptimizer:
    """Raises ValueError, which does not name the file yet, as `load_pretrained`."""
    base_name = metadata["base"]
    if tensors and base_name in BASES:
        multiplier = LearnedStep(StepPredictor.of(tensors))
        base = BASES[base_name](multiplier=multiplier)
    else:
        base = _build("base rule", BASES, base_name, metadata["base_config"])
    name = metadata["metanet"]
    metanets = METANETS
    if ":" in name:
        metanets = {**METANETS, name: find_metanet(name, METANETS)}
    metanet = _build("metanet", metanets, name, metadata["config"])
    if metanet is not None:
        metanet.float()  # torch's default dtype may be another one
        try:
            metanet.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"tensors do not fit its config: {error}") from None
        metanet.requires_grad_(False)
    cooldown = None
    if "cooldown" in metadata:
        cooldown = Cooldown(**json.loads(metadata["cooldown"]))
    recipe = json.loads(metadata["recipe"])
    table = json.loads(metadata["table"])
    return LearnedOptimizer(base, metanet, cooldown, recipe, table)


def _build(kind: str, classes: Mapping[str, type], name: str, config: str) -> Any:
    """A base rule or a metanet from its name and config; None for "none"."""
    if name == NONE:
        return None
    if name not in classes:
        names = ", ".join([*classes, NONE])
        raise ValueError(f"expected a {kind} out of {names}; got {name!r}")
    cls: Any = classes[name]
    values = json.loads(config)
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = tuple(value)
    expected = {field.name for field in fields(cls.Config)}
    different = sorted(values.keys() ^ expected)
    if different:
        raise ValueError(
            f"expected the config of this version's {kind} '{name}'; got one that "
            f"differs in {', '.join(different)}"
        )
    return cls(cls.Config(**values))


def as_learned(weights: Any) -> LearnedOptimizer:
    """A name, a path, a metanet or a learned optimizer as a learned optimizer.

    Raises ValueError for anything else, and as `load_pretrained` does.
    """
    if isinstance(weights, LearnedOptimizer):
        return weights
    if isinstance(weights, Metanet):
        return LearnedOptimizer(metanet=weights)
    if not isinstance(weights, str | os.PathLike):
        raise ValueError(
            "NGOptimizer: weights: expected a name, a path, a LearnedOptimizer or a "
            f"metanet; got {type(weights).__name__}"
        )
    return load_pretrained(weights)


def save_pretrained(learned: LearnedOptimizer, path: str | os.PathLike) -> None:
    """Writes a weights file atomically.

    Raises:
        ValueError: For a multiplier of your own, which no file can store.
    """
    description = _description(learned)
    if "multiplier" in description:
        raise ValueError(
            "save_pretrained: expected no multiplier or a LearnedStep; got "
            f"{description['multiplier']}. Save the base rule without it."
        )
    metadata = {"format": FORMAT, **description}
    if learned.base is not None and _of_multiplier(learned):
        metadata["base_config"] = "{}"  # they apply to this version's constants
        metadata[FITTED_TO] = _fingerprint(learned.base)
    metadata["recipe"] = json.dumps(learned.recipe)
    metadata["table"] = json.dumps(learned.table)
    write_tensors(Path(path), metadata, tensors_of(learned))


def _fingerprint(base: Soap) -> str:
    """SHA-256 of the values of a base rule's config; names make no difference."""
    values = json.dumps([*asdict(base.config).values()])
    return hashlib.sha256(values.encode()).hexdigest()


def weights_hash(learned: LearnedOptimizer) -> str:
    """SHA-256 of base rule, metanet, their configs, cooldown and tensors.

    Recipe, table, and the metanet's device and dtype make no difference.
    """
    return digest(_description(learned), tensors_of(learned))


def has_hash(weights: Any, expected: str) -> bool:
    """Whether weights, in a form that `as_learned` takes, have this hash."""
    if weights is None or weights == expected:
        return False
    try:
        return weights_hash(as_learned(weights)) == expected
    except ValueError:
        return False


def _description(learned: LearnedOptimizer) -> dict[str, str]:
    """Metadata: names and configs of base rule, metanet and, if any, cooldown."""
    description = {"base": NONE, "base_config": "{}", "metanet": NONE, "config": "{}"}
    if learned.base is not None:
        description["base"] = learned.base.name
        description["base_config"] = json.dumps(asdict(learned.base.config))
        multiplier = getattr(learned.base, "multiplier", None)
        if multiplier is not None and not isinstance(multiplier, LearnedStep):
            description["multiplier"] = type(multiplier).__name__
    if learned.metanet is not None:
        description["metanet"] = metanet_name(learned.metanet, METANETS)
        description["config"] = json.dumps(asdict(learned.metanet.config))
    if learned.cooldown is not None:
        description["cooldown"] = json.dumps(asdict(learned.cooldown))
    return description


def tensors_of(learned: LearnedOptimizer) -> dict[str, Tensor]:
    """What is learned: float32 tensors on the CPU, by name."""
    if learned.metanet is not None:
        values = learned.metanet.state_dict()
    else:
        values = _of_multiplier(learned)
    tensors = {}
    for key, value in values.items():
        tensors[key] = value.detach().to("cpu", torch.float32).contiguous()
    return tensors


def _of_multiplier(learned: LearnedOptimizer) -> dict[str, Tensor]:
    """Tensors of a learned step size; {} without one."""
    multiplier = getattr(learned.base, "multiplier", None)
    is_learned = isinstance(multiplier, LearnedStep)
    return multiplier.predictor._asdict() if is_learned else {}
