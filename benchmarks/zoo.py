"""Converts every classification and segmentation builder of torchvision and the encoders and decoders of transformers, and says per network
what runs in integers.

Each network is built without downloads (random weights; batch norms hold the statistics of a few batches; heads that start at zero get
random weights, or the output would not depend on the input), calibrated, converted and compared: SQNR of the mean-free output of the
fake-quant simulation and of the integers against the float model. Conversion time is that of the processors, of all threads together: the table
takes hours, in which machines are not alone. Each runs in a process of its own. Results are kept after every
network in benchmarks/results/zoo.json, and a run that was stopped goes on where it was; --anew starts over.

    python benchmarks/zoo.py                          # everything: hours on two cores
    python benchmarks/zoo.py --only resnet18 bert     # names that contain one of these
    python benchmarks/zoo.py --table                  # print what is known
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import pathlib
import sys
import time
import traceback
import warnings
from collections import Counter

import torch
from torch import nn

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE / "peers")]

from networks import settle_batch_norms, signal_to_noise  # noqa: E402
from harness import RESULTS, write_result  # noqa: E402

# Small configurations: structure is what is asked, and two layers of it show what twelve would.
SIZES = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256)
TEXT = {
    "bert": ("Bert", SIZES),
    "roberta": ("Roberta", SIZES),
    "electra": ("Electra", SIZES | {"embedding_size": 128}),
    "distilbert": ("DistilBert", dict(dim=128, n_layers=2, n_heads=4, hidden_dim=256)),
    "albert": ("Albert", SIZES),
    "mpnet": ("MPNet", SIZES),
    "deberta_v2": ("DebertaV2", SIZES),
    "gpt2": ("GPT2", dict(n_embd=128, n_layer=2, n_head=4)),
    "opt": ("OPT", dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=4, ffn_dim=256, word_embed_proj_dim=128)),
    "gpt_neox": ("GPTNeoX", SIZES),
    "bloom": ("Bloom", dict(hidden_size=128, n_layer=2, n_head=4)),
    "llama": ("Llama", SIZES),
    "mistral": ("Mistral", SIZES | {"num_key_value_heads": 2}),
    "qwen2": ("Qwen2", SIZES | {"num_key_value_heads": 2}),
    "gemma": ("Gemma", SIZES | {"head_dim": 32, "num_key_value_heads": 2}),
    "phi": ("Phi", SIZES),
}
IMAGE = {
    "hf_vit": ("ViT", SIZES),
    "hf_deit": ("DeiT", SIZES),
    "hf_swin": ("Swin", dict(embed_dim=48, depths=[2, 2], num_heads=[3, 6])),
    "hf_convnext": ("ConvNext", dict(hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 2, 1])),
    "hf_segformer": ("Segformer", dict(depths=[1, 1, 1, 1])),
}


def torchvision_names() -> list[str]:
    import torchvision.models as models

    found = models.list_models(module=models) + models.list_models(module=models.segmentation)
    return sorted(name for name in found if not name.startswith("quantized"))


def names() -> list[str]:
    return torchvision_names() + list(TEXT) + list(IMAGE)


class _FirstTensor(nn.Module):
    """A transformers model as one tensor in, one tensor out."""

    def __init__(self, model: nn.Module, argument: str):
        super().__init__()
        self.model, self.argument = model, argument

    def forward(self, x):
        return self.model(**{self.argument: x}, **({"use_cache": False} if hasattr(self.model.config, "use_cache") else {}))[0]


class _Output(nn.Module):
    """A segmentation model gives a dict; its main output is `out`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)["out"]


def _transformer(prefix: str, options: dict, argument: str) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{prefix}Config")(**options)
    return _FirstTensor(getattr(transformers, f"{prefix}Model")(config), argument)


def build(name: str, image: int):
    """(model, function that makes the i-th batch)."""
    torch.manual_seed(0)
    if name in TEXT:
        return _transformer(*TEXT[name], "input_ids"), lambda i: torch.randint(10, 1000, (2, 32), generator=torch.Generator().manual_seed(i))
    if name in IMAGE:
        return _transformer(*IMAGE[name], "pixel_values"), lambda i: torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(i))
    import torchvision.models as models

    segmentation = name in models.list_models(module=models.segmentation)
    options = {"weights_backbone": None} if segmentation else {}
    if name in ("googlenet", "inception_v3"):
        options |= {"init_weights": False, "aux_logits": False, "transform_input": False}
    model = models.get_model(name, weights=None, **options)
    side = 299 if name == "inception_v3" else image if not name.startswith("vit_") else model.image_size
    return _Output(model) if segmentation else model, lambda i: torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(i))


