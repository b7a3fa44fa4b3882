"""Cost of a training step of a linear-heavy model in fp32, with fake-quant, and with fake-quant and integer products in the forward pass
(`torchquant.training.integer_forward`); and the loss curves of the last two, which must lie on one another.

Each peer runs in a process of its own, in turn. Prints medians and ratios; writes benchmarks/results/integer_forward_cpu.json and .svg.

    python benchmarks/integer_forward.py
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

from harness import RESULTS, PeerProcesses, print_against_fp32, timed_step, write_result

PEERS = ("fp32", "fake_quant", "integer_forward")


def build(peer: str, width: int, layers: int, x: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(module for _ in range(layers) for module in (nn.Linear(width, width), nn.ReLU())), nn.Linear(width, 10)).train()
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if peer == "fp32":
        return model
    import torchquant as tq

    model = tq.prepare_qat(model, x, tq.qconfigs.int8_static())
    if peer == "integer_forward":
        tq.training.integer_forward(model)
    return model


def trainer(peer: str, options: argparse.Namespace):
    """A function that trains one step and returns (seconds, loss)."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    inputs = torch.randn(8 * options.batch, options.width)
    labels = (inputs[:, :10] + 0.5 * inputs[:, 10:20]).argmax(1)
    model = build(peer, options.width, options.layers, inputs[: options.batch])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    count = 0

    def step() -> tuple[float, float]:
        nonlocal count
        chosen = slice(count % 8 * options.batch, (count % 8 + 1) * options.batch)
        count += 1
        return timed_step(model, optimizer, inputs[chosen], labels[chosen])

    return step


def make_burst(peer: str, options: argparse.Namespace):
    step = trainer(peer, options)
    for _ in range(3):
        step()
    return lambda: [step()[0] for _ in range(options.steps)]


def loss_curves(options: argparse.Namespace) -> dict[str, list[float]]:
    curves = {}
    for peer in PEERS[1:]:
        step = trainer(peer, options)
        curves[peer] = [step()[1] for _ in range(options.curve_steps)]
    return curves


def draw(curves: dict[str, list[float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, losses), style in zip(curves.items(), ({"linewidth": 3, "alpha": 0.4}, {"linewidth": 1})):
        axes.plot(losses, label=name, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()
    figure.savefig(RESULTS / "integer_forward_cpu.svg", metadata={"Date": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="steps in one burst")
    parser.add_argument("--rounds", type=int, default=7, help="bursts of each peer")
    parser.add_argument("--curve-steps", type=int, default=120, help="steps of the loss curves")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    with PeerProcesses({peer: (make_burst, (peer, options)) for peer in PEERS}) as peers:
        seconds = peers.alternate(options.rounds)
    rows = print_against_fp32({peer: sum(bursts, []) for peer, bursts in seconds.items()})
    curves = loss_curves(options)
    apart = max(abs(a - b) for a, b in zip(*curves.values()))
    print(f"loss curves: from {curves['fake_quant'][0]:.3f} to {curves['fake_quant'][-1]:.4f}, at most {apart:.2g} apart")
    draw(curves)
    write_result("integer_forward_cpu", {**vars(options), "loss_curves": curves, "largest_loss_difference": apart}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
