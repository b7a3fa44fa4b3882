"""docs/methods.md and benchmarks/methods.py: the tables are those of the results, the code runs, a run goes on where it stopped."""

import json
import pathlib
import re
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchquant as tq

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import methods  # noqa: E402
import workloads  # noqa: E402


def test_tables_are_drawn_from_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "methods.py"), "--docs", "--check"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_the_code_runs_and_every_method_has_its_page():
    text = (ROOT / "docs" / "methods.md").read_text()
    model, example = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval(), torch.randn(2, 1, 8, 8)
    scope = {"tq": tq, "torch": torch, "model": model, "example": example, "batches": [example], "qconfig": tq.qconfigs.int8_static()}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    assert len(scope["prepared"].torchquant_methods) == 3
    pages = {name: (ROOT / "docs" / "methods" / f"{name}.md").read_text() for name in re.findall(r"\(methods/(\w+)\.md\)", text)}
    assert {path.stem for path in (ROOT / "docs" / "methods").iterdir()} == set(pages)
    called = {name for page in pages.values() for name in re.findall(r"tq\.methods\.(\w+)\(", page)}
    assert called == {name for name in tq.methods.__all__ if name.islower()}


class Tiny(workloads.Workload):
    name, metric, higher_is_better = "tiny", "accuracy", True
    evaluations = 0

    def __init__(self):
        self.example, self.calibration = torch.randn(2, 3), [torch.randn(8, 3)]

    def float_model(self, seed):
        return nn.Linear(3, 2)

    def evaluate(self, model):
        model(self.example)
        Tiny.evaluations += 1
        return 0.5


@pytest.fixture
def tiny_plan(monkeypatch, tmp_path):
    monkeypatch.setattr(methods, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(methods, "read", lambda name: json.loads((tmp_path / "results" / f"{name}.json").read_text()))
    monkeypatch.setattr(methods, "write_result", lambda name, setup, rows, quiet: write(tmp_path / "results" / f"{name}.json", setup, rows))
    monkeypatch.setattr(methods, "PLAN", {"tiny": (("int8 per channel", "int4 per channel"), ("PTQ", "AdaRound"))})
    monkeypatch.setitem(workloads.WORKLOADS, "tiny", Tiny)
    monkeypatch.setattr(workloads, "ROOT", tmp_path)
    (tmp_path / "build").mkdir()
    Tiny.evaluations = 0
    return tmp_path


def write(path, setup, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"setup": setup, "rows": rows}))


def test_a_run_that_was_stopped_goes_on_and_keeps_its_rows(tiny_plan, monkeypatch):
    measured = []
    measure = methods.measure

    def stopping(workload, *key):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(key)
        return measure(workload, *key)

    monkeypatch.setattr(methods, "measure", stopping)
    with pytest.raises(KeyboardInterrupt):
        methods.run(["tiny"], [0, 1], fresh=False)
    assert len(methods.finished_rows(False)) == 3
    monkeypatch.setattr(methods, "measure", measure)
    methods.run(["tiny"], [0, 1], fresh=False)
    rows = methods.finished_rows(False)
    assert len(rows) == len({methods.key_of(row) for row in rows}) == 10 == Tiny.evaluations
    methods.run(["tiny"], [0, 1], fresh=False)
    assert Tiny.evaluations == 10


def test_rows_of_other_settings_are_not_mixed_in(tiny_plan, monkeypatch):
    methods.run(["tiny"], [0], fresh=False)
    monkeypatch.setattr(methods, "ADAROUND_ITERATIONS", 7)
    with pytest.raises(SystemExit, match="pass --fresh"):
        methods.run(["tiny"], [0], fresh=False)


def test_two_runs_do_not_overwrite_each_other(tiny_plan):
    with methods.only_writer():
        with pytest.raises(SystemExit, match="another run of benchmarks/methods.py is writing"):
            with methods.only_writer():
                pass
