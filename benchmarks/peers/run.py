"""Whole networks against the systems that a user would pick instead, on this machine, in one run.

Each system prepares its artifact in a process of its own, then loads and runs it in another; the running ones take turns in short bursts
(shared machines change speed within a minute), one at a time. Outputs are compared with the float model's before anything is timed. Prints a
table, writes benchmarks/results/peers.json and benchmarks/results/peers.svg.

    pip install -r benchmarks/peers/requirements.txt
    python benchmarks/peers/run.py                                    # everything: about an hour
    python benchmarks/peers/run.py --networks resnet50 --batches 1    # one column of it
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import pathlib
import re
import statistics
import sys
import tempfile
import time
import traceback
import warnings

import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

from networks import NETWORKS, build, example, signal_to_noise  # noqa: E402
from harness import RESULTS, PeerProcesses, ratio_of_rounds, write_result  # noqa: E402
from systems import SYSTEMS, systems_for  # noqa: E402

SMALLEST_SQNR = 3.0  # dB; below it an output has little to do with the float model's, and its time means nothing
LARGEST_INT8_SQNR = 70.0  # dB; above it nothing was quantized


def _prepare(connection, system: str, network: str, batch: int, folder: str, threads: int) -> None:
    """Child process: writes the artifact and answers (path or None, seconds) or a traceback."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        model = build(network)
        begin = time.perf_counter()
        with torch.no_grad():
            path = SYSTEMS[system].prepare(model, network, batch, pathlib.Path(folder))
        connection.send((str(path) if path else None, time.perf_counter() - begin))
    except BaseException:
        connection.send(traceback.format_exc())


def prepare(system: str, network: str, batch: int, folder: pathlib.Path, threads: int):
    folder.mkdir(parents=True)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_prepare, args=(theirs, system, network, batch, str(folder), threads))
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
    except EOFError:
        answer = "the process ended without an answer"
    process.join()
    return answer


def peak_megabytes() -> float:
    """Of this process alone; getrusage's maximum survives the exec that spawned it, and would show the parent's."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]) / 1024


def make_burst(system: str, artifact: str | None, network: str, batch: int, threads: int, seconds: float):
    """In the child that measures: opens the artifact, and returns a function that runs for `seconds` and returns its times."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    for module in SYSTEMS[system].imports:
        importlib.import_module(module)
    model = None if artifact else build(network)
    x = example(network, batch)
    begin = time.perf_counter()
    run = SYSTEMS[system].open(pathlib.Path(artifact) if artifact else None, model, network, batch, threads)
    output = run(x)
    facts = {"cold_start_s": time.perf_counter() - begin, "output": output.numpy()}
    for _ in range(3):
        run(x)

    def burst():
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            run(x)
            times.append(time.perf_counter() - begin)
        return {**facts, "times": times, "peak_mb": peak_megabytes()}

    return burst


def artifact_bytes(path: str | None) -> int | None:
    if path is None:
        return None
    file = pathlib.Path(path)
    weights = file.with_suffix(".bin")
    return file.stat().st_size + (weights.stat().st_size if file.suffix == ".xml" else 0)


def measure(network: str, batch: int, systems: list[str], arguments, folder: pathlib.Path) -> dict:
    with torch.no_grad():
        wanted = build(network)(example(network, batch))
    prepared = {}
    for system in systems:
        print(f"{network}, batch {batch}: {system} prepares", file=sys.stderr, flush=True)
        prepared[system] = prepare(system, network, batch, folder / f"{network}-{batch}-{system}", arguments.threads)
    failures = {system: answer for system, answer in prepared.items() if isinstance(answer, str)}
    peers = {
        system: (make_burst, (system, prepared[system][0], network, batch, arguments.threads, arguments.burst_seconds))
        for system in systems if system not in failures
    }  # fmt: skip

    def say(text: str) -> None:
        print(f"{network}, batch {batch}: {text}", file=sys.stderr, flush=True)

    with PeerProcesses(peers, on_failure=failures.__setitem__, time_limit=arguments.time_limit, say=say) as processes:
        bursts = processes.alternate(arguments.rounds)
    rows = {}
    for system, results in bursts.items():
        sqnr = signal_to_noise(wanted, torch.from_numpy(results[0]["output"]))
        if sqnr < SMALLEST_SQNR or (SYSTEMS[system].precision == "int8" and sqnr > LARGEST_INT8_SQNR):
            failures[system] = f"its output has an SQNR of {sqnr:.1f} dB against the float model's"
            continue
        rows[system] = {
            "precision": SYSTEMS[system].precision,
            "median_ms": 1e3 * statistics.median(t for result in results for t in result["times"]),
            "median_ms_of_rounds": [1e3 * statistics.median(result["times"]) for result in results],
            "sqnr_db": sqnr,
            "cold_start_s": results[0]["cold_start_s"],
            "peak_mb": results[-1]["peak_mb"],
            "prepare_s": prepared[system][1],
            "file_mb": (artifact_bytes(prepared[system][0]) or 0) / 2**20 or None,
        }
    return {"network": network, "batch": batch, "systems": rows, "failures": {name: text.strip().splitlines()[-1] for name, text in failures.items()}}