def enliven(model: nn.Module) -> None:
    """Layers that start at zero (heads, layer scales) would make the output constant."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith(("layer_scale", "layer_scale_parameter")):
                parameter.fill_(0.5)


def convert_one(name: str, image: int) -> dict:
    import torchquant as tq

    model, batch = build(name, image)
    enliven(model)
    settle_batch_norms(model, [batch(100 + i) for i in range(2)])
    x = batch(1)
    with torch.no_grad():
        wanted = model(x)
        prepared = tq.prepare(model, x, tq.qconfigs.int8_static())
        tq.calibrate(prepared, [batch(i) for i in range(200, 202)])
        simulated = prepared(x)
        begin = time.process_time()
        # Deep networks of random weights make a large difference of a single code; both SQNRs stand in the table.
        quantized = tq.convert(prepared, x, on_fallback="allow", max_drift=math.inf)
        seconds = time.process_time() - begin
        integers = quantized(x)
    rows = quantized.receipt.rows
    in_floats = Counter((row["kind"], row["reason"]) for row in rows if row["precision"] == "float")
    return {
        "network": name,
        "integer_layers": sum(row["precision"] != "float" for row in rows),
        "float_layers": sum(in_floats.values()),
        "float_why": [{"kind": kind, "reason": reason, "layers": count} for (kind, reason), count in in_floats.most_common()],
        "sqnr_simulation_db": signal_to_noise(wanted, simulated),
        "sqnr_integers_db": signal_to_noise(wanted, integers),
        "convert_cpu_s": seconds,
    }


def _child(connection, name: str, image: int, threads: int) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        connection.send(convert_one(name, image))
    except BaseException as error:
        traceback.print_exc()
        connection.send({"network": name, "error": f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]})


def run_one(name: str, image: int, threads: int) -> dict:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, name, image, threads))
    process.start()
    theirs.close()
    try:
        row = ours.recv()
    except EOFError:
        row = {"network": name, "error": "the process was killed (out of memory?)"}
    process.join()
    return row


def line(row: dict) -> str:
    if "error" in row:
        return f"{row['network']:34} {row['error'][:160]}"
    why = "; ".join(f"{entry['layers']} {entry['kind']}: {entry['reason']}" for entry in row["float_why"])
    return (
        f"{row['network']:34}{row['integer_layers']:>5}{row['float_layers']:>6}{row['sqnr_simulation_db']:>8.1f}{row['sqnr_integers_db']:>8.1f}"
        f"{row['convert_cpu_s']:>8.2f}  {why}"
    )


HEADING = f"{'network':34}{'int':>5}{'float':>6}{'sim dB':>8}{'int dB':>8}{'CPU s':>8}  float layers and why"


def known_rows() -> list[dict]:
    path = RESULTS / "zoo.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PART", help="networks whose name contains one of these")
    parser.add_argument("--image", type=int, default=224, help="side of the images, where the network does not fix it")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--anew", action="store_true", help="measure again what is known")
    parser.add_argument("--table", action="store_true", help="print the known results and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = {row["network"]: row for row in known_rows()}
    print(HEADING)
    wanted = [name for name in names() if not arguments.only or any(part in name for part in arguments.only)]
    for index, name in enumerate(wanted):
        if not arguments.table and (arguments.anew or "error" in rows.get(name, {"error": ""})):
            print(f"[{index + 1}/{len(wanted)}] {name}", file=sys.stderr, flush=True)
            rows[name] = run_one(name, arguments.image, arguments.threads)
            write_result("zoo", {"image": arguments.image, "batch": 2}, sorted(rows.values(), key=lambda row: row["network"]), quiet=True)
        if name in rows:
            print(line(rows[name]), flush=True)
    return int(any("error" in rows[name] for name in wanted if name in rows))


if __name__ == "__main__":
    sys.exit(main())
