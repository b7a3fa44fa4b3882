"""One linear layer against the systems that a user could pick: dynamic int8 at M = 1 to 512, and weight-only int4 and int8 decode (M = 1).

Each system runs in a process of its own; short bursts alternate. Outputs are compared with the float layer's before anything is timed. The
weight-only rows also give the share of the memory bandwidth that a plain read of as many bytes reaches in the same run.
Writes benchmarks/results/linear.json. Takes two minutes. A system that is not ready in time is left out, and the result says so.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/linear.py
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import sys
import time
import warnings

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from networks import signal_to_noise  # noqa: E402
from harness import PeerProcesses, ratio_of_rounds, write_result  # noqa: E402

DYNAMIC = ("torchquant_dynamic", "torch_ao_dynamic", "torchao_dynamic_w8a8", "torch_fp32")
PLAIN_READ = "plain_read_dynamic"  # of a dynamic layer's weights, as warm as it finds them
WEIGHT_ONLY = ("torchquant_int4", "torchquant_int8", "plain_read_int4", "plain_read_int8", "torch_fp32")
SMALLEST_SQNR = 15.0  # dB; int4 per group of random weights gives about 20
COLD_LAYERS = 8  # decode reads each layer's weights once per token: rotate through more bytes than the caches hold


def weight_bytes(system: str, n: int, k: int) -> int:
    """What one call reads of the weight: codes, and an fp32 scale per group of 128 (int4) or per row (int8)."""
    if system.endswith("int4"):
        return n * k // 2 + n * (k // 128) * 4
    return n * k + 4 * n


def make_layers(system: str, n: int, k: int, count: int) -> list:
    layers = []
    for index in range(count):
        torch.manual_seed(index)
        layer = nn.Linear(k, n, bias=False).eval()
        if system.startswith("torchquant"):
            import torchquant as tq

            name = system.removeprefix("torchquant_")
            qconfig = {"dynamic": tq.qconfigs.int8_dynamic, "int4": lambda: tq.qconfigs.int4_weight_only(128), "int8": tq.qconfigs.int8_weight_only}[name]()
            layers.append(tq.quantize_model(nn.Sequential(layer), torch.randn(2, k), qconfig).script)
        elif system == "torch_ao_dynamic":
            torch.backends.quantized.engine = "x86"
            layers.append(torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, dtype=torch.qint8))
        elif system == "torchao_dynamic_w8a8":
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            module = nn.Sequential(layer)
            quantize_(module, Int8DynamicActivationInt8WeightConfig())
            # Inductor's freezing stays off: it puts the product into an op that took 5 s for 16 rows, on a processor with VNNI.
            layers.append(torch.compile(module, dynamic=False))
        else:
            layers.append(layer)
    return layers


def make_reader(bytes_per_call: int, count: int):
    """The sum of as many bytes as the weights have, as 64-bit words: what the memory gives, with nothing to compute."""
    blocks = [torch.ones(bytes_per_call // 8, dtype=torch.int64) for _ in range(count)]
    return [lambda x, block=block: block.sum() for block in blocks]


def make_burst(system: str, rows: tuple[int, ...], n: int, k: int, count: int, threads: int, seconds: float):
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    plain = system.startswith("plain_read")
    layers = make_reader(weight_bytes(system, n, k), count) if plain else make_layers(system, n, k, count)
    inputs = {m: torch.randn(m, k, generator=torch.Generator().manual_seed(m)) for m in rows}
    outputs = {m: None if plain else layers[0](x).numpy() for m, x in inputs.items()}
    for x in inputs.values():
        for layer in layers * 2:
            layer(x)

    def burst():
        times = {}
        for m, x in inputs.items():
            taken, end = [], time.perf_counter() + seconds
            while not taken or time.perf_counter() < end:
                begin = time.perf_counter()
                for layer in layers:
                    layer(x)
                taken.append((time.perf_counter() - begin) / len(layers))
            times[m] = statistics.median(taken)
        return {"times": times, "outputs": outputs}

    return burst


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def measure(rows_of: dict[str, tuple[int, ...]], n: int, k: int, count: int, arguments) -> tuple[list[dict], dict[str, str]]:
    """A row per system and number of rows, by number of rows, and why a system has none."""
    failures = {}

    def leave_out(name: str, text: str) -> None:
        failures[name] = text.strip().splitlines()[-1][:160]
        say(f"{name} is left out: {failures[name]}")

    peers = {name: (make_burst, (name, rows, n, k, count, arguments.threads, arguments.burst_seconds)) for name, rows in rows_of.items()}
    with PeerProcesses(peers, on_failure=leave_out, time_limit=arguments.time_limit, say=say) as processes:
        bursts = processes.alternate(arguments.rounds)
    torch.manual_seed(0)
    layer = nn.Linear(k, n, bias=False)
    result = []
    for m in sorted({m for rows in rows_of.values() for m in rows}):
        with torch.no_grad():
            wanted = layer(torch.randn(m, k, generator=torch.Generator().manual_seed(m)))
        for name, rounds in bursts.items():
            if m not in rows_of[name]:
                continue
            output = rounds[0]["outputs"][m]
            sqnr = None if output is None else signal_to_noise(wanted, torch.from_numpy(output))
            if sqnr is not None and sqnr < SMALLEST_SQNR:
                raise SystemExit(f"{name} at M = {m}: SQNR {sqnr:.1f} dB against the float layer")
            times = [entry["times"][m] for entry in rounds]
            result.append({"system": name, "m": m, "n": n, "k": k, "median_us": 1e6 * statistics.median(times), "us_of_rounds": [1e6 * t for t in times],
                           "sqnr_db": None if sqnr is None or sqnr == float("inf") else sqnr})  # fmt: skip
    return result, failures


def ratio(rows: list[dict], m: int, over: str, under: str) -> float:
    """NaN where one of the systems was left out."""
    of = {row["system"]: row["us_of_rounds"] for row in rows if row["m"] == m}
    return ratio_of_rounds(of[over], of[under]) if over in of and under in of else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 16, 64, 128, 512])
    parser.add_argument("--systems", nargs="+", choices=DYNAMIC, default=DYNAMIC, help="of the dynamic ones")
    parser.add_argument("--time-limit", type=float, default=240.0, help="seconds in which a system must be ready")
    parser.add_argument("--size", nargs=2, type=int, default=[4096, 4096], metavar=("N", "K"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst-seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    n, k = arguments.size
    print(f"dynamic int8, {n} x {k}", flush=True)
    dynamic, left_out = measure(dict.fromkeys(arguments.systems, tuple(arguments.rows)) | {PLAIN_READ: (1,)}, n, k, 1, arguments)
    for m in arguments.rows:
        measured = [row for row in dynamic if row["m"] == m]
        cells = "  ".join(f"{row['system']} {row['median_us']:.0f} us" for row in measured)
        ratios = ", ".join(f"{ratio(dynamic, m, row['system'], DYNAMIC[0]):.2f}x {row['system']}" for row in measured if row["system"] != DYNAMIC[0])
        print(f"  M = {m:4}: {cells}\n            {ratios}")
    print(f"weight only, M = 1, {COLD_LAYERS} layers of {n} x {k} in turn", flush=True)
    decode, failed = measure(dict.fromkeys(WEIGHT_ONLY, (1,)), n, k, COLD_LAYERS, arguments)
    left_out |= failed
    for bits in ("int4", "int8"):
        share = ratio(decode, 1, f"plain_read_{bits}", f"torchquant_{bits}")
        ours = next((row["median_us"] for row in decode if row["system"] == f"torchquant_{bits}"), math.nan)
        rate = weight_bytes(f"torchquant_{bits}", n, k) / ours / 1e3
        print(f"  {bits}: {rate:.1f} GB/s, {100 * share:.0f} % of a plain read; {ratio(decode, 1, 'torch_fp32', f'torchquant_{bits}'):.2f}x torch fp32")
    setup = {"rounds": arguments.rounds, "burst_seconds": arguments.burst_seconds, "cold_layers": COLD_LAYERS, "left_out": left_out}
    write_result("linear", setup, dynamic + decode)


if __name__ == "__main__":
    main()
