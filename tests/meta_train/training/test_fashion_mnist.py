"""The bundled optimizer on real data."""

import pytest

from harness.image_datasets import DatasetUnavailable, load_dataset
from meta_train.comparison.inner_training import Run, train
from ngopt import load_pretrained
from ngopt.pretrained import weights_hash

STEPS = 200


@pytest.mark.thorough
def test_ng_gnn_beats_adam_on_fashion_mnist():
    try:
        load_dataset("fashion-mnist")
    except DatasetUnavailable as error:
        pytest.skip(f"FashionMNIST cannot be had: {error}")
    weights = weights_hash(load_pretrained("ng-gnn"))
    weights = weights_hash(load_pretrained("ng-gnn"))
    length = 7, STEPS, "evaluation", STEPS
    learned = train(Run("fm-16", "ng-gnn", None, weights, *length, traced=True))
    adam = train(Run("fm-16", "adam", 0.006, None, *length))
    assert learned["train_loss"] < adam["train_loss"]
    assert learned["test"]["accuracy"] > 0.7
