"""The README's numbers are those of benchmarks/results/."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_tables_are_drawn_from_the_results():
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stdout
