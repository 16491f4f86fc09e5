"""What several records hold, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

import torch
from torch import Tensor

from ngopt.base.flat import Flat, Number
from ngopt.functional import Record


class Joined:
    """Tensors of some records, one after the other in one tensor.

    places: of each tensor, the number of its record and its key there. flat: their shapes. shape:
    of the whole.
    """

    def __init__(
        self,
        places: Sequence[tuple[int, str]],
        flat: Flat,
        shape: tuple[int, ...] = (-1,),
    ):
        self.places, self.flat, self.shape = places, flat, shape

    def join(self, values: Sequence[Tensor]) -> Tensor:
        """The whole, of what the records hold."""
        return self.flat.join(values).view(self.shape)

    def put(self, records: Sequence[Record], whole: Tensor) -> None:
        """Puts new values of the whole into records."""
        found = self.flat.split(whole.reshape(-1))
        for (i, key), value in zip(self.places, found, strict=True):
            records[i][key] = value


class Held:
    """Several wholes of the same records.

    Where state is written in place, records come to hold views of the wholes: these are made once,
    and made anew only when a record holds something else, as after loading.
    """

    def __init__(self, parts: Sequence[Joined]):
        self.parts = parts
        self._places = [place for part in parts for place in part.places]
        self._wholes: list[Tensor] = []
        self._views: list[Tensor] = []

    def open(
        self, records: Sequence[Record], in_place: bool = False
    ) -> list[Tensor]:
        """The wholes; in place, the list that was returned before if it still is what records
        hold."""
        if in_place and self.are_open(records):
            return self._wholes
        values = iter(self._in(records))
        wholes = [
            part.join([next(values) for _ in part.places])
            for part in self.parts
        ]
        if in_place:
            self._put(records, wholes)
            self._wholes, self._views = wholes, self._in(records)
        return wholes

    def are_open(self, records: Sequence[Record]) -> bool:
        """Whether records still hold what they were given when they were last opened in place."""
        found = self._in(records)
        return len(found) == len(self._views) and all(
            map(is_, found, self._views)
        )

    def close(
        self,
        records: Sequence[Record],
        new: Sequence[Tensor],
        in_place: bool = False,
    ) -> None:
        """Puts new values into records: those that were opened, where in place."""
        if not in_place:
            self._put(records, new)
            return
        for value, old in zip(new, self._wholes, strict=True):
            if value is not old:
                old.copy_(value)

    def _in(self, records: Sequence[Record]) -> list[Tensor]:
        return [records[i][key] for i, key in self._places]

    def _put(self, records: Sequence[Record], wholes: Sequence[Tensor]) -> None:
        for part, whole in zip(self.parts, wholes, strict=True):
            part.put(records, whole)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cheaper than `to` where nothing is to be done."""
    return values if values.dtype == dtype else values.to(dtype)


def towards(old: Tensor, new: Tensor, weight: Number, in_place: bool) -> Tensor:
    """(1 - weight) old + weight new, where the old one was or in a new tensor."""
    return (old.lerp_ if in_place else old.lerp)(new, weight)  # pyright: ignore[reportArgumentType]


def times(old: Tensor, factor: Number, in_place: bool) -> Tensor:
    """old * factor, where the old one was or in a new tensor."""
    return (old.mul_ if in_place else old.mul)(factor)


def replaced(old: Tensor, new: Tensor, in_place: bool) -> Tensor:
    """New values, where the old ones were or as they are."""
    return old.copy_(new) if in_place else new
