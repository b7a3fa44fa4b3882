"""Fake-quantization on CPU against torch's own ops: python benchmarks/fake_quantize.py

Checks that the peers compute the same, then times each in a process of its own (their thread pools slow one another), in
alternated rounds. Prints medians and ratios, writes benchmarks/results/fake_quantize_cpu.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

RESULT = Path(__file__).parent / "results" / "fake_quantize_cpu.json"
SIZES = (131_072, 3_211_264)
# How many times faster than torch (forward at the large size: at most this many times x.clone()).
TARGETS = {
    ("forward", SIZES[0]): 10.0,
    ("forward_backward", SIZES[0]): 6.0,
    ("learnable", SIZES[0]): 8.0,
    ("fused_observe", SIZES[0]): 8.0,
    ("forward", SIZES[1]): 1.25,
    ("forward_backward", SIZES[1]): 3.0,
}
SCALE, ZERO_POINT, QUANT_MIN, QUANT_MAX = 0.03, 128, 0, 255


class Tensors:
    def __init__(self, size):
        torch.manual_seed(0)
        self.x, self.grad = torch.randn(size) * 3, torch.randn(size)
        self.leaf = self.x.clone().requires_grad_()
        self.scale, self.zero_point = torch.tensor([SCALE]), torch.tensor([float(ZERO_POINT)])
        self.learned = [t.clone().requires_grad_() for t in (self.scale, self.zero_point)]
        self.min_val, self.max_val = torch.tensor([float("inf")]), torch.tensor([-float("inf")])


def backward(tensors, y):
    """Leaves the gradients in place: a loop that reads nothing measures the ops and no bookkeeping."""
    tensors.leaf.grad = tensors.learned[0].grad = tensors.learned[1].grad = None
    y.backward(tensors.grad)
    return y


def torchquant_calls(t):
    import torchquant as tq

    ops = torch.ops.torchquant
    quant_range = {"quant_min": QUANT_MIN, "quant_max": QUANT_MAX}
    state = (t.min_val, t.max_val, torch.zeros(1, dtype=torch.int64), torch.ones(1), torch.zeros(1))
    return {
        "forward": lambda: tq.fake_quantize(t.x, t.scale, t.zero_point, **quant_range),
        "forward_backward": lambda: backward(t, tq.fake_quantize(t.leaf, t.scale, t.zero_point, **quant_range)),
        "learnable": lambda: backward(t, tq.fake_quantize(t.leaf, *t.learned, **quant_range)),
        "fused_observe": lambda: ops.fused_observe_fake_quantize(
            t.x, *state, averaging_constant=0.01, symmetric=False, **quant_range
        ),
    }


def torch_calls(t):
    on, scale, zero_point = torch.ones(1, dtype=torch.int32), torch.ones(1), torch.zeros(1, dtype=torch.int32)
    return {
        "forward": lambda: torch.fake_quantize_per_tensor_affine(t.x, SCALE, ZERO_POINT, QUANT_MIN, QUANT_MAX),
        "forward_backward": lambda: backward(
            t, torch.fake_quantize_per_tensor_affine(t.leaf, SCALE, ZERO_POINT, QUANT_MIN, QUANT_MAX)
        ),
        "learnable": lambda: backward(
            t, torch._fake_quantize_learnable_per_tensor_affine(t.leaf, *t.learned, QUANT_MIN, QUANT_MAX, 1.0)
        ),
        "fused_observe": lambda: torch.fused_moving_avg_obs_fake_quant(
            t.x, on, on, t.min_val, t.max_val, scale, zero_point, 0.01, QUANT_MIN, QUANT_MAX, -1
        ),
    }


def clone_calls(t):
    return {"forward": t.x.clone}


PEERS = {"torchquant": torchquant_calls, "torch": torch_calls, "clone": clone_calls}


def check_results():
    """Results and gradients agree; sums over 131,072 terms in another order differ in the last digits."""
    a, b = Tensors(SIZES[0]), Tensors(SIZES[0])
    ours, theirs = torchquant_calls(a), torch_calls(b)
    for case in ours:
        pairs = [(ours[case](), theirs[case]()), (a.leaf.grad, b.leaf.grad)]
        pairs += [(p.grad, q.grad) for p, q in zip(a.learned, b.learned, strict=True)]
        for actual, expected in pairs:
            if actual is not None or expected is not None:
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def repeat(function, count):
    start = time.perf_counter()
    for _ in range(count):
        function()
    return time.perf_counter() - start


def serve(peer, threads):
    """Worker: reads 'case size seconds' lines, answers the microseconds of one call."""
    torch.set_num_threads(threads)
    calls = {size: PEERS[peer](Tensors(size)) for size in SIZES}
    for line in sys.stdin:
        case, size, seconds = line.split()
        function = calls[int(size)][case]
        repeat(function, 3)
        count = max(1, round(float(seconds) / repeat(function, 3) * 3))
        print(repeat(function, count) / count * 1e6, flush=True)


class Worker:
    def __init__(self, peer, threads):
        command = [sys.executable, __file__, "--serve", peer, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def measure(self, case, size, seconds):
        self.process.stdin.write(f"{case} {size} {seconds}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def measure(rounds, seconds, threads):
    workers = {peer: Worker(peer, threads) for peer in PEERS}
    rows = []
    for size in SIZES:
        for case in ("forward", "forward_backward", "learnable", "fused_observe"):
            peers = [peer for peer in PEERS if peer != "clone" or case == "forward"]
            times = {peer: [] for peer in peers}
            for _ in range(rounds):
                for peer in peers:
                    times[peer].append(workers[peer].measure(case, size, seconds))
            rows.append(summary(case, size, times))
    for worker in workers.values():
        worker.close()
    return rows


def summary(case, size, times):
    medians = {peer: statistics.median(values) for peer, values in times.items()}
    row = {
        "case": case,
        "elements": size,
        "median_us": {peer: round(value, 1) for peer, value in medians.items()},
        "fastest_us": {peer: round(min(values), 1) for peer, values in times.items()},
        "times_faster_than_torch": round(medians["torch"] / medians["torchquant"], 2),
    }
    if "clone" in medians:
        row["times_clone"] = round(medians["torchquant"] / medians["clone"], 2)
    target = TARGETS.get((case, size))
    if target is not None:
        of_clone = case == "forward" and size == SIZES[1]
        row["target"] = f"at most {target} x clone" if of_clone else f"at least {target} x torch"
        row["reached"] = row["times_clone"] <= target if of_clone else row["times_faster_than_torch"] >= target
    return row


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def print_table(rows):
    print(f"{'case':<18}{'elements':>10}{'torchquant':>13}{'torch':>11}{'clone':>10}{'ratio':>8}  target")
    for row in rows:
        median = row["median_us"]
        clone = f"{median['clone']:.1f}" if "clone" in median else ""
        mark = "" if "target" not in row else f"{row['target']}: {'reached' if row['reached'] else 'MISSED'}"
        if "times_clone" in row:
            mark += f" ({row['times_clone']} x clone)"
        print(
            f"{row['case']:<18}{row['elements']:>10}{median['torchquant']:>10.1f} us{median['torch']:>8.1f} us{clone:>10}"
            f"{row['times_faster_than_torch']:>7.1f}x  {mark.strip()}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each peer, case and round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--serve", choices=PEERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve(arguments.serve, arguments.threads)

    from torchquant import _C

    check_results()
    rows = measure(arguments.rounds, arguments.seconds, arguments.threads)
    print_table(rows)
    report = {
        "command": f"python benchmarks/fake_quantize.py --threads {arguments.threads}",
        "cpu": cpu_name(),
        "cpu_count": os.cpu_count(),
        "isa": _C.selected_isa(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
