"""What a scan costs beside its evaluations: all layers of torchvision's ResNet-18, each alone and all but each.

    python benchmarks/scan_cost.py [--images 256] [--size 64] [--threads 1]

The metric is top-1 agreement with the float model on random images (the weights are random too: what is measured is time).
The bar: the scan takes at most 1.2 times what its evaluations take. A second scan then checks that the ranking is the same, and the
proposal for half of the float latency is converted and measured beside its prediction. Writes benchmarks/results/scan_cost.json.
"""

from __future__ import annotations

import argparse
import time

import torch
import torchvision

import torchquant as tq
from harness import write_result

BAR = 1.2
BATCH = 32


def scan(model, images, evaluate):
    started = time.perf_counter()
    report = tq.sensitivity_scan(model, images[:1], [images[:BATCH]], evaluate, tq.qconfigs.int8_static())
    return report, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    images = torch.randn(arguments.images, 3, arguments.size, arguments.size)
    with torch.no_grad():
        labels = torch.cat([model(batch).argmax(-1) for batch in images.split(BATCH)])

    def agreement(candidate) -> float:
        right = sum(int((candidate(batch).argmax(-1) == label).sum()) for batch, label in zip(images.split(BATCH), labels.split(BATCH)))
        return right / len(images)

    report, seconds = scan(model, images, agreement)
    again, _ = scan(model, images, agreement)
    budget = 0.5 * report.float_latency_ms
    mapping = report.propose(max_latency_ms=budget)
    measured = report.measure(mapping, model, images[:1], [images[:BATCH]])
    row = {
        "network": "resnet18",
        "layers": len(report.rows),
        "evaluations": report.seconds["evaluation_count"],
        "scan_s": seconds,
        "evaluations_s": report.seconds["evaluations"],
        "ratio": seconds / report.seconds["evaluations"],
        "same_ranking_on_a_rerun": names(report) == names(again),
        "float_ms": report.float_latency_ms,
        "int8_ms": report.candidates["int8"]["latency_ms"],
        "proposal_budget_ms": budget,
        "proposal_predicted_ms": report.predict(mapping)["latency_ms"],
        "proposal_measured_ms": measured["latency_ms"],
        "float_ms_beside_it": measured["float_latency_ms"],
    }
    write_result("scan_cost", {"images": arguments.images, "size": arguments.size, "batch": BATCH, "bar": BAR}, [row])
    if row["ratio"] > BAR or not row["same_ranking_on_a_rerun"]:
        raise SystemExit("the bar is missed")


def names(report) -> list[tuple[str, str]]:
    return [(row["layer"], row["candidate"]) for row in report.ranking]


if __name__ == "__main__":
    main()
