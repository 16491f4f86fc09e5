"""All problems by name, in lists for development, validation and test.

`catalogue.csv` is their table, see `problem_tables`. A name has the network, the data
(m: MNIST, fm: FashionMNIST, c: CIFAR-10, text) and the side of the images. Horizons are
chosen so that a run takes some seconds of one core.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from meta_train.problems import situations
from meta_train.problems.families import CnnFamily
from meta_train.problems.objectives import (
    CONTRAST,
    PREDICT_QUANTILES,
    RECONSTRUCT,
    VARIATIONAL,
)
from meta_train.problems.problem_tables import read_problems
from meta_train.problems.supervised import CLASSIFY, REGRESS, SupervisedProblem

CONSTRUCTORS = {
    "classify": partial(SupervisedProblem, objective=CLASSIFY),
    "contrast": partial(SupervisedProblem, objective=CONTRAST),
    "predict_quantiles": partial(SupervisedProblem, objective=PREDICT_QUANTILES),
    "reconstruct": partial(SupervisedProblem, objective=RECONSTRUCT),
    "regress": partial(SupervisedProblem, objective=REGRESS),
    "variational": partial(SupervisedProblem, objective=VARIATIONAL),
}

PROBLEMS: dict[str, SupervisedProblem] = {}
_META_TRAINING: dict[str, SupervisedProblem] = {}
_names: dict[str, list[str]] = {}
for given, problem in read_problems(Path(__file__).with_suffix(".csv"), CONSTRUCTORS):
    problems = _META_TRAINING if given == "meta-training" else PROBLEMS
    problems[problem.name] = problem
    _names.setdefault(given, []).append(problem.name)

# For meta-training only: a family in which each seed is another network, and a wide
# network on few pixels. The wide one is as fast as fm-16, and covers wider networks.
_family = CnnFamily(**{**vars(PROBLEMS["fm-16"]), "name": "fm-cnns"})
META_TRAINING = {_family.name: _family, **_META_TRAINING}

# for choosing hyperparameters and weights of learned optimizers
DEVELOPMENT = tuple(_names["development"])
# for deciding between the chosen ones
META_VALIDATION = tuple(_names["meta-validation"])
# Measured once, at the end; nothing is chosen on them. The first ten are of families
# that are in neither of the lists above, the others have other sizes and data.
META_TEST = tuple(_names["meta-test"])
# Kofinas et al. 2024, Table 2; nothing is chosen on the second
PAPER = ("fm-16", *_names["paper"])
# fm-16 with other sizes and horizons; nothing is chosen on them
BEYOND_THE_PAPER = tuple(_names["beyond"])
LISTS = {
    "development": DEVELOPMENT,
    "meta-validation": META_VALIDATION,
    "meta-test": META_TEST,
    "paper": PAPER,
    "beyond": BEYOND_THE_PAPER,
    "situations": situations.DEVELOPING,
    "situations-validation": situations.VALIDATING,
    "situations-test": situations.TESTING,
    "situations-real": situations.REAL,
}
