"""Attention whose products are integers (`QConfigMapping.set_object_type("matmul", ...)`) against attention in floats.

First the products alone, at the sizes of BERT-base: 12 heads, 128 x 128 x 64. Then BERT-base as a whole, converted three ways: attention as
one float op (what a converted model has by default), written out in floats, and written out with integer products; with the SQNR of
each against the float model. Bursts alternate; with one thread the times are that thread's own (CPU time), which other programs disturb
less. Writes benchmarks/results/attention.json.

    pip install transformers
    python benchmarks/attention.py --threads 2
    python benchmarks/attention.py --products       # without BERT
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time

import torch

import torchquant as tq
from harness import write_result

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))
from networks import build, calibration, example, signal_to_noise  # noqa: E402

ops = torch.ops.torchquant
HEADS, ROWS, DEPTH = 12, 128, 64


def alternate(cases: dict, rounds: int, calls: int) -> dict[str, dict]:
    """Median and shortest microseconds of a call of each case; `calls` calls in turn, `rounds` times, after one burst that does not
    count."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = {name: [] for name in cases}
    for burst in range(rounds + 1):
        for name, call in cases.items():
            start = clock()
            for _ in range(calls):
                call()
            if burst:
                seconds[name].append((clock() - start) / calls)
    return {
        name: {"median_us": 1e6 * statistics.median(values), "shortest_us": 1e6 * min(values)} for name, values in seconds.items()
    }


def side_by_side(batch: int, dtype: torch.dtype) -> torch.Tensor:
    """[batch, heads, rows, depth] as projections give it."""
    x = torch.randint(0, 256, (batch, ROWS, HEADS, DEPTH), dtype=torch.uint8)
    return (x if dtype == torch.uint8 else x.to(dtype) / 64 - 2).transpose(1, 2)


def measure_products(batch: int, rounds: int) -> list[dict]:
    q, k, v = (side_by_side(batch, torch.uint8) for _ in range(3))
    weights = torch.randint(0, 256, (batch, HEADS, ROWS, ROWS), dtype=torch.uint8)
    qf, kf, vf = (side_by_side(batch, torch.float32) for _ in range(3))
    wf = torch.softmax(torch.randn(batch, HEADS, ROWS, ROWS), -1)

    def scores(zero_point):
        return lambda: ops.quantized_matmul(
            q, k.transpose(-1, -2), multiplier=1e-4, a_zero_point=128, b_zero_point=zero_point, output_dtype=torch.float32
        )

    def context(zero_point):
        return lambda: ops.quantized_matmul(
            weights, v, multiplier=1e-3, a_zero_point=0, b_zero_point=zero_point, output_dtype=torch.uint8, output_zero_point=128
        )

    cases = {
        "scores, integers": scores(117),
        "scores, integers, b symmetric": scores(128),
        "scores, torch fp32": lambda: torch.matmul(qf, kf.transpose(-1, -2)),
        "context, integers": context(117),
        "context, integers, b symmetric": context(128),
        "context, torch fp32": lambda: torch.matmul(wf, vf),
        "softmax, torch fp32": lambda: torch.softmax(wf, -1),
        "whole attention, one float op": lambda: ops.attention(qf, kf, vf),
    }
    return [{"what": name, "batch": batch, **times} for name, times in alternate(cases, rounds, calls=20).items()]


def converted_bert(batch: int, layers: int, attention: str):
    model, x = build("bert_base"), example("bert_base", batch)
    model.bert.encoder.layer = model.bert.encoder.layer[:layers]
    model.bert.set_attn_implementation("sdpa" if attention == "one float op" else "eager")
    qconfig = tq.QConfigMapping(tq.qconfigs.int8_static())
    if attention.startswith("integer products"):
        spec = tq.qconfigs.int8_static()
        if attention.endswith("symmetric"):
            spec = tq.QConfig(spec.weight, tq.QuantSpec.activation(symmetric=True))
        qconfig.set_object_type("matmul", spec)
    quantized = tq.quantize_model(model, x, qconfig, calibration=calibration("bert_base", batch))
    with torch.inference_mode():
        noise = signal_to_noise(model(x), quantized(x))
    products = [row["precision"] for row in quantized.receipt.rows if row["kind"] == "matmul"]
    return quantized.script, x, noise, products


def measure_bert(batch: int, layers: int, rounds: int) -> list[dict]:
    rows, cases = {}, {}
    for attention in ("one float op", "float products", "integer products", "integer products, symmetric"):
        script, x, noise, products = converted_bert(batch, layers, attention)
        rows[attention] = {"what": f"BERT-base, {attention}", "batch": batch, "layers": layers, "sqnr_db": noise, "products": len(products)}
        cases[attention] = lambda script=script, x=x: script(x)
    with torch.inference_mode():
        measured = alternate(cases, rounds, calls=2)
    return [{**rows[name], **times} for name, times in measured.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=12, help="of BERT: fewer take less memory")
    parser.add_argument("--products", action="store_true", help="the products alone")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    rows = measure_products(arguments.batch, arguments.rounds)
    if not arguments.products:
        rows += measure_bert(arguments.batch, arguments.layers, arguments.rounds)
    for row in rows:
        sqnr = f"   {row['sqnr_db']:.1f} dB" if "sqnr_db" in row else ""
        print(f"{row['what']:<40} {row['median_us']:10.1f} us, shortest {row['shortest_us']:10.1f} us{sqnr}")
    write_result("attention", {"heads": HEADS, "rows": ROWS, "depth": DEPTH}, rows)


if __name__ == "__main__":
    main()
