"""Collectives of the processes that share parameters; errors name their ranks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed


class Collectives:
    """Collectives of some ranks of the default process group."""

    def __init__(self, ranks: list[int], group: Any = None):
        """group: used if it has these ranks; otherwise a new group gets its timeout.

        None: the default process group.
        """
        self._ranks = ranks
        group = group or distributed.group.WORLD
        try:
            self._timeout = group._get_backend(group._device_types[0]).options._timeout
        except (AttributeError, RuntimeError):  # a backend without options
            self._timeout = None  # torch's default
        has_ranks = ranks == distributed.get_process_group_ranks(group)
        self.group = group if has_ranks else self._new_group()
        self._gloo: Any = None
        self._meshes: dict[str, Any] = {}  # by type of device

    def _host_group(self) -> Any:
        """The group for objects and tensors on the host.

        A group of its own, so that collectives of the model are not matched with these:
        if one process skips a step, the others wait here until the timeout.
        """
        if self._gloo is None:
            is_fake = distributed.get_backend(self.group) == "fake"
            self._gloo = self.group if is_fake else self._new_group("gloo")
        return self._gloo

    def _new_group(self, backend: str | None = None) -> Any:
        return distributed.new_group(
            self._ranks, self._timeout, backend, use_local_synchronization=True
        )

    def mesh(self, device_type: str) -> Any:
        """The processes as a mesh of one dimension."""
        from torch.distributed.device_mesh import DeviceMesh

        if device_type not in self._meshes:
            group: Any = self._host_group() if device_type == "cpu" else self.group
            self._meshes[device_type] = DeviceMesh.from_group(group, device_type)
        return self._meshes[device_type]

    def _group_of(self, x: Tensor) -> Any:
        return self._host_group() if x.is_cpu else self.group

    @contextmanager
    def _with_ranks_in_errors(self) -> Iterator[None]:
        if not distributed.is_initialized():
            raise RuntimeError(
                "NGOptimizer: expected the process group of the parameters; got none: "
                "it was destroyed. Make the optimizer's last step before "
                "destroy_process_group()."
            )
        try:
            yield
        except RuntimeError as error:
            first_line = str(error).strip().splitlines()[0]
            raise RuntimeError(
                f"NGOptimizer: a collective of ranks {self._ranks} failed, as when one "
                f"of them has ended or skipped a step: {first_line}"
            ) from error

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, any objects."""
        values: list[Any] = [None] * len(self._ranks)
        with self._with_ranks_in_errors():
            distributed.all_gather_object(values, value, self._host_group())
        return values

    def gather_integers(self, number: int) -> list[int]:
        sent = torch.tensor([number], device="cpu")
        received = [torch.empty_like(sent) for _ in self._ranks]
        with self._with_ranks_in_errors():
            distributed.all_gather(received, sent, self._host_group())
        return torch.cat(received).tolist()

    def sum_(self, total: Tensor) -> None:
        """Sums over all processes, in place."""
        with self._with_ranks_in_errors():
            distributed.all_reduce(total, group=self._group_of(total))

    def all_to_all(
        self,
        result: Tensor,
        sent: Tensor,
        result_sizes: list[int],
        sent_sizes: list[int],
    ) -> Callable[[], None]:
        """Begins to send `sent` and to receive `result`; returns what waits for it.

        result_sizes, sent_sizes: numbers of elements from and to each rank.
        """
        group = self._group_of(sent)
        with self._with_ranks_in_errors():
            work: Any = distributed.all_to_all_single(
                result, sent, result_sizes, sent_sizes, group, async_op=True
            )

        def wait() -> None:
            with self._with_ranks_in_errors():
                work.wait()

        return wait
