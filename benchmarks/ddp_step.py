"""Cost of a QAT training step in DistributedDataParallel against the same step in fp32: ResNet-18 on two processes, gloo, one
thread each.

Both peers live in the same two processes and take short bursts in turn, because shared machines change speed within a minute
and a burst of one pair of processes would otherwise compete with the other pair. Prints medians and the ratio; writes
benchmarks/results/ddp_step_cpu.json.

    python benchmarks/ddp_step.py
"""

from __future__ import annotations

import argparse
import os
import socket
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from qat_step import build
from harness import print_against_fp32, timed_step, write_result

PEERS = ("fp32", "torchquant")


def make_step(peer: str, batch: int, size: int):
    """Returns a function that runs one training step and returns its seconds."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    images = torch.randn(batch, 3, size, size, generator=generator)
    labels = torch.randint(1000, (batch,), generator=generator)
    model = DistributedDataParallel(build(peer, images))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> float:
        dist.barrier()
        return timed_step(model, optimizer, images, labels)[0]

    return step


def train(rank: int, options: argparse.Namespace, port: int, queue) -> None:
    """One process: bursts of the peers in turn; the first process reports."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    torch.set_num_threads(options.threads)
    steps = {peer: make_step(peer, options.batch, options.size) for peer in PEERS}
    for step in steps.values():
        for _ in range(3):
            step()
    seconds = {peer: [] for peer in PEERS}
    for _ in range(options.rounds):
        for peer, step in steps.items():
            seconds[peer] += [step() for _ in range(options.steps)]
    if rank == 0:
        queue.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


def run(options: argparse.Namespace) -> dict[str, list[float]]:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train, args=(options, port, queue), nprocs=options.processes)
    return queue.get()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images of one process")
    parser.add_argument("--size", type=int, default=112, help="height and width of the images")
    parser.add_argument("--steps", type=int, default=3, help="steps in one burst")
    parser.add_argument("--rounds", type=int, default=10, help="bursts of each peer")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of one process")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)  # what the result says of this machine
    seconds = run(options)
    rows = print_against_fp32(seconds)
    write_result("ddp_step_cpu", {"model": "resnet18", **vars(options)}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
