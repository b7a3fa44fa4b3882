"""What test_training_distributed.py runs in each process, under torchrun and gloo: every scenario on this rank's share of the same
data. Writes what it saw to <folder>/<rank>.pt.

    torchrun --nproc-per-node 2 tests/python/support/distributed_worker.py FOLDER
"""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import torchquant as tq

BATCHES = [torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(step)) * (1 + step) for step in range(5)]


def share(batch):
    return batch.chunk(dist.get_world_size())[dist.get_rank()]


class Net(nn.Module):
    """Prepared with torch.fx, or module by module where it is `checkpointed` or has control flow."""

    def __init__(self, checkpointed=False, branching=False):
        super().__init__()
        self.conv, self.body = nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        self.checkpointed, self.branching = checkpointed, branching

    def forward(self, x):
        x = self.conv(x)
        if self.branching and x.sum() > 1e9:
            return x
        return checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)


class LateBranch(nn.Module):
    """Only batches of large values reach `late`. Control flow: prepared module by module."""

    def __init__(self):
        super().__init__()
        self.usual, self.late = nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))

    def forward(self, x):
        usual = self.usual(x)
        return self.late(-x) if x.abs().max() > 100 else usual  # -x: one tensor would have one range for both


def prepared_net(qconfig, **settings):
    torch.manual_seed(7)
    return tq.prepare_qat(Net(**settings), BATCHES[0], qconfig)


def train(prepared, compiled=False, steps=len(BATCHES), **ddp):
    """Trains in DistributedDataParallel; returns {step: what this rank then holds} and how many all-reduces ran outside of DDP's own."""
    wrapped = DistributedDataParallel(prepared, **ddp)
    run = torch.compile(wrapped, backend="eager") if compiled else wrapped
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    calls, all_reduce = [], dist.all_reduce
    seen = {}

    def counted(*args, **kwargs):
        calls[-1] += 1
        return all_reduce(*args, **kwargs)

    dist.all_reduce = counted
    try:
        for step, batch in enumerate(BATCHES[:steps]):
            calls.append(0)
            optimizer.zero_grad()
            run(share(batch)).square().mean().backward()
            optimizer.step()
            seen[step] = copy.deepcopy(prepared.state_dict())
    finally:
        dist.all_reduce = all_reduce
    return seen, calls


def full_state(prepared):
    """The whole state of a sharded model, in every process."""
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)
    state = get_model_state_dict(prepared, options=options)
    received = [state]
    dist.broadcast_object_list(received, src=0)  # the first process alone gets the gathered parameters
    return received[0]


def sharded(qconfig):
    """Trains with fully_shard in place of DistributedDataParallel; {step: (the whole state, this process's own ranges)}."""
    prepared = prepared_net(qconfig)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(prepared.body[1], mesh=mesh)
    fully_shard(prepared, mesh=mesh)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    seen = {}
    for step, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        prepared(share(batch)).square().mean().backward()
        optimizer.step()
        ranges = {name: value.clone() for name, value in prepared.named_buffers()}
        seen[step] = copy.deepcopy(full_state(prepared)), ranges
    try:
        tq.convert(prepared, BATCHES[0])
    except ValueError as error:
        return seen, str(error)
    return seen, None


def sharded_and_refused(qconfig, block):
    """What is said of learned ranges, and of blocks that the graph passes by."""
    prepared = prepared_net(qconfig)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if block:
        fully_shard(prepared.body, mesh=mesh)
    fully_shard(prepared, mesh=mesh)
    try:
        prepared(share(BATCHES[0]))
    except RuntimeError as error:
        return str(error)
    return None


def learned_from_first_batch(qconfig):
    prepared = prepared_net(qconfig)
    train(prepared, steps=1)
    return prepared.state_dict()


def refused(observer):
    try:
        train(prepared_net(tq.qconfigs.int8_static(observer=observer)), steps=2)
    except RuntimeError as error:
        return str(error)
    return None


