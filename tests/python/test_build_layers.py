"""tests/check_layers.py holds for the sources, and can fail."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import check_layers  # noqa: E402


def test_sources_keep_the_layers():
    assert check_layers.find_violations(ROOT / "csrc") == []


@pytest.mark.parametrize(
    ("file", "include", "reason"),
    [
        ("numerics/a.h", '"kernels/isa.h"', "kernels is not below numerics"),
        ("kernels/cpu/a.cpp", '"ops/checks.h"', "ops is not below kernels"),
        ("kernels/cuda/a.cu", "<ATen/core/Tensor.h>", "runs without Torch"),
        ("ops/a.cpp", '"convert/convert.h"', "convert is not below ops"),
        ("ops/a.cpp", "<ATen/ATen.h>", "include narrow headers"),
        ("convert/a.cpp", '"runtime/load.h"', "runtime is not below convert"),
        ("convert/a.cpp", '"nn/linear.h"', "nn is not below convert"),
        ("convert/a.cpp", "<torch/csrc/jit/python/pybind.h>", "never needs libpython"),
        ("runtime/a.cpp", '"torchquant.h"', "torchquant.h is not below runtime"),
        ("ops/a.cpp", '"checks.h"', "write its path from csrc/, ops/checks.h"),
        ("stuff/a.cpp", "<vector>", "csrc/stuff is no layer"),
    ],
)
def test_a_planted_include_is_found(tmp_path, file, include, reason):
    for header in ("kernels/isa.h", "ops/checks.h", "convert/convert.h", "runtime/load.h", "nn/linear.h", "torchquant.h"):
        (tmp_path / header).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / header).touch()
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(f"#include <vector>\n  #  include {include}\n")
    violations = check_layers.find_violations(tmp_path)
    assert len(violations) == 1
    assert reason in violations[0]
