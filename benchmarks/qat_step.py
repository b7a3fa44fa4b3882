"""Cost of a QAT training step of ResNet-18 against the same step in fp32 and under torch.ao's FX QAT.

Each peer runs in a process of its own; short bursts alternate between them, because shared machines change speed
within a minute. Prints medians and ratios; writes benchmarks/results/qat_step_cpu.json.

    python benchmarks/qat_step.py
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

from harness import PeerProcesses, print_against_fp32, timed_step, write_result

PEERS = ("fp32", "torchquant", "torch_ao_fx")


def build(peer: str, images: torch.Tensor) -> nn.Module:
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    if peer == "torchquant":
        import torchquant as tq

        model = tq.prepare_qat(model.train(), (images,), tq.qconfigs.int8_static())
    elif peer == "torch_ao_fx":
        import warnings

        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        model = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("x86"), (images,))
    return model.train()


def make_burst(peer: str, batch: int, size: int, steps: int, threads: int):
    """Returns a function that runs `steps` training steps and returns the seconds of each."""
    torch.set_num_threads(threads)
    images = torch.randn(batch, 3, size, size)
    labels = torch.randint(1000, (batch,))
    model = build(peer, images)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def burst(count: int) -> list[float]:
        return [timed_step(model, optimizer, images, labels)[0] for _ in range(count)]

    burst(3)
    return lambda: burst(steps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=112, help="height and width of the images")
    parser.add_argument("--steps", type=int, default=5, help="steps in one burst")
    parser.add_argument("--rounds", type=int, default=7, help="bursts of each peer")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    arguments = (options.batch, options.size, options.steps, options.threads)
    with PeerProcesses({peer: (make_burst, (peer, *arguments)) for peer in PEERS}) as peers:
        seconds = peers.alternate(options.rounds)
    rows = print_against_fp32({peer: sum(bursts, []) for peer, bursts in seconds.items()})
    write_result("qat_step_cpu", {"model": "resnet18", **vars(options)}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
