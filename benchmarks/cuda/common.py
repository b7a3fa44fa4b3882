"""What the CUDA benchmarks share: timing by CUDA events, the limits of the GPU in front, and the command line.

A figure means something beside another one of the same run on the same GPU: peers take turns, medians are compared, and each
time is also given as a share of what copy bandwidth or the GEMM rate of that run would allow.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import re
import signal
import statistics
import sys

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from harness import write_result  # noqa: E402

NO_GPU = "torch sees no CUDA GPU: these benchmarks compare kernels on one, so nothing was measured."


class OutOfTime(Exception):
    """The run was told to end (SIGTERM, as `timeout` sends it): what was measured so far is written."""


def end_the_run(signum, frame):
    raise OutOfTime


@dataclasses.dataclass(frozen=True)
class Limits:
    """Rates that this GPU reached in this run."""

    bytes_per_second: float  # copy, read and written bytes together
    bf16_per_second: float  # multiply-adds times two
    int8_per_second: float


@dataclasses.dataclass(frozen=True)
class Case:
    """Calls that compute the same. `bytes_moved` and `operations` are what ours cannot do without; `unit` names the GEMM rate."""

    name: str
    calls: dict
    bytes_moved: int = 0
    operations: int = 0
    unit: str = "int8"


def medians(calls: dict, seconds: float, rounds: int = 5) -> dict:
    """Median milliseconds of one call of each over `rounds` bursts, in which they take turns; a burst's calls follow one another
    at once, which hides what a launch costs the host."""
    counts = {name: calls_in(call, 1e3 * seconds / rounds) for name, call in calls.items()}
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(burst(call, counts[name]) / counts[name])
    return {name: statistics.median(each) for name, each in times.items()}


def milliseconds(function, seconds: float) -> float:
    return medians({"": function}, seconds)[""]


def calls_in(function, wanted_ms: float, most: int = 1 << 14) -> int:
    """How many calls of `function` last for about `wanted_ms`."""
    function()
    torch.cuda.synchronize()
    count = 1
    while (total := burst(function, count)) < wanted_ms and count < most:
        count = max(2 * count, int(count * wanted_ms / max(total, 1e-3)))
    return min(count, most)


def burst(function, count: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        function()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def measure_limits(seconds: float) -> Limits:
    source = torch.empty(1 << 28, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / (1e-3 * milliseconds(lambda: target.copy_(source), seconds))
    size = 8192
    a = torch.randn(size, size, dtype=torch.bfloat16, device="cuda")
    bf16 = 2 * size**3 / (1e-3 * milliseconds(lambda: a @ a, seconds))
    q = torch.randint(-127, 128, (size, size), dtype=torch.int8, device="cuda")
    int8 = 2 * size**3 / (1e-3 * milliseconds(lambda: torch._int_mm(q, q.t()), seconds))
    return Limits(copy, bf16, int8)


def share_of_limit(case: Case, ms: float, limits: Limits) -> float:
    """The time that the slower of memory and tensor cores would need, over the time it took."""
    rate = limits.int8_per_second if case.unit == "int8" else limits.bf16_per_second
    return max(case.bytes_moved / limits.bytes_per_second, case.operations / rate) / (1e-3 * ms)


def summary(case: Case, times: dict, limits: Limits) -> dict:
    ours = times["torchquant"]
    row = {"case": case.name, "median_ms": times, "share_of_limit": share_of_limit(case, ours, limits)}
    row["times_faster_than"] = {peer: ms / ours for peer, ms in times.items() if peer != "torchquant"}
    return row


def show(row: dict) -> None:
    peers = "   ".join(f"{row['times_faster_than'][peer]:.2f}x {peer}" for peer in row["times_faster_than"])
    print(f"{row['case']:<52} {1e3 * row['median_ms']['torchquant']:10.1f} us  {row['share_of_limit']:5.0%} of limit   {peers}")


def missing_ops(names: tuple) -> list:
    """Ops of torch.ops.torchquant, of those in `names`, that have no CUDA kernel in this build."""
    import torchquant  # noqa: F401

    def there(name):
        try:
            return torch._C._dispatch_has_kernel_for_dispatch_key(f"torchquant::{name}", "CUDA")
        except RuntimeError:  # no op of that name
            return False

    return [name for name in names if not there(name)]


def run_cases(families: dict, options, limits: Limits) -> tuple[list, dict]:
    """Rows, and why what was skipped was. `families` maps a name to (ops it needs, function that makes its cases)."""
    rows, skipped = [], {}
    names = [name for name in families if not options.only or name in options.only]
    try:
        for name in names:
            needed, make = families[name]
            if missing := missing_ops(needed):
                skipped[name] = f"no CUDA kernel for {', '.join(missing)}"
                print(f"skipped {name}: {skipped[name]}")
                continue
            try:
                for case in make():
                    rows.append(summary(case, medians(case.calls, options.seconds), limits))
                    show(rows[-1])
            except (RuntimeError, NotImplementedError) as error:  # the rest of the family; the others go on
                skipped[name] = str(error).splitlines()[0]
                print(f"stopped {name}: {skipped[name]}")
    except OutOfTime:
        for late in names[names.index(name):]:
            skipped[late] = "the time was up"
        print(f"stopped at {name}: {skipped[name]}")
    return rows, skipped


def in_a_graph(call):
    """Replays of `call`, which costs the host one launch: what the GPU itself takes."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def main(description: str, result: str, families: dict, argv=None) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=sorted(families), help="families to measure; default: all")
    parser.add_argument("--seconds", type=float, default=0.1, help="of measuring for each call (default 0.1)")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, end_the_run)
    torch.manual_seed(0)
    limits = measure_limits(options.seconds)
    print(f"{torch.cuda.get_device_name()}: copy {limits.bytes_per_second / 1e12:.2f} TB/s, bf16 "
          f"{limits.bf16_per_second / 1e12:.0f} and int8 {limits.int8_per_second / 1e12:.0f} TOP/s")  # fmt: skip
    rows, skipped = run_cases(families, options, limits)
    gpu = re.sub(r"\W+", "_", torch.cuda.get_device_name().lower())
    write_result(f"{result}_{gpu}", {"limits": dataclasses.asdict(limits), "skipped": skipped, "seconds": options.seconds}, rows)
    return 0
