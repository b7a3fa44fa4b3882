"""The whole way on real data: train, quantize three ways, convert, and run every file from C++.

Trains a small residual CNN with a depthwise layer on scikit-learn's 1,797 scanned digits, then makes
  * int8 static by post-training quantization,
  * int8 by quantization-aware training,
  * int8 activations with int4 weights by quantization-aware training,
converts each to integers, saves it, and runs each saved file over the whole test set from Python and from the C++
program `cpp_examples/run_quantized`. Prints one table and the receipts; exits non-zero unless the predictions of
Python and C++ are the same for every image, no layer stayed float unasked and the accuracies are what they should be.

    make demo
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import torchquant as tq

BATCH = 64
FLOAT_EPOCHS = 30
QAT_EPOCHS = 8
# What the demo must reach to succeed: fractions of the test set.
FLOAT_ACCURACY = 0.97
ACCURACY_LOSS = {"int8 PTQ": 0.005, "int8 QAT": 0.005, "int4-weight QAT": 0.01}


class Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + x)


class DigitsNet(nn.Module):
    """8x8 grey images [N, 1, 8, 8] in 0..1 -> 10 logits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.block1 = Residual(16)
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block2 = Residual(32)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(32, 10)

    def forward(self, x):
        x = self.block1(self.stem(x))
        x = self.block2(self.pointwise(self.depthwise(x)))
        return self.classifier(self.dropout(self.pool(x).flatten(1)))


def load_data():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=digits.target)
    return images[train], labels[train], images[test], labels[test]


def train(model: nn.Module, images, labels, epochs: int, learning_rate: float) -> nn.Module:
    model.train()
    steps = epochs * ((len(images) + BATCH - 1) // BATCH)
    groups = tq.training.parameter_groups(model, learning_rate)
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [group["lr"] for group in groups], total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def quantize_all(float_model, train_images, train_labels):
    """Converted models by name, each trained or calibrated on training images only."""
    example = train_images[:8]
    models = {}

    prepared = tq.prepare(float_model, example, tq.qconfigs.int8_static())
    tq.calibrate(prepared, train_images[:512].split(BATCH))
    models["int8 PTQ"] = tq.convert(prepared, example)

    for name, qconfig in (
        ("int8 QAT", tq.qconfigs.int8_static()),
        ("int4-weight QAT", tq.qconfigs.int4_weight_static()),
    ):
        prepared = tq.prepare_qat(float_model, example, qconfig)
        train(prepared, train_images, train_labels, QAT_EPOCHS, 1e-3)
        models[name] = tq.convert(prepared, example)
    return models


def python_latency_ms(model, image, runs: int = 200) -> float:
    """Median milliseconds of one image."""
    seconds = []
    with torch.inference_mode():
        for _ in range(20):
            model(image)
        for _ in range(runs):
            start = time.perf_counter()
            model(image)
            seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds)


def run_cpp(runner: pathlib.Path, model_path: pathlib.Path, inputs_path: pathlib.Path, *options: str) -> dict:
    command = [runner, model_path, inputs_path, "--threads", str(torch.get_num_threads()), "--json", *options]
    completed = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if completed.returncode != 0:
        raise SystemExit(f"{runner.name} failed on {model_path.name}:\n{completed.stderr}")
    return json.loads(completed.stdout)


def measure(name, model, path, runner, inputs_path, images, labels, runner_options=()) -> dict:
    with torch.no_grad():
        predictions = model(images).argmax(1)
    whole = run_cpp(runner, path, inputs_path, "--runs", "1", *runner_options)
    single = run_cpp(runner, path, inputs_path, "--batch", "1", "--runs", "200", *runner_options)
    cpp_predictions = torch.tensor(whole["predictions"])
    return {
        "model": name,
        "accuracy": (predictions == labels).double().mean().item(),
        "cpp_accuracy": (cpp_predictions == labels).double().mean().item(),
        "same": int((predictions == cpp_predictions).sum()),
        "images": len(labels),
        "file_kb": path.stat().st_size / 1024,
        "python_ms": python_latency_ms(model, images[:1]),
        "cpp_ms": single["p50_ms"],
    }


def print_table(console: Console, rows: list[dict]) -> None:
    table = Table(title=f"scikit-learn digits, {rows[0]['images']} test images; latency: median of one image")
    for heading in ("model", "accuracy\nPython", "accuracy\nC++", "same\npredictions", "file", "latency\nPython", "latency\nC++"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['accuracy']:.2%}",
            f"{row['cpp_accuracy']:.2%}",
            f"{row['same']}/{row['images']}",
            f"{row['file_kb']:.0f} KB",
            f"{row['python_ms']:.3f} ms",
            f"{row['cpp_ms']:.3f} ms",
        )
    console.print(table)


def problems_of(rows: list[dict], models: dict) -> list[str]:
    problems = [
        f"{row['model']}: Python and C++ differ on {row['images'] - row['same']} of {row['images']} images"
        for row in rows
        if row["same"] != row["images"]
    ]
    for name, model in models.items():
        floats = [row["layer"] for row in model.receipt.rows if row["kind"] in COMPUTE and row["precision"] == "float"]
        if floats:
            problems.append(f"{name}: layers stayed float: {', '.join(floats)}")
    accuracy = {row["model"]: row["accuracy"] for row in rows}
    if accuracy["float"] < FLOAT_ACCURACY:
        problems.append(f"float: the accuracy of {accuracy['float']:.2%} is below {FLOAT_ACCURACY:.0%}")
    for name, allowed in ACCURACY_LOSS.items():
        if accuracy["float"] - accuracy[name] > allowed:
            problems.append(f"{name}: the accuracy of {accuracy[name]:.2%} is more than {100 * allowed:g} points below the float model's")
    return problems


COMPUTE = ("conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "linear", "embedding")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", type=pathlib.Path, required=True, help="the built C++ program run_quantized")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("demo_output"), help="where files go")
    options = parser.parse_args()
    if not options.runner.is_file():
        parser.error(f"{options.runner} does not exist; build it with: make examples")
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 120)
    started = time.perf_counter()

    def progress(text: str) -> None:
        console.print(f"[dim]{time.perf_counter() - started:5.1f} s[/dim]  {text}")

    torch.manual_seed(0)
    train_images, train_labels, test_images, test_labels = load_data()
    progress(f"training the float model on {len(train_labels)} images")
    float_model = train(DigitsNet(), train_images, train_labels, FLOAT_EPOCHS, 3e-3)
    progress("quantizing: int8 PTQ, int8 QAT, int4-weight QAT")
    models = quantize_all(float_model, train_images, train_labels)

    inputs_path = options.output / "test_images.pt"
    torch.save(test_images, inputs_path)
    float_path = options.output / "float.pt"
    torch.jit.freeze(torch.jit.trace(float_model, test_images[:2])).save(str(float_path))
    progress("running every file over the test set, from Python and from C++")
    rows = [measure("float", torch.jit.load(float_path), float_path, options.runner, inputs_path, test_images, test_labels, ["--plain"])]
    for name, model in models.items():
        path = options.output / (name.lower().replace(" ", "_").replace("-", "_") + ".pt")
        model.save(path)
        rows.append(measure(name, tq.load(path), path, options.runner, inputs_path, test_images, test_labels))

    print_table(console, rows)
    for name, model in models.items():
        console.rule(f"receipt of {name}")
        console.print(model.receipt)
    (options.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n")
    problems = problems_of(rows, models)
    for problem in problems:
        console.print(f"[bold red]FAILED[/bold red]  {problem}")
    progress(f"done; files are in {options.output}/")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