def uneven():
    """What the error says, and how many ranges were merged before it."""
    wrapped = DistributedDataParallel(prepared_net(tq.qconfigs.int8_static()))
    merges, all_reduce = [], dist.all_reduce

    def noted(*args, op=dist.ReduceOp.SUM, **kwargs):
        if op == dist.ReduceOp.MIN:
            merges.append(args)
        return all_reduce(*args, op=op, **kwargs)

    dist.all_reduce = noted
    try:
        with wrapped.join():
            wrapped(share(BATCHES[0]))
    except RuntimeError as error:
        return str(error), len(merges)
    finally:
        dist.all_reduce = all_reduce
    return None


def calibrated_on_shares(observer):
    torch.manual_seed(7)
    prepared = tq.prepare(Net(), BATCHES[0], tq.qconfigs.int8_static(observer=observer))
    tq.calibrate(prepared, [share(batch) for batch in BATCHES])
    tq.training.synchronize_observers(prepared)
    return prepared.state_dict()


def delayed(qconfig, distributed=True):
    prepared = prepared_net(qconfig)
    schedule = tq.training.Schedule(prepared, start_fake_quant_after=2)
    run = DistributedDataParallel(prepared, find_unused_parameters=True) if distributed else prepared
    for batch in BATCHES[:4]:
        run(share(batch) if distributed else batch).sum().backward()
        schedule.step()
    return prepared.state_dict()


def late_branch(qconfig, distributed=True):
    """Returns what the model holds after one step without the branch, and what the first batch that takes it becomes."""
    torch.manual_seed(7)
    prepared = tq.prepare_qat(LateBranch(), BATCHES[1] * 1000, qconfig)
    run = DistributedDataParallel(prepared, find_unused_parameters=True) if distributed else prepared
    first, second = (share(batch) if distributed else batch for batch in (BATCHES[0], BATCHES[1] * 1000))
    run(first).square().mean().backward()
    before = copy.deepcopy(prepared.state_dict())
    output = run(second)
    output.square().mean().backward()
    return {"before": before, "output": output.detach(), "after": prepared.state_dict()}


def learning_qconfigs():
    """Whose activations learn their range from a minimum and a maximum: histograms do not follow a distributed training."""
    learned = tq.qconfigs.learned(learn_zero_point=True)
    return {"from range": tq.QConfig(learned.weight, replace(learned.activation, observer="moving_average")), "pact": tq.qconfigs.pact()}


def branch_qconfigs():
    return {"plain": tq.qconfigs.int8_static(), "learned": tq.qconfigs.learned(), **learning_qconfigs()}


def scenarios():
    plain = tq.qconfigs.int8_static()
    min_max = tq.qconfigs.int8_static(observer="min_max")
    learned = tq.qconfigs.learned(learn_zero_point=True)
    return {
        "plain": lambda: train(prepared_net(plain)),
        "without broadcasts": lambda: train(prepared_net(min_max), broadcast_buffers=False),
        "checkpointed": lambda: train(prepared_net(plain, checkpointed=True)),
        "module by module": lambda: train(prepared_net(plain, branching=True)),
        "compiled": lambda: train(prepared_net(plain), compiled=True, steps=3),
        "learned": lambda: learned_from_first_batch(learned),
        "learned from range": lambda: learned_from_first_batch(learning_qconfigs()["from range"]),
        "pact": lambda: learned_from_first_batch(tq.qconfigs.pact()),
        "refused": lambda: refused("mse"),
        "sharded": lambda: sharded(plain),
        "sharded and learned": lambda: sharded_and_refused(learned, block=False),
        "sharded by block": lambda: sharded_and_refused(plain, block=True),
        "uneven": uneven,
        "calibrated min_max": lambda: calibrated_on_shares("min_max"),
        "calibrated mse": lambda: calibrated_on_shares("mse"),
        "delayed": lambda: delayed(plain),
        **{f"delayed {name}": lambda qconfig=qconfig: delayed(qconfig) for name, qconfig in learning_qconfigs().items()},
        **{f"late branch {name}": lambda qconfig=qconfig: late_branch(qconfig) for name, qconfig in branch_qconfigs().items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: run() for name, run in scenarios().items()}
    torch.save(results, Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    dist.barrier()
    dist.destroy_process_group()
