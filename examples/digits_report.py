"""The HTML report of a whole run on real data: a small CNN on scikit-learn's digits, quantized to int8 activations and int4 weights,
validated on the test set, scanned layer by layer and compared with the float model.

    python examples/digits_report.py report.html
    python examples/digits_report.py report.html --screenshot docs/images/report.png      needs Chromium; this is how that was made

The screenshot shows the page as a desk and a phone do, side by side.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import tempfile

import torch
from digits import BATCH, DigitsNet, load_data, train
from PIL import Image  # comes with matplotlib

import torchquant as tq

EPOCHS = 12


def analyse(model, train_images, test_images, test_labels) -> dict:
    """What tq.report.write takes, for the model quantized by calibration alone."""
    example, batches = train_images[:8], train_images[:512].split(BATCH)

    def accuracy(candidate) -> float:
        return (candidate(test_images).argmax(1) == test_labels).double().mean().item()

    curve = tq.methods.calibration_curve(tq.prepare(model, example, tq.qconfigs.int4_weight_static()), batches)
    prepared = tq.prepare(model, example, tq.qconfigs.int4_weight_static())
    tq.calibrate(prepared, batches)
    quantized = tq.convert(prepared, example)
    qconfigs = {"int8": tq.qconfigs.int8_static(), "int4": tq.qconfigs.int4_weight_static()}
    return {
        "quantized": quantized,
        "validation": tq.validate(model, quantized, (test_images, test_labels)),
        "sensitivity": tq.sensitivity_scan(model, example, batches, accuracy, qconfigs, mode="each_alone"),
        "comparison": tq.compare(model, quantized, [test_images], prepared=prepared),
        "calibration": [curve, tq.methods.clipping_report(prepared, [test_images])],
    }


def take_screenshot(report: pathlib.Path, picture: pathlib.Path) -> None:
    """One page with the report in two frames, so that one picture shows both widths."""
    frames = "".join(f'<iframe src="{report.resolve().as_uri()}" width="{width}" height="1500"></iframe>' for width in (1000, 390))
    style = "body { margin: 0; display: flex; gap: 16px; background: #c9d1da; } iframe { border: 0; }"
    with tempfile.TemporaryDirectory() as folder:
        both = pathlib.Path(folder) / "both.html"
        both.write_text(f"<!DOCTYPE html><style>{style}</style>{frames}")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1406,1500", f"--user-data-dir={folder}/profile"]
        subprocess.run(["chromium", *flags, f"--screenshot={picture}", both.as_uri()], check=True, capture_output=True)
    Image.open(picture).convert("RGB").quantize(96).save(picture, optimize=True)  # a third of the size, and looks the same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=pathlib.Path, help="the HTML file to write")
    parser.add_argument("--screenshot", type=pathlib.Path, help="a PNG file to write, too")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)  # latencies of a network this small are those of waking threads
    train_images, train_labels, test_images, test_labels = load_data()
    model = train(DigitsNet(), train_images, train_labels, EPOCHS, 3e-3)
    tq.report.write(options.output, title="Digits: int8 activations, int4 weights", **analyse(model, train_images, test_images, test_labels))
    print(f"wrote {options.output}")
    if options.screenshot:
        take_screenshot(options.output, options.screenshot)
        print(f"wrote {options.screenshot}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
