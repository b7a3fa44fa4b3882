"""What the methods for ranges do on scikit-learn's digits: per-layer observers, outlier channels split or kept float, calibration size.

Trains the residual network of examples/digits.py once per seed. Outliers are planted in a trained network without changing its
function: in each residual block one channel of the first batch norm is made 64 times larger and the next convolution's weights for it
64 times smaller. Prints accuracy on the test images and the SQNR of the logits, means over the seeds, and what calibration_curve
says; writes benchmarks/results/range_methods.json.

    python benchmarks/range_methods.py
"""

from __future__ import annotations

import argparse
import copy
import math
import pathlib
import statistics
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

import torchquant as tq
from harness import write_result

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "examples"))
import digits  # noqa: E402

CALIBRATION_IMAGES = 512
OBSERVERS = ("min_max", "moving_average", "percentile", "mse", "entropy")


def plant_outliers(model):
    planted = copy.deepcopy(model)
    with torch.no_grad():
        for block in (planted.block1, planted.block2):
            channel = int(block.bn1.weight.abs().argmax())
            block.bn1.weight[channel] *= 64
            block.bn1.bias[channel] *= 64
            block.conv2.weight[:, channel] /= 64
    return planted


def measure(model, candidate, images, labels):
    with torch.no_grad():
        expected, actual = model(images).double(), candidate(images).double()
    noise = (actual - expected).square().sum().item()
    sqnr = 10 * math.log10(expected.square().sum().item() / noise) if noise else math.inf
    return {"accuracy": (actual.argmax(1) == labels).double().mean().item(), "sqnr_db": sqnr}


def quantized(model, batches, qconfig):
    prepared = tq.prepare(model, batches[0], qconfig)
    tq.calibrate(prepared, batches)
    return tq.convert(prepared, batches[0], on_fallback="allow")


def run_seed(seed, bits, epochs, data):
    train_images, train_labels, images, labels = data
    torch.manual_seed(seed)
    model = digits.train(digits.DigitsNet(), train_images, train_labels, epochs, 3e-3)
    batches = list(train_images[:CALIBRATION_IMAGES].split(digits.BATCH))
    rows = {"float": {"accuracy": measure(model, model, images, labels)["accuracy"], "sqnr_db": math.inf}}
    seconds = {}
    for width in bits:
        preset = {name: tq.qconfigs.int8_static(activation_bits=width, observer=name) for name in OBSERVERS}
        for name in OBSERVERS:
            rows[f"int{width} activations, {name}"] = measure(model, quantized(model, batches, preset[name]), images, labels)
        started = time.perf_counter()
        mapping = tq.methods.choose_observers(model, batches[0], batches, preset["mse"], candidates=OBSERVERS)
        seconds[f"choose_observers, int{width}"] = time.perf_counter() - started
        rows[f"int{width} activations, chosen per layer"] = measure(model, quantized(model, batches, mapping), images, labels)

        planted = plant_outliers(model)
        for name in ("min_max", "mse"):
            rows[f"int{width} with outliers, {name}"] = measure(model, quantized(planted, batches, preset[name]), images, labels)
        split = tq.methods.split_outlier_channels(planted, batches[0], batches, expand_ratio=0.2)
        rows[f"int{width} with outliers, channels split, mse"] = measure(model, quantized(split, batches, preset["mse"]), images, labels)
        prepared = tq.prepare(planted, batches[0], preset["mse"])
        tq.calibrate(prepared, batches)
        kept = tq.methods.clipping_report(prepared, batches).keep_float(preset["mse"])
        rows[f"int{width} with outliers, layers kept float, mse"] = measure(model, quantized(planted, batches, kept), images, labels)
    curve = tq.methods.calibration_curve(tq.prepare(model, batches[0], tq.qconfigs.int8_static()), batches)
    return rows, seconds, curve.to_dict()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=digits.FLOAT_EPOCHS)
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 4])
    options = parser.parse_args()
    data = digits.load_data()
    runs = [run_seed(seed, options.bits, options.epochs, data) for seed in range(options.seeds)]
    means = {
        name: {key: statistics.fmean(rows[name][key] for rows, _, _ in runs) for key in ("accuracy", "sqnr_db")} for name in runs[0][0]
    }
    table = Table(title=f"Digits, {options.seeds} seeds")
    for heading in ("ranges", "accuracy", "SQNR of the logits"):
        table.add_column(heading, justify="left" if heading == "ranges" else "right")
    for name, row in means.items():
        table.add_row(name, f"{row['accuracy']:.2%}", f"{row['sqnr_db']:.1f} dB" if math.isfinite(row["sqnr_db"]) else "")
    Console().print(table)
    for seed, (_, seconds, curve) in enumerate(runs):
        print(f"seed {seed}: {curve['sentence']} " + ", ".join(f"{name}: {value:.2f} s" for name, value in seconds.items()))
    means["float"]["sqnr_db"] = None
    setup = {"seeds": options.seeds, "epochs": options.epochs, "calibration_images": CALIBRATION_IMAGES}
    curves = [{"curve": curve["sentence"], "worst": curve["worst"], "seconds": seconds} for _, seconds, curve in runs]
    write_result("range_methods", {**setup, "runs": curves}, [{"ranges": name, **row} for name, row in means.items()])


if __name__ == "__main__":
    main()
