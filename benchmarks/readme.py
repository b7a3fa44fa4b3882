"""Draws the tables of README.md, docs/performance.md and docs/zoo.md from benchmarks/results/*.json, so that every number there is one that a command
prints.

    python benchmarks/readme.py            # rewrite all
    python benchmarks/readme.py --check    # exit 1 if one is not what the results say
"""

from __future__ import annotations

import json
import pathlib
import statistics
import sys

from harness import ratio_of_rounds

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


LINEAR_SYSTEMS = {"torch_ao_dynamic": "torch.ao dynamic", "torchao_dynamic_w8a8": "torchao W8A8, compiled", "torch_fp32": "torch fp32"}


def linear_section() -> str:
    result = read("linear")
    times = {(row["system"], row["m"]): row for row in result["rows"]}

    def cell(system: str, m: int) -> str:
        if (system, m) not in times:
            return ""
        row = times[system, m]
        return f"{row['median_us']:,.0f} µs ({ratio_of_rounds(row['us_of_rounds'], times['torchquant_dynamic', m]['us_of_rounds']):.2f}×)"

    dynamic = [row for row in result["rows"] if row["system"] == "torchquant_dynamic"]
    rows = [(row["m"], f"{row['median_us']:,.0f} µs", *(cell(system, row["m"]) for system in LINEAR_SYSTEMS)) for row in dynamic]
    decode = []
    for bits in ("int4", "int8"):
        ours, plain = times[f"torchquant_{bits}", 1], times[f"plain_read_{bits}", 1]
        decode.append(f"{bits} {ours['median_us']:.0f} µs, {100 * ratio_of_rounds(plain['us_of_rounds'], ours['us_of_rounds']):.0f} % of a plain read's rate")
    missing = "".join(f" {LINEAR_SYSTEMS.get(name, name)}: {why}." for name, why in result["setup"]["left_out"].items())
    return (
        f"**One linear layer of {dynamic[0]['n']} × {dynamic[0]['k']}, dynamic int8**, by number of rows; in brackets the other's time over ours "
        f"({where(result)}):\n\n"
        + markdown(("rows", "TorchQuant", *LINEAR_SYSTEMS.values()), rows)
        + f"\nThe same layer weight-only, one row, cold weights: {'; '.join(decode)}.{missing}\n"
    )


# What whole networks have to reach: at least so many times the speed of the fastest other int8 system, and of torch's fastest fp32.
INT8_BARS = {("resnet50", 1): 1.15}
FP32_BAR = 3.5


def network_bars_section() -> str:
    result = read("peers")
    rows = []
    for row in result["rows"]:
        rounds = {name: system["median_ms_of_rounds"] for name, system in row["systems"].items()}

        def fastest(wanted, systems=row["systems"]) -> str:
            return min((name for name in systems if wanted(name)), key=lambda name: systems[name]["median_ms"])

        ours = fastest(lambda name: name.startswith("torchquant"))
        int8 = fastest(lambda name: not name.startswith("torchquant") and not name.endswith("fp32"))
        fp32 = fastest(lambda name: name.endswith("fp32"))
        cells = [f"{ratio_of_rounds(rounds[other], rounds[ours]):.2f}× {other}" for other in (int8, fp32)]
        rows.append((row["network"], row["batch"], f"{INT8_BARS.get((row['network'], row['batch']), 1.0):.2f}×", cells[0], f"{FP32_BAR}×", cells[1]))
    return "**Whole networks**, how many times as fast as the fastest other int8 system, and as torch's fastest fp32 that was measured:\n\n" + markdown(
        ("network", "batch", "bar", "reached", "bar", "reached"), rows
    )


def vnni_rate() -> float:
    """Multiply-adds a second of one thread, as benchmarks/kernels.py measured it."""
    rows = [row for row in read("kernels")["rows"] if row["isa"] == "avx512_vnni" and row["threads"] == 1]
    return 1e9 * statistics.median(row["gmac_per_s"] / row["of_peak"] for row in rows)


