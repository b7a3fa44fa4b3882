"""Whole networks on the GPU: ResNet-50 and BERT-base in int8 against fp16 and bf16, and a QAT step against a plain bf16 one.

    python benchmarks/cuda/networks.py [--only resnet50 bert_base qat_step]

The networks are built here, with random weights, because a machine for measuring may have neither torchvision nor transformers.
Writes results/cuda_networks_<gpu>.json.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from common import Case, in_a_graph, main


class Bottleneck(nn.Module):
    """The residual block of He et al., "Deep residual learning for image recognition" (2015), stride on the 3x3."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential()
        if stride != 1 or inputs != 4 * width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width))

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + self.downsample(x))


def resnet50():
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, 64 << stage, 2 if stage > 0 and block == 0 else 1))
            inputs = 256 << stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


class BertBase(nn.Module):
    """The encoder of Devlin et al., "BERT" (2018): twelve layers of width 768 over 128 tokens."""

    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(30522, 768), nn.Embedding(512, 768)
        self.norm = nn.LayerNorm(768)
        layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.encoder(self.norm(self.words(tokens) + self.places(places)))


def images(batch):
    return torch.randn(batch, 3, 224, 224)


def tokens(batch):
    return torch.randint(0, 30522, (batch, 128))


def network_cases(name, build, inputs, batches, operations):
    import torchquant as tq

    model = build().eval()
    example = inputs(2)
    ours = tq.quantize_model(model, (example,), tq.qconfigs.int8_static(), calibration=[example]).script.to("cuda")
    halves = {dtype: build().eval().to("cuda", dtype) for dtype in (torch.float16, torch.bfloat16)}

    def calls(batch):
        x = inputs(batch).to("cuda")
        made = {"torchquant": lambda: inference(ours, x)}
        for dtype, half in halves.items():
            low = x.to(dtype) if x.is_floating_point() else x
            made[f"{str(dtype).removeprefix('torch.')} eager"] = lambda x=low, f=half: inference(f, x)
        return made

    for batch in batches:
        yield Case(f"{name}, batch {batch}", calls(batch), operations=batch * operations)
    for batch in batches:
        captured = {peer.removesuffix(" eager"): in_a_graph(call) for peer, call in calls(batch).items()}
        yield Case(f"{name}, batch {batch}, each in a CUDA graph", captured, operations=batch * operations)


@torch.no_grad()
def inference(model, x):
    return model(x)


def resnet50_cases():
    return network_cases("ResNet-50", resnet50, images, (1, 32, 128), 2 * 4_089_000_000)


def bert_base_cases():
    return network_cases("BERT-base, 128 tokens", BertBase, tokens, (1, 32), 2 * 128 * 85_000_000)


def training_step(model, x, labels):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step():
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()

    return step


def qat_step_cases():
    import torchquant as tq

    batch = 64
    x, labels = images(batch).to("cuda"), torch.randint(0, 1000, (batch,), device="cuda")
    plain = training_step(resnet50().train().to("cuda"), x, labels)
    delayed = tq.QConfig(tq.QuantSpec.weight(), tq.QuantSpec.activation(delayed=True))
    for name, qconfig in (("", tq.qconfigs.int8_static()), (", delayed ranges", delayed)):
        prepared = tq.prepare_qat(resnet50().train(), (images(2),), qconfig).train().to("cuda")
        calls = {"torchquant": training_step(prepared, x, labels), "bf16 step": plain}
        yield Case(f"QAT step of ResNet-50, batch {batch}{name}", calls, operations=3 * batch * 2 * 4_089_000_000, unit="bf16")


FAMILIES = {
    "resnet50": (("quantized_conv", "quantized_linear"), resnet50_cases),
    "bert_base": (("quantized_linear", "quantized_lookup"), bert_base_cases),
    "qat_step": (("fake_quantize", "fused_observe_fake_quantize"), qat_step_cases),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, "cuda_networks", FAMILIES))