def ratio(row: dict, over: str, under: str = "torchquant") -> float:
    """Of time(over) / time(under)."""
    return ratio_of_rounds(row["systems"][over]["median_ms_of_rounds"], row["systems"][under]["median_ms_of_rounds"])


def print_table(row: dict) -> None:
    print(f"\n{row['network']}, batch {row['batch']}")
    print(f"  {'system':24}{'median':>10}{'of ours':>9}{'SQNR':>9}{'file':>10}{'peak':>10}{'cold start':>12}")
    for name, cells in sorted(row["systems"].items(), key=lambda item: item[1]["median_ms"]):
        times = f"{ratio(row, name):.2f}x" if "torchquant" in row["systems"] else ""
        size = f"{cells['file_mb']:.1f} MB" if cells["file_mb"] else "-"
        print(f"  {name:24}{cells['median_ms']:>7.2f} ms{times:>9}{cells['sqnr_db']:>6.1f} dB{size:>10}{cells['peak_mb']:>7.0f} MB{cells['cold_start_s']:>10.2f} s")
    for name, text in row["failures"].items():
        print(f"  {name:24}failed: {text[:140]}")


def draw(rows: list[dict], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    columns = 2
    lines = (len(rows) + columns - 1) // columns
    figure, axes = plt.subplots(lines, columns, figsize=(11, 2.6 * lines), squeeze=False, layout="constrained")
    for axis, row in zip(axes.flat, rows):
        order = sorted(row["systems"], key=lambda name: -row["systems"][name]["median_ms"])
        times = [row["systems"][name]["median_ms"] for name in order]
        bars = axis.barh(order, times, color=["#d1495b" if name.startswith("torchquant") else "#8d99ae" for name in order])
        axis.bar_label(bars, [f"{value:.1f}" for value in times], padding=3, fontsize=8)
        axis.set_title(f"{row['network']}, batch {row['batch']}", fontsize=10)
        axis.set_xlabel("ms, median", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.15)
    for axis in list(axes.flat)[len(rows) :]:
        axis.remove()
    figure.savefig(path, metadata={"Date": None})
    print(f"written: {path.relative_to(RESULTS.parent.parent)}")


def arguments_of(parser: argparse.ArgumentParser):
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--burst-seconds", type=float, default=1.0, help="how long a system runs before the next one's turn")
    parser.add_argument("--time-limit", type=float, default=240.0, help="seconds that a system may take to load, compile and run four times")
    parser.add_argument("--merge", action="store_true", help="keep the other rows of the last result instead of starting anew")
    return parser.parse_args()


def earlier_rows(measured: list[dict]) -> list[dict]:
    path = RESULTS / "peers.json"
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    taken = {(row["network"], row["batch"]) for row in measured}
    return [row for row in known if (row["network"], row["batch"]) not in taken]


def main() -> None:
    arguments = arguments_of(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for network in arguments.networks:
            for batch in arguments.batches:
                systems = [name for name in systems_for(network) if name in arguments.systems]
                rows.append(measure(network, batch, systems, arguments, pathlib.Path(folder)))
                print_table(rows[-1])
    if arguments.merge:
        rows += earlier_rows(rows)
    rows.sort(key=lambda row: (list(NETWORKS).index(row["network"]), row["batch"]))
    write_result("peers", {"rounds": arguments.rounds, "burst_seconds": arguments.burst_seconds}, rows)
    draw(rows, RESULTS / "peers.svg")


if __name__ == "__main__":
    main()
