"""All problems by name, in lists for development, validation and test.

`catalogue.csv` is their table, see `problem_tables`. A name has the network, the data
(m: MNIST, fm: FashionMNIST, c: CIFAR-10, text) and the side of the images. Horizons are
chosen so that a run takes some seconds of one core.
"""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from harness.random import seeded
from meta_train.problems import situations
from meta_train.problems.images import images
from meta_train.problems.networks.convolutional import plain_cnn
from meta_train.problems.problem_tables import read_problems
from meta_train.problems.supervised import (
    CLASSIFY,
    CONTRAST,
    PREDICT_QUANTILES,
    RECONSTRUCT,
    REGRESS,
    VARIATIONAL,
    Batch,
    SupervisedProblem,
)

KERNELS = 3, 3, 3, 3, 5, 1


class CnnFamily(SupervisedProblem):
    """A random `plain_cnn` on FashionMNIST with a random batch size for every seed.

    It has two to four convolutions with 6 to 32 channels (log-uniform). Two thirds of
    the kernels are 3x3, the others 5x5 or 1x1. Images have 28 or 14 pixels a side,
    batches 32 to 256 images. Evaluation has the data of the fields.
    """

    def init(self, seed: int) -> nn.Module:
        return self.sampled(seed).init(seed)

    def batch(self, seed: int, step: int) -> Batch:
        return self.sampled(seed).batch(seed, step)

    def sampled(self, seed: int) -> SupervisedProblem:
        """The problem of a seed."""
        with seeded(seed, 7):
            depth = 2 + _choice(3)
            widths = []
            for _ in range(depth):
                share = torch.rand(()).item()
                widths.append(round(6 * (32 / 6) ** share))
            kernels = [KERNELS[_choice(6)] for _ in range(depth)]
            batch_size = 32 << _choice(4)
            pool = 1 + _choice(2)
        data = partial(images, "fashion-mnist", pool)
        build = partial(plain_cnn, (1, *widths), kernels)
        name = f"cnn-{seed}"
        return SupervisedProblem(
            name, data, build, self.objective, batch_size, self.steps
        )


def _choice(count: int) -> int:
    return int(torch.randint(count, ()).item())


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
