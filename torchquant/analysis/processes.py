"""The processes that share a scan: one, or those that torchrun started. Collective calls, and errors that reach all of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch.distributed as dist

# One process may be a long evaluation behind the others, and gloo's half an hour is too short for that.
_PATIENCE = timedelta(days=7)


class Processes:
    """`rank` of `size` processes. With one process every method does its work at once."""

    def __init__(self, rank: int = 0, size: int = 1, group=None):
        self.rank, self.size, self._group = rank, size, group

    def gather(self, value) -> list:
        """The value of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, compute: Callable):
        """What `compute` gives in the first process; the others wait for it. An error in it is everybody's."""
        return self.together(compute if self.rank == 0 else lambda: None)[0]

    def together(self, work: Callable) -> list:
        """What `work` gives in every process. Where it fails in one, all raise, once all have ended."""
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            if self.size == 1:
                raise
            error = caught
        outcomes = self.gather((result, None if error is None else f"{type(error).__name__}: {error}"))
        if error is not None:
            raise error
        for rank, (_, text) in enumerate(outcomes):
            if text is not None:
                raise RuntimeError(f"sensitivity_scan: process {rank} failed: {text}")
        return [outcome for outcome, _ in outcomes]


@contextlib.contextmanager
def join() -> Iterator[Processes]:
    """The processes of the group that is there, or of torchrun's environment; else this one alone."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        group = dist.new_group(backend="gloo", timeout=_PATIENCE)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size(), group)
        finally:
            dist.destroy_process_group(group)
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        dist.init_process_group("gloo", timeout=_PATIENCE)
        try:
            yield Processes(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Processes()
