"""`torchquant doctor`: what is installed, and does it work here?"""

from __future__ import annotations

import platform
import sys

import click
import torch

from torchquant import _build_info, _C, _load
from torchquant.commands.common import as_json, print_json, print_table
from torchquant.errors import first_line


@click.command(short_help="What is installed, and does it work here?")
@as_json
def doctor(as_json: bool) -> None:
    """Say what is installed, what it was built for and whether it works here.

    Exits with 1 and one sentence for each problem found. TORCHQUANT_ISA=reference|avx2|avx_vnni|avx512|avx512_vnni
    chooses the CPU instruction set.
    """
    problems: list[str] = []
    facts = _facts(problems)
    if as_json:
        print_json({**facts, "problems": problems})
    else:
        print_table("torchquant doctor", facts)
    for problem in problems:
        click.echo(f"Problem: {problem}", err=True)
    if problems:
        sys.exit(1)


def _facts(problems: list[str]) -> dict:
    facts = {
        "torchquant": _build_info.VERSION,
        "torch": torch.__version__,
        "built for torch": _build_info.TORCH_VERSION,
        "compiler": _build_info.COMPILER,
        "python": platform.python_version(),
        "library": str(_load.LIBRARY),
        "CUDA library": _cuda_library_state(problems),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "available instruction sets": _C.available_isas(),
    }
    try:
        facts["instruction set"] = _C.selected_isa()
        facts["self-test"] = "passed" if _self_test(problems) else "failed"
    except RuntimeError as error:  # TORCHQUANT_ISA names a set that is not here
        problems.append(first_line(error))
    return facts


def _cuda_library_state(problems: list[str]) -> str:
    gpu = torch.cuda.is_available()
    if not _build_info.CUDA:
        if gpu:
            problems.append("a GPU is here but this torchquant was built without CUDA; rebuild it where nvcc is on PATH.")
        return "not built"
    if not _load.CUDA_LIBRARY.exists():
        problems.append(f"this torchquant was built with CUDA but {_load.CUDA_LIBRARY} is missing; install torchquant again.")
        return "missing"
    return "loaded" if gpu else "present, not loaded (no GPU)"


def _self_test(problems: list[str]) -> bool:
    """A tie on each side and a saturation, on every device that is here."""
    expected = torch.tensor([0, 2, -128], dtype=torch.int8)
    for device in ("cpu", "cuda") if torch.cuda.is_available() and _build_info.CUDA else ("cpu",):
        x, scale, zero_point = (torch.tensor(v, device=device) for v in ([0.25, 0.75, -900.0], [0.5], [0.0]))
        codes = torch.ops.torchquant.quantize(x, scale, zero_point, dtype=torch.int8).cpu()
        if not torch.equal(codes, expected):
            problems.append(f"quantize gives {codes.tolist()} on {device} where {expected.tolist()} is right; please report this.")
            return False
    return True
