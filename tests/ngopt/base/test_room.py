"""Steps in buffers that stay, against those of the pure update."""

import copy

import pytest
import torch

from ngopt.base.batch import Batch
from ngopt.base.config import DirectionConfig
from ngopt.base.direction import EXACT, init_direction
from ngopt.base.layout import MatrixLayout
from ngopt.base.modes import Channels, Kernel, Rows
from ngopt.base.room import fits_a_room
from ngopt.base.step import Shared, Turn
from ngopt.functional import AVERAGE
from ngopt.graph.core import View

CONFIG = DirectionConfig()
LAYOUTS = [
    MatrixLayout((1, 5, 1, 3), (Rows(1, 5), Channels(1, 3))),
    MatrixLayout((1, 4, 1, 6), (Channels(1, 6),)),
    MatrixLayout((1, 2, 1, 7), (Rows(1, 2),)),
]
PLAIN = [
    MatrixLayout((1, 1, 1, 4)),
    MatrixLayout((1, 1, 1, 0)),
    MatrixLayout((1, 1, 1, 1)),
]


def numbers(count, is_varied=True):
    several = torch.linspace(0.5, 2.0, count)
    if not is_varied:
        several = 0.75
    return Shared(
        recall=None,
        multiplier=several,
        momentum=0.1,
        second=0.05,
        shrink=1.5,
        damping=several * 1e-4,
        active=1.0,
        size=-several,
        decay=several * 1e-2,
        newest=0.2,
        is_finite=True,
    )


def steps(layouts, in_place, is_varied, count=5):
    """Directions and changes of several steps, and the records after them."""
    torch.manual_seed(0)
    shapes = [torch.Size(layout.shape) for layout in layouts]
    records = [
        init_direction(torch.zeros(shape), [own], torch.float64)
        for shape, own in zip(shapes, layouts, strict=True)
    ]
    params = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for record, p in zip(records, params, strict=True):
        record[AVERAGE] = p.clone()
    own = numbers(len(layouts), is_varied)
    batch, found = (
        Batch(shapes, [[own] for own in layouts], torch.device("cpu")),
        [],
    )
    with torch.no_grad():
        for step in range(count):
            grads = [torch.randn(shape) for shape in shapes]
            grads[0][0, 0] = 0
            turns = [
                Turn(record, step == 0, is_due=step == 2) for record in records
            ]
            new = records if in_place else [{} for _ in records]
            value = batch.directions(grads, turns, new, own, CONFIG, in_place)
            assert (batch._room is not None) == (in_place and step > 0)
            found.append([x.clone() for x in batch.split(value)])
            delta = batch.delta(value, params, turns, new, own, in_place)
            found.append([x.clone() for x in batch.split(delta)])
            records = new
    return found, records


@pytest.mark.parametrize(
    "layouts", [[*LAYOUTS, *PLAIN], LAYOUTS, PLAIN, LAYOUTS[:1]], ids=len
)
@pytest.mark.parametrize("is_varied", [True, False], ids=["varied", "alike"])
def test_changes_and_state_are_those_of_the_pure_update(layouts, is_varied):
    found, records = steps(layouts, True, is_varied)
    expected, pure = steps(layouts, False, is_varied)
    for own, others in zip(found, expected, strict=True):
        torch.testing.assert_close(own, others)
    for record, other in zip(records, pure, strict=True):
        assert record.keys() == other.keys()
        torch.testing.assert_close(record, other)


def test_state_that_was_replaced_is_read_anew():
    torch.manual_seed(0)
    shape = torch.Size((1, 5, 1, 3))
    layout = LAYOUTS[0]
    records = [init_direction(torch.zeros(shape), [layout], torch.float64)]
    batch = Batch([shape], [[layout]], torch.device("cpu"))

    def direction(record, step, some):
        turns = [Turn(record, step == 0)]
        return some.directions(
            [torch.ones(shape)], turns, [record], numbers(1), CONFIG, True
        ).clone()

    with torch.no_grad():
        for step in range(3):
            direction(records[0], step, batch)
        loaded = {key: value.clone() + 0.1 for key, value in records[0].items()}
        other = Batch([shape], [[layout]], torch.device("cpu"))
        expected = direction(copy.deepcopy(loaded), 3, other)
        torch.testing.assert_close(direction(loaded, 3, batch), expected)


@pytest.mark.parametrize(
    "layout",
    [
        MatrixLayout((2, 5, 1, 3), (Rows(1, 5),)),
        MatrixLayout((1, 5, 4, 3), (Rows(1, 5), Kernel(4))),
        MatrixLayout((1, 6, 1, 3), (Rows(2, 3),)),
        MatrixLayout(
            (1, 2, 1, 3), (Rows(1, 2),), View(0, (1, 2, 3), (0, 6, 1), 0)
        ),
        MatrixLayout((1, EXACT + 1, 1, 3), (Rows(1, EXACT + 1),)),
    ],
    ids=["groups", "kernel", "parts", "view", "bfloat16"],
)
def test_what_has_no_room(layout):
    assert not fits_a_room(layout)
    assert all(map(fits_a_room, [*LAYOUTS, *PLAIN]))
