"""The integer convolution engine, layer by layer and as a whole ResNet-50: microseconds, multiply-adds per second, and their share of what the
VNNI instruction reaches on this machine in the same run.

Runs the C++ benchmark integer_conv_bench several times in random order, so that no layer gets only the slow minutes of a shared machine, and
takes medians. Writes benchmarks/results/kernels.json. About three minutes; `make bench-kernels` builds the program first.

    python benchmarks/kernels.py build/benchmarks/integer_conv_bench
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch

from harness import write_result

NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6}


def run(program: pathlib.Path, options: list[str]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        # The table that it prints while it runs is its progress.
        subprocess.run([program, f"--benchmark_out={result}", "--benchmark_out_format=json", *options], check=True, stdout=sys.stderr)
        return json.loads(result.read_text())["benchmarks"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=pathlib.Path)
    parser.add_argument("--isas", nargs="+", default=["avx512_vnni", "avx_vnni", "avx2"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="how long a layer runs each time")
    arguments = parser.parse_args()
    options = [f"--benchmark_filter=^({'|'.join(arguments.isas)})/", f"--benchmark_min_time={arguments.seconds}",
               f"--benchmark_repetitions={arguments.repetitions}", "--benchmark_enable_random_interleaving=true"]  # fmt: skip
    rows = []
    for entry in run(arguments.program, options):
        if entry.get("aggregate_name") != "median":
            continue
        isa, layer = entry["run_name"].split("/", 1)
        threads = 2 if "threads:2" in layer else 1
        clock = "real_time" if layer.endswith("/real_time") else "cpu_time"  # as the rates do
        row = {"isa": isa, "layer": layer.split("/")[0], "threads": threads, "us": entry[clock] * NANOSECONDS[entry["time_unit"]] / 1e3,
               "gmac_per_s": entry["GMAC/s"]}  # fmt: skip
        rows.append(row | ({"of_peak": entry["of_peak"]} if "of_peak" in entry else {}))  # a machine without VNNI has no such rate
    rows.sort(key=lambda row: (arguments.isas.index(row["isa"]), row["layer"], row["threads"]))
    torch.set_num_threads(1)  # what the result file says of the single layers
    write_result("kernels", {"repetitions": arguments.repetitions, "seconds": arguments.seconds}, rows)
    for row in sorted((row for row in rows if "of_peak" in row and row["isa"] == arguments.isas[0]), key=lambda row: row["of_peak"]):
        print(f"{row['layer']:60} {row['us']:9.1f} us {100 * row['of_peak']:5.1f} % of VNNI's rate")


if __name__ == "__main__":
    main()