def linear_bounds_section() -> str:
    result = read("linear")
    times = {(row["system"], row["m"]): row["median_us"] for row in result["rows"]}
    rate = result["threads"] * vnni_rate()
    rows = []
    for row in result["rows"]:
        if row["system"] != "torchquant_dynamic":
            continue
        least = max(1e6 * row["m"] * row["n"] * row["k"] / rate, times["plain_read_dynamic", 1])
        torch_ao = times["torch_ao_dynamic", row["m"]]
        rows.append((row["m"], f"{least:,.0f} µs", f"{row['median_us']:,.0f} µs", f"{100 * least / row['median_us']:.0f} %",
                     f"{torch_ao:,.0f} µs", f"{torch_ao / least:.2f}×"))  # fmt: skip
    return (
        "**The same layer against what the machine allows**: the larger of the time that its multiply-adds take at the VNNI rate of all threads and "
        "the time of a plain read of its weights; the last column is the most by which anyone could be faster than torch.ao:\n\n"
        + markdown(("rows", "least", "TorchQuant", "share", "torch.ao dynamic", "of the least"), rows)
    )


def kernels_section() -> str:
    result = read("kernels")
    isas = list(dict.fromkeys(row["isa"] for row in result["rows"]))
    layers = dict.fromkeys((row["layer"], row["threads"]) for row in result["rows"])
    cells = {(row["layer"], row["threads"], row["isa"]): row for row in result["rows"]}

    def cell(layer: str, threads: int, isa: str) -> str:
        row = cells[layer, threads, isa]
        return f"{row['us']:,.0f} µs" + (f", {100 * row['of_peak']:.0f} %" if "of_peak" in row else "")

    rows = [(layer, threads, *(cell(layer, threads, isa) for isa in isas)) for layer, threads in layers]
    return (
        "**Single layers**, time and share of the VNNI rate that the same run measured (for AVX2, which lacks the instruction, of the machine's) "
        f"({result['cpu']}; `make bench-kernels`):\n\n" + markdown(("layer", "threads", *isas), rows)
    )


def zoo_section() -> str:
    result = read("zoo")
    rows = []
    for row in result["rows"]:
        if "error" in row:
            rows.append((row["network"], "", "", "", "", "", row["error"]))
            continue
        why = "; ".join(f"{entry['layers']} {entry['kind']}" for entry in row["float_why"])
        figures = (f"{row['sqnr_simulation_db']:.1f} dB", f"{row['sqnr_integers_db']:.1f} dB", f"{row['convert_cpu_s']:.1f} s")
        rows.append((row["network"], row["integer_layers"], row["float_layers"], *figures, why))
    reasons = sorted({f"{entry['kind']}: {entry['reason']}" for row in result["rows"] for entry in row.get("float_why", [])})
    heading = ("network", "layers in integers", "in floats", "simulation", "integers", "conversion, CPU", "float layers")
    listed = "".join(f"- {reason}\n" for reason in reasons)
    return f"{len(rows)} networks ({where(result)}):\n\n{markdown(heading, rows)}\nReasons in the receipts:\n\n{listed}"


DOCUMENTS = {
    "README.md": (fake_quantize_section, qat_step_section, layer_agreement_section, peers_section, linear_section),
    "docs/zoo.md": (zoo_section,),
    "docs/performance.md": (network_bars_section, linear_section, linear_bounds_section, kernels_section),
}


def redrawn(text: str, sections) -> str:
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return before + BEGIN + "\n".join(section() for section in sections) + END + after


def main() -> int:
    stale = 0
    for name, sections in DOCUMENTS.items():
        path = ROOT / name
        text = path.read_text()
        updated = redrawn(text, sections)
        if "--check" not in sys.argv[1:]:
            path.write_text(updated)
        elif updated != text:
            print(f"{name} is not what benchmarks/results/ says; run: python benchmarks/readme.py")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main())
