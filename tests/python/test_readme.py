"""The README: its numbers are those of benchmarks/results/, and its code runs from top to bottom."""

import os
import pathlib
import re
import subprocess
import sys

import torch
from torch import nn

import torchquant as tq

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_tables_are_drawn_from_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=8), nn.Linear(4, 5)
        self.embedding = nn.Embedding(3, 4)

    def forward(self, x):
        y = torch.relu(self.conv(x)).mean((2, 3))
        return self.head(y + self.embedding(torch.zeros(1, dtype=torch.int64)))


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([0, 1])
    model = Model()
    names = {"model": model, "batches": [images], "loader": [(images, labels)], "loss_fn": nn.CrossEntropyLoss(), "torch": torch}
    names["evaluate"] = lambda network: -float(nn.functional.cross_entropy(network(images), labels))
    names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert isinstance(names["qconfig"], tq.QConfigMapping) and names["quantized"].receipt.summary()["int8"] >= 2

    (tmp_path / "cpp_examples").symlink_to(ROOT / "cpp_examples")
    (build_and_run,) = [block for block in blocks("bash") if "run_quantized" in block]
    python_path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    path = os.pathsep.join((str(pathlib.Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-e", "-c", build_and_run], env={**os.environ, "PYTHONPATH": python_path, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "P50" in done.stdout
