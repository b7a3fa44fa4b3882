"""Does each converted layer give the integers that the fake-quantized model asks for? Measured over whole networks.

Per network: every converted layer is fed the integers that the fake-quantized model feeds it and compared with what that model
computes (bar: one step, in one value of a thousand), and beside it the drift of the whole network, whose layers feed one another.
Weights are random; batch norms hold the statistics of a few batches, so that activations have sane ranges. Exits non-zero if a
layer misses the bar. Writes benchmarks/results/layer_agreement.json.

    python benchmarks/layer_agreement.py
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import torch
from torch import nn

import torchquant as tq
from harness import write_result
from torchquant.agreement import layer_agreement

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
from networks import settle_batch_norms, signal_to_noise  # noqa: E402


def resnet18():
    import torchvision

    return torchvision.models.resnet18(), torch.randn(2, 3, 224, 224)


def mobilenet_v2():
    import torchvision

    return torchvision.models.mobilenet_v2(), torch.randn(2, 3, 224, 224)


def transformer():
    layer = nn.TransformerEncoderLayer(256, 4, dim_feedforward=1024, batch_first=True, activation="gelu")
    return nn.Sequential(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(256, 100)), torch.randn(2, 64, 256)


NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "transformer (4 encoder layers)": transformer}


def measure(name: str, calibration_batches: int) -> dict:
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    settle_batch_norms(model, [torch.randn_like(example) for _ in range(4)])
    prepared = tq.prepare(model, example, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [torch.randn_like(example) for _ in range(calibration_batches)])
    quantized = tq.convert(prepared, example)
    fresh = torch.randn_like(example)
    rows = layer_agreement(prepared, quantized, fresh)
    layers = [row for row in rows if not row.entry]
    with torch.no_grad():
        wanted, simulated, integers = model(fresh), prepared(fresh), quantized(fresh)
    worst = max(layers, key=lambda layer: (layer.max_step, layer.differing))
    return {
        "network": name,
        "layers": len(layers),
        "layers_passed": sum(layer.passed for layer in layers),
        "values": sum(layer.values for layer in layers),
        "differing_percent": 100 * sum(layer.differing * layer.values for layer in layers) / sum(layer.values for layer in layers),
        "worst_layer": worst.layer,
        "worst_layer_percent": 100 * worst.differing,
        "largest_step": max(layer.max_step for layer in layers),
        "drift_max_abs": (integers - simulated).abs().max().item(),
        "drift_relative_rms": ((integers - simulated).pow(2).mean() / simulated.pow(2).mean()).sqrt().item(),
        "sqnr_against_simulation_db": signal_to_noise(simulated, integers),
        "sqnr_of_simulation_db": signal_to_noise(wanted, simulated),
        "sqnr_of_integers_db": signal_to_noise(wanted, integers),
        "missed": [layer.layer for layer in layers if not layer.passed],
        # Where floats become codes the float layers in between have drifted; that is the network's drift, no layer's.
        "entries": sum(row.entry for row in rows),
        "worst_entry_percent": 100 * max((row.differing for row in rows if row.entry), default=0.0),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--calibration-batches", type=int, default=4)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.networks:
        rows.append(row := measure(name, arguments.calibration_batches))
        print(
            f"{name}: {row['layers_passed']}/{row['layers']} layers pass; {row['differing_percent']:.5f} % of {row['values']:,} values differ, "
            f"by at most {row['largest_step']} step; worst {row['worst_layer']} {row['worst_layer_percent']:.4f} %; network drift "
            f"{row['drift_max_abs']:.3g} max, {row['sqnr_against_simulation_db']:.1f} dB; against float {row['sqnr_of_simulation_db']:.1f} dB "
            f"simulated, {row['sqnr_of_integers_db']:.1f} dB in integers",
            flush=True,
        )
    write_result("layer_agreement", {"calibration_batches": arguments.calibration_batches}, rows)
    missed = [f"{row['network']}: {', '.join(row['missed'])}" for row in rows if row["missed"]]
    print("\n".join(f"missed the bar: {line}" for line in missed), end="\n" if missed else "")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
