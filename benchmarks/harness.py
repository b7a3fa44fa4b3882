"""What the Python benchmarks share: peers in processes of their own, alternated in short bursts, and JSON results."""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import sys
import time
import traceback

BENCHMARKS = pathlib.Path(__file__).resolve().parent
RESULTS = pathlib.Path(os.environ.get("TORCHQUANT_RESULTS_DIR", BENCHMARKS / "results")).resolve()


def _serve(connection, make_burst, arguments) -> None:
    """Child process: builds the peer once, then runs one burst per request."""
    try:
        burst = make_burst(*arguments)
        connection.send(("ready", None))
        while connection.recv():
            connection.send(("burst", burst()))
    except EOFError:
        pass
    except BaseException:
        connection.send(("error", traceback.format_exc()))


def timed_step(model, optimizer, images, labels):
    """One training step of a classifier: (its seconds, its loss). A loss that is not finite ends the run."""
    from torch.nn.functional import cross_entropy  # here, because the peers' processes choose what they import

    start = time.perf_counter()
    optimizer.zero_grad()
    loss = cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - start
    if not loss.isfinite():
        raise RuntimeError(f"the loss is {loss.item()}; timing a diverged model means nothing")
    return seconds, loss.item()


def ratio_of_rounds(over: list[float], under: list[float]) -> float:
    """Median of over / under, each taken within one round: shared machines change speed from round to round."""
    return statistics.median(a / b for a, b in zip(over, under))


def print_against_fp32(seconds: dict[str, list[float]]) -> list[dict]:
    """Prints the median of each peer and its ratio to fp32's; returns them as rows for `write_result`."""
    medians = {peer: statistics.median(values) for peer, values in seconds.items()}
    rows = [{"peer": peer, "median_ms": 1e3 * median, "ratio_to_fp32": median / medians["fp32"]} for peer, median in medians.items()]
    for row in rows:
        print(f"{row['peer']:<16} {row['median_ms']:8.1f} ms   {row['ratio_to_fp32']:.3f}x of fp32")
    return rows


class PeerProcesses:
    """Runs each peer in its own process (thread pools of two libraries slow one another), one at a time.

    `peers` maps a name to (make_burst, arguments); make_burst(*arguments) is called once in the child and returns a
    function without arguments whose result, one per burst, must be picklable. A peer that fails ends the run, unless
    `on_failure(name, text)` is given: then that peer is left out. To be longer than `time_limit` seconds in getting ready
    is to fail. `say(text)` hears what is being done.
    """

    def __init__(self, peers, on_failure=None, time_limit=None, say=lambda text: None):
        self._time_limit = time_limit
        self._say = say
        self._context = multiprocessing.get_context("spawn")
        self._peers = peers
        self._running = {}
        self._on_failure = on_failure

    def __enter__(self):
        for name, (make_burst, arguments) in self._peers.items():
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=_serve, args=(theirs, make_burst, arguments), daemon=True)
            process.start()
            theirs.close()
            self._running[name] = (process, ours)
            self._say(f"{name} gets ready")
            try:
                self._receive(name, self._time_limit)  # one at a time: a peer that warms up while another does would disturb it
            except RuntimeError as error:
                del self._running[name]
                process.terminate()
                if self._on_failure is None:
                    self.__exit__()
                    raise
                self._on_failure(name, str(error))
        return self

    def __exit__(self, *exception):
        for process, connection in self._running.values():
            connection.close()
            process.join(timeout=10)
            process.terminate()

    def _receive(self, name, time_limit=None):
        connection = self._running[name][1]
        try:
            if not connection.poll(time_limit):
                raise RuntimeError(f"peer {name} was not ready after {time_limit:g} s")
            kind, value = connection.recv()
        except EOFError:
            raise RuntimeError(f"peer {name} ended without an answer") from None
        if kind == "error":
            raise RuntimeError(f"peer {name} failed:\n{value}")
        return value

    def alternate(self, rounds: int):
        """One burst of every peer in turn, `rounds` times: {name: [result of each burst]}."""
        results = {name: [] for name in self._running}
        for turn in range(rounds):
            self._say(f"round {turn + 1} of {rounds}")
            for name, (_, connection) in self._running.items():
                connection.send(True)
                results[name].append(self._receive(name))
        return results


def cpu_name() -> str:
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_result(name: str, setup: dict, rows: list, quiet: bool = False) -> pathlib.Path:
    """Writes <name>.json, with what is needed to read and to repeat it, into benchmarks/results/ or the folder that the
    environment variable TORCHQUANT_RESULTS_DIR names."""
    import torch

    import torchquant

    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    script = pathlib.Path(sys.argv[0]).resolve()
    document = {
        "command": " ".join(["python", f"benchmarks/{script.relative_to(BENCHMARKS)}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "isa": torchquant._C.selected_isa(),
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "setup": setup,
        "rows": rows,
    }
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(document, indent=2) + "\n")
    beside.replace(path)  # a run that is stopped here leaves the earlier result whole
    if not quiet:
        print(f"written: {os.path.relpath(path)}")
    return path
