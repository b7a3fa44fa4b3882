"""Draws the README's tables from benchmarks/results/*.json, so that every number in it is one that a command prints.

    python benchmarks/readme.py            # rewrite README.md
    python benchmarks/readme.py --check    # exit 1 if README.md is not what the results say
"""

from __future__ import annotations

import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results -->\n", "<!-- /results -->\n"


def read(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def where(result: dict) -> str:
    return f"{result['cpu']}, {result['isa']}, {result['threads']} threads, torch {result['torch']}; `{result['command']}`"


def markdown(heading: tuple, rows: list) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


CASES = {
    "forward": "fake_quantize",
    "forward_backward": "fake_quantize, forward + backward",
    "learnable": "learnable scale and zero point, forward + backward",
    "fused_observe": "fused observe + fake-quantize",
}


def fake_quantize_section() -> str:
    result = read("fake_quantize_cpu")
    rows = []
    for row in result["rows"]:
        clone = f"{row['times_clone']:.2f}" if "times_clone" in row else ""
        times = [f"{row['median_us'][peer]:,.0f} µs" for peer in ("torchquant", "torch")]
        rows.append((CASES[row["case"]], f"{row['elements']:,}", *times, f"{row['times_faster_than_torch']:.1f}×", clone))
    return f"**Training ops against torch's own**, fp32 per tensor ({where(result)}):\n\n" + markdown(
        ("op", "elements", "TorchQuant", "torch", "faster by", "time / `x.clone()`"), rows
    )


def qat_step_section() -> str:
    result = read("qat_step_cpu")
    rows = [(row["peer"], f"{row['median_ms']:.0f} ms", f"{row['ratio_to_fp32']:.2f}×") for row in result["rows"]]
    return f"**A ResNet-18 training step**, batch 16 at 112×112 ({where(result)}):\n\n" + markdown(
        ("", "median", "of fp32"), rows
    )


def layer_agreement_section() -> str:
    result = read("layer_agreement")
    rows = [
        (row["network"], f"{row['layers_passed']} of {row['layers']}", f"{row['differing_percent']:.5f} %", row["largest_step"],
         f"{row['worst_layer_percent']:.4f} %", f"{row['sqnr_of_simulation_db']:.1f} dB", f"{row['sqnr_of_integers_db']:.1f} dB")
        for row in result["rows"]
    ]  # fmt: skip
    heading = ("network", "layers within the bar", "codes that differ", "by at most", "worst layer", "simulation", "integers")
    return (
        "**Each converted layer against the fake-quantized one**, fed the same integers (bar: one step, in 0.1 % of the codes); then the "
        f"whole network's SQNR against the float model, simulated and in integers ({where(result)}):\n\n" + markdown(heading, rows)
    )


def peers_section() -> str:
    result = read("peers")
    rows = []
    for row in result["rows"]:
        systems = row["systems"]
        ours = min((name for name in systems if name.startswith("torchquant")), key=lambda name: systems[name]["median_ms"])
        others = sorted((name for name in systems if not name.startswith("torchquant")), key=lambda name: systems[name]["median_ms"])
        cells = [f"{name} {systems[name]['median_ms']:.1f} ms" for name in others]
        rows.append((row["network"], row["batch"], f"{systems[ours]['median_ms']:.1f} ms", ", ".join(cells)))
    # Rows may come from several runs (--merge), of which the file names the last.
    measured = where(result | {"command": "python benchmarks/peers/run.py --merge --networks NETWORK --batches BATCH --systems SYSTEM..."})
    return (
        f"**Whole networks in int8 beside other systems**, each row one run, median of {result['setup']['rounds']} rounds ({measured}):\n\n"
        + markdown(("network", "batch", "TorchQuant", "others, fastest first"), rows)
    )


def render() -> str:
    return "\n".join([fake_quantize_section(), qat_step_section(), layer_agreement_section(), peers_section()])


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    updated = before + BEGIN + render() + END + after
    if "--check" in sys.argv[1:]:
        if updated != text:
            print("README.md is not what benchmarks/results/ says; run: python benchmarks/readme.py")
        return int(updated != text)
    path.write_text(updated)
    return 0


if __name__ == "__main__":
    sys.exit(main())
