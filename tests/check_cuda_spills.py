"""Fails if a CUDA kernel keeps something in local memory (spilled registers, arrays with run-time indices): each access goes
to device memory. Prints, per architecture, the registers and the shared memory of every kernel.

Usage: check_cuda_spills.py CUOBJDUMP LIBRARY [ALLOWED ...]  -- ALLOWED: parts of the names of kernels that may, being rarely run
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

ARCHITECTURE = re.compile(r"^arch = (sm_\w+)")
FUNCTION = re.compile(r"^ *Function (\S+?):?$")
USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def kernels(report: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(architecture, mangled name, usage) of each kernel in what `cuobjdump --dump-resource-usage` printed."""
    architecture = name = ""
    for line in report.splitlines():
        if match := ARCHITECTURE.match(line):
            architecture = match.group(1)
        elif match := FUNCTION.match(line):
            name = match.group(1)
        elif name and (match := USAGE.search(line)):
            yield architecture, name, dict(zip(("registers", "stack", "shared", "local"), map(int, match.groups())))
            name = ""


def demangle(names: list[str]) -> dict[str, str]:
    tool = shutil.which("c++filt")
    if tool is None:
        return {name: name for name in names}
    readable = subprocess.run([tool, "-p"], input="\n".join(names), check=True, capture_output=True, text=True).stdout.splitlines()
    noise = re.compile(r"torchquant::kernels::cuda::|\(anonymous namespace\)::|_GLOBAL__N__\w+::")
    return {name: noise.sub("", text) for name, text in zip(names, readable)}


def main() -> int:
    cuobjdump, library, *allowed = sys.argv[1:]
    report = subprocess.run([cuobjdump, "--dump-resource-usage", library], check=True, capture_output=True, text=True).stdout
    found = list(kernels(report))
    if not found:
        print(f"{library} holds no code for any architecture, so nothing was checked.")
        return 1
    readable = demangle([name for _, name, _ in found])
    print(f"{'arch':<8}{'registers':>10}{'shared':>8}{'local':>7}  kernel")
    spilling = []
    for architecture, name, usage in sorted(found, key=lambda row: (row[0], readable[row[1]])):
        in_local = usage["stack"] + usage["local"]
        print(f"{architecture:<8}{usage['registers']:>10}{usage['shared']:>8}{in_local:>7}  {readable[name]}")
        if in_local and not any(part in name for part in allowed):
            spilling.append(f"{readable[name]} on {architecture}: {in_local} bytes")
    print(f"{len(found)} kernels checked")
    for line in spilling:
        print(f"local memory: {line}")
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
