"""What observers share between the processes of a distributed run. Called by FakeQuantize, by prepared models after each
forward, and by training.synchronize_observers."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn


def training_group():
    """The process group of the DistributedDataParallel whose forward is running, None outside of one."""
    wrapper = nn.parallel.DistributedDataParallel._active_ddp_module
    return None if wrapper is None else wrapper.process_group


def check_even_inputs() -> None:
    """A process that runs out of batches would leave the others waiting for its ranges."""
    wrapper = nn.parallel.DistributedDataParallel._active_ddp_module
    if wrapper is not None and wrapper._join_config.enable:
        raise RuntimeError(
            "fake_quantize: DistributedDataParallel.join() is not supported while observers are on; give every process as many batches, or "
            "calibrate before training"
        )


@torch.no_grad()
def merge_ranges(observers, group) -> None:
    """Gives each observer the range that it has over all processes of the group, by one all-reduce.

    After one batch this is exactly the range that one process would have after all their batches together: a running
    minimum, and a moving average with one weight, grow with the minimum of the newest batch. Counts of non-finite values
    become the largest of any process, so that one that met such a value is not forgotten.
    """
    low = [observer.min_val for observer in observers]
    high = [observer.max_val for observer in observers]
    counts = [observer.nonfinite_count for observer in observers]
    negated = torch.cat([tensor.flatten() for tensor in (*high, *counts)]).neg_()  # the smallest of these is the largest
    packed = torch.cat([*(tensor.flatten() for tensor in low), negated])
    dist.all_reduce(packed, op=dist.ReduceOp.MIN, group=group)
    packed[sum(tensor.numel() for tensor in low) :].neg_()
    tensors = [*low, *high, *counts]
    parts = packed.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(tensors, [part.view(tensor.shape) for part, tensor in zip(parts, tensors)])


@torch.no_grad()
def merge_observers(observers, group, what: str) -> None:
    """Gives each observer everything that all processes saw, merged in the order of their ranks; of the same observers in each."""
    mine = [{name: value.cpu() for name, value in observer.state_dict().items()} for observer in observers]
    everyones = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyones, mine, group=group)
    if len({len(states) for states in everyones}) > 1:
        raise RuntimeError(f"{what}: the processes hold different models; {', '.join(str(len(s)) for s in everyones)} observers each")
    for index, observer in enumerate(observers):
        observer.reset()
        for states in everyones:
            other = type(observer)(observer.spec)
            other.load_state_dict(states[index])
            observer.merge(other)
