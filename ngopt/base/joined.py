"""What several records hold, as one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_

from torch import Tensor

from ngopt.base.flat import Flat, Number
from ngopt.functional import Record


class Joined:
    """Tensors of some records, one after the other in one tensor.

    places: of each tensor, the number of its record and its key there. flat: their shapes. shape:
    of the whole.

    Where state is written in place, records come to hold views of the whole: it is made once, and
    made anew only when a record holds something else, as after loading.
    """

    def __init__(
        self,
        places: Sequence[tuple[int, str]],
        flat: Flat,
        shape: tuple[int, ...] = (-1,),
    ):
        self.places, self.flat, self.shape = places, flat, shape
        self._whole: Tensor | None = None
        self._views: list[Tensor] = []

    def open(self, records: Sequence[Record], in_place: bool = False) -> Tensor:
        """The whole. in_place: what is written to it is written to the records."""
        found = self._held(records)
        if not in_place:
            return self._join(found)
        is_ours = len(found) == len(self._views) and all(map(is_, found, self._views))
        if self._whole is None or not is_ours:
            self._whole = self._join(found)
            self._put(records, self._whole)
            self._views = self._held(records)
        return self._whole

    def close(self, records: Sequence[Record], whole: Tensor, in_place: bool = False) -> None:
        """Puts new values of the whole into records: those that were opened, where in place."""
        if not in_place:
            self._put(records, whole)
        elif self._whole is not None and whole is not self._whole:
            self._whole.copy_(whole)

    def _held(self, records: Sequence[Record]) -> list[Tensor]:
        return [records[i][key] for i, key in self.places]

    def _join(self, values: Sequence[Tensor]) -> Tensor:
        return self.flat.join(values).view(self.shape)

    def _put(self, records: Sequence[Record], whole: Tensor) -> None:
        found = self.flat.split(whole.reshape(-1))
        for (i, key), value in zip(self.places, found, strict=True):
            records[i][key] = value


def towards(old: Tensor, new: Tensor, weight: Number, in_place: bool) -> Tensor:
    """(1 - weight) old + weight new, where the old one was or in a new tensor."""
    return (old.lerp_ if in_place else old.lerp)(new, weight)  # pyright: ignore[reportArgumentType]


def times(old: Tensor, factor: Number, in_place: bool) -> Tensor:
    """old * factor, where the old one was or in a new tensor."""
    return (old.mul_ if in_place else old.mul)(factor)


def replaced(old: Tensor, new: Tensor, in_place: bool) -> Tensor:
    """New values, where the old ones were or as they are."""
    return old.copy_(new) if in_place else new
