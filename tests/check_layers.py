"""Fails if a folder of csrc/ includes a layer above it. Run by ctest and pytest: python tests/check_layers.py [csrc]

numerics <- kernels <- ops <- {observers, nn, runtime};  ops <- convert <- python;  archive is shared by convert and runtime.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# The folders that the files of a folder may include besides their own. "" is csrc/ itself, which holds export.h.
ALLOWED = {
    "": set(),
    "numerics": set(),
    "kernels": {"", "numerics"},
    "archive": {""},
    "ops": {"", "numerics", "kernels"},
    "observers": {"", "numerics", "kernels", "ops"},
    "nn": {"", "numerics", "kernels", "ops", "observers"},
    "convert": {"", "numerics", "kernels", "ops", "archive"},
    "runtime": {"", "numerics", "kernels", "ops", "archive"},
    "python": {"", "numerics", "kernels", "ops", "archive", "observers", "nn", "convert", "runtime"},
}
UMBRELLA = "torchquant.h"  # names every layer, so that users need name none

# Headers from outside that only the folders listed may include, and why.
RESTRICTED = [
    (r"(torch|ATen|c10|caffe2)/", set(ALLOWED) - {"numerics", "kernels"}, "this layer runs without Torch"),
    (r"torch/(torch|extension)\.h$|ATen/ATen\.h$", {"nn", "python"}, "it costs a minute to compile: include narrow headers"),
    (r"torch/(script\.h|csrc/jit/)", {"archive", "convert", "nn", "runtime", "python"}, "TorchScript belongs to nn (tracing), convert and runtime"),
    (r"torch/csrc/jit/python/|torch/csrc/utils/pybind|pybind11/|Python\.h", {"python"}, "the library never needs libpython"),
]
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')


def find_violations(csrc: Path) -> list[str]:
    violations = []
    for path in sorted(csrc.rglob("*")):
        if path.suffix not in (".h", ".cpp", ".cu", ".cuh", ".inc") or path == csrc / UMBRELLA:
            continue
        folders = path.relative_to(csrc).parent.parts
        layer = folders[0] if folders else ""
        if layer not in ALLOWED:
            violations.append(f"{path}: csrc/{layer} is no layer; the layers are {', '.join(filter(None, ALLOWED))}")
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = INCLUDE.match(line)
            reason = match and why_forbidden(csrc, path, layer, match.group(1))
            if reason:
                violations.append(f"{path}:{number}: {layer or 'csrc'} may not include {match.group(1)}: {reason}")
    return violations


def why_forbidden(csrc: Path, path: Path, layer: str, header: str) -> str | None:
    for pattern, allowed, reason in RESTRICTED:
        if re.match(pattern, header) and layer not in allowed:
            return reason
    if (csrc / header).exists():
        target = header.split("/")[0] if "/" in header else ""
        if header == UMBRELLA or (target != layer and target not in ALLOWED[layer]):
            return f"{target or header} is not below {layer or 'csrc'}"
    elif (path.parent / header).exists():
        return f"write its path from csrc/, {(path.parent / header).resolve().relative_to(csrc.resolve())}"
    return None


def main() -> int:
    csrc = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent / "csrc"
    if not csrc.is_dir():
        print(f"{csrc} is not a folder")
        return 1
    violations = find_violations(csrc)
    print("\n".join(violations) or f"{csrc}: every include points downwards")
    return int(bool(violations))


if __name__ == "__main__":
    sys.exit(main())
