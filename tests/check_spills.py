"""Fails if a tile kernel moves a vector register to or from the stack: each such move costs a multiply-add of the hot loop.

Usage: check_spills.py OBJDUMP OBJECT NAME  -- NAME is a part of the kernels' names in the object file's symbols.
"""

import re
import subprocess
import sys

FUNCTION = re.compile(r"^[0-9a-f]+ <(.*)>:$")
SPILL = re.compile(r"\((%rsp|%rbp)\).*%[yz]mm|%[yz]mm.*\((%rsp|%rbp)\)")


def count_spills(disassembly: str, name: str) -> dict[str, int]:
    """Number of stack moves of vector registers in each function whose name contains `name`."""
    spills: dict[str, int] = {}
    function = None
    for line in disassembly.splitlines():
        header = FUNCTION.match(line)
        if header:
            function = header.group(1) if name in header.group(1) else None
            if function:
                spills[function] = 0
        elif function and SPILL.search(line):
            spills[function] += 1
    return spills


def main() -> int:
    objdump, path, name = sys.argv[1:]
    disassembly = subprocess.run(
        [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", path], check=True, capture_output=True, text=True
    ).stdout
    spills = count_spills(disassembly, name)
    if not spills:
        print(f"{path} holds no function named like '{name}'.")
        return 1
    for function, count in spills.items():
        if count:
            print(f"{count} spills in {function}")
    print(f"{len(spills)} functions checked")
    return 1 if any(spills.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
