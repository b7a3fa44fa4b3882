"""What `import torchquant` costs: it stands at the top of training scripts that use little of the package."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Each takes from a tenth of a second to two, and serves a part of the package that few programs reach.
LOADED_WHEN_USED = [
    "click",
    "jinja2",
    "matplotlib",
    "rich",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.onnx",
    "torchvision",
    "yaml",
]


def loaded_by(program: str) -> set[str]:
    """The modules of that list that a fresh process has, beside those of torch itself, after running the program."""
    report = f"import sys, torch; before = set(sys.modules); {program}; print(*(set({LOADED_WHEN_USED}) & set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_import_loads_nothing_that_most_programs_do_not_use():
    assert loaded_by("import torchquant") == set()


def test_training_and_converting_need_torch_alone():
    """As on a GPU machine that has torch, cmake, ninja and pytest (scripts/gpu_check.sh)."""
    program = """
import sys
for name in ("numpy", "click", "hypothesis", "matplotlib", "rich", "scipy", "sklearn", "torchvision", "yaml"):
    sys.modules[name] = None
import torch, torchquant as tq
x, qconfig = torch.randn(4, 8), tq.qconfigs.int8_static()
model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
tq.quantize_model(model, (x,), qconfig, calibration=[x])(x)
tq.prepare_qat(model, (x,), qconfig)(x).sum().backward()
sys.path.insert(0, "tests/python")
import test_cuda_device, test_cuda_ops
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_preparing_and_training_load_no_compiler():
    program = (
        "import torchquant as tq; x = torch.randn(2, 4); "
        "prepared = tq.prepare_qat(torch.nn.Sequential(torch.nn.Linear(4, 4)), x, tq.qconfigs.int8_static()); prepared(x).sum().backward()"
    )
    assert loaded_by(program) <= {"rich"}
