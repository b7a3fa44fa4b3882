"""Loads one TorchScript file and runs it once, in a process of its own, and prints what that took as JSON. Started by validate.

    python -m torchquant.analysis.fresh_process float|quantized FILE INPUTS THREADS
"""

import json
import resource
import sys
import time
import warnings
from pathlib import Path

import torch

import torchquant


def main(kind: str, file: str, inputs_file: str, threads: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(threads))
    inputs = torch.load(inputs_file, weights_only=True)
    device = next((tensor.device for tensor in inputs if isinstance(tensor, torch.Tensor)), torch.device("cpu"))
    before = peak_memory_bytes()
    started = time.perf_counter()
    model = torchquant.load(file, device) if kind == "quantized" else torch.jit.load(file, map_location=device).eval()
    with torch.inference_mode():
        model(*inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
    cold_start_ms = 1000 * (time.perf_counter() - started)
    peak = peak_memory_bytes()
    print(json.dumps({"cold_start_ms": cold_start_ms, "peak_memory_bytes": peak, "model_memory_bytes": peak - before}))


def peak_memory_bytes() -> int:
    """Of this program alone: getrusage would hand on the peak of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
