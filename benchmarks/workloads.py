"""Real work to judge quantization on: small data sets that come with scikit-learn and Python, models that train in a minute.

`benchmarks/methods.py` and the QAT benchmarks call this. A workload says how to build, train and judge its model:

    workload = workloads.WORKLOADS["digits"]()
    model = workload.float_model(seed=0)                       # trained; kept in build/workloads/
    prepared = tq.prepare_qat(model, workload.example, tq.qconfigs.int8_static())
    workload.fine_tune(prepared, seed=0)                       # trains like the float model, for a shorter time
    score = workload.evaluate(tq.convert(prepared, workload.example))
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import string
import sys

import torch
import torch.nn.functional as F
from torch import nn

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = ROOT / "build" / "workloads"
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "examples")) if path not in sys.path]

import digits as digits_example  # noqa: E402

import torchquant as tq  # noqa: E402


# Outlier channels as large language models have them: a few channels of every normalised tensor, tens of times larger than the rest.
OUTLIER_CHANNELS, OUTLIER_FACTOR = 3, 30.0


class Workload:
    """Base: `metric` names the score, `higher_is_better` orders it; `example` is the input for prepare and convert, `calibration` a list
    of batches of training data."""

    name: str
    metric: str
    higher_is_better: bool
    trained: str  # names the float model's file: workloads that share a model share it
    example: torch.Tensor
    calibration: list[torch.Tensor]

    def build(self) -> nn.Module:
        """The model before training, drawn from torch's random state."""
        raise NotImplementedError

    def train(self, model: nn.Module, *, share: float = 1.0, learning_rate: float | None = None) -> nn.Module:
        """Trains in place on batches drawn from torch's random state, for this share of the float model's steps; ends in eval mode."""
        raise NotImplementedError

    def evaluate(self, model) -> float:
        """The score of a float, prepared or converted model on data that training never saw."""
        raise NotImplementedError

    def float_model(self, seed: int) -> nn.Module:
        """The float model of this seed, in eval mode: trained at the first call, read from `CACHE` afterwards."""
        torch.manual_seed(seed)
        model = self.build()
        path = CACHE / f"{self.trained}-{seed}-{self._fingerprint()}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path))
            return model.eval()
        self.train(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.part")
        torch.save(model.state_dict(), beside)
        beside.replace(path)
        return model.eval()

    def fine_tune(self, model: nn.Module, seed: int) -> nn.Module:
        """Quantization-aware training: a quarter of the float model's steps at a third of its learning rate."""
        torch.manual_seed(1000 + seed)
        return self.train(model, share=0.25, learning_rate=self.learning_rate / 3)

    def _fingerprint(self) -> str:
        """Of all that decides the trained weights: this file, the example's and the versions that computed them."""
        sources = (pathlib.Path(__file__), pathlib.Path(digits_example.__file__))
        text = b"".join(path.read_bytes() for path in sources) + f"{torch.__version__} {sys.version}".encode()
        return hashlib.sha256(text).hexdigest()[:12]


class Digits(Workload):
    """scikit-learn's 1,797 scanned digits and the residual CNN of examples/digits.py (one depthwise layer, with ReLU6)."""

    name, metric, higher_is_better = "digits", "accuracy", True
    trained = "digits"
    learning_rate = 3e-3

    def __init__(self):
        self.train_images, self.train_labels, self.test_images, self.test_labels = digits_example.load_data()
        self.example = self.train_images[:8]
        self.calibration = list(self.train_images[:512].split(digits_example.BATCH))

    def build(self):
        return digits_example.DigitsNet()

    def train(self, model, *, share=1.0, learning_rate=None):
        epochs = max(1, round(share * digits_example.FLOAT_EPOCHS))
        return digits_example.train(model, self.train_images, self.train_labels, epochs, learning_rate or self.learning_rate)

    @torch.no_grad()
    def evaluate(self, model):
        return (model(self.test_images).argmax(1) == self.test_labels).double().mean().item()


class Separable(nn.Sequential):
    """Depthwise and pointwise convolution, each with batch norm and ReLU, as in MobileNet (Howard et al., 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(
            nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        )  # fmt: skip


class MobileDigits(Digits):
    """The digits again, by a small MobileNet: a plain chain of depthwise and pointwise layers."""

    name = trained = "mobile"

    def build(self):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            Separable(16, 32, stride=1), Separable(32, 32, stride=2), Separable(32, 64, stride=1),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (self._split(projection(x)) for projection in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), GatedMlp(width, 3 * width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CharacterTransformer(nn.Module):
    """Character ids [N, T], T up to CONTEXT -> logits [N, T, 100] of each next character."""

    CONTEXT, WIDTH, HEADS, BLOCKS = 64, 64, 4, 2

    def __init__(self):
        super().__init__()
        self.characters = nn.Embedding(len(string.printable), self.WIDTH)
        self.positions = nn.Embedding(self.CONTEXT, self.WIDTH)
        self.blocks = nn.ModuleList(Block(self.WIDTH, self.HEADS) for _ in range(self.BLOCKS))
        self.norm = nn.LayerNorm(self.WIDTH)
        self.head = nn.Linear(self.WIDTH, len(string.printable))
        self.register_buffer("place", torch.arange(self.CONTEXT), persistent=False)

    def normalised(self):
        """(norm, the linear layers that read it) for every norm."""
        for block in self.blocks:
            attention, mlp = block.attention, block.mlp
            yield block.norm1, (attention.q_proj, attention.k_proj, attention.v_proj)
            yield block.norm2, (mlp.gate, mlp.up)
        yield self.norm, (self.head,)

    def forward(self, ids):
        x = self.characters(ids) + self.positions(self.place[: ids.size(1)])
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class LanguageModel(Workload):
    """The source of Python's standard library, character by character: every tenth file is kept for the test."""

    name, metric, higher_is_better = "lm", "perplexity", False
    trained = "lm"
    learning_rate = 4e-3
    STEPS, BATCH, TEST_WINDOWS = 1500, 16, 512

    def __init__(self):
        train_text, test_text = self._read()
        context = CharacterTransformer.CONTEXT
        self.train_ids, test_ids = _ids(train_text), _ids(test_text)
        self.test_windows = _spread_windows(test_ids, self.TEST_WINDOWS, context + 1)
        windows = _spread_windows(self.train_ids, 16 * self.BATCH, context)
        self.example, self.calibration = windows[:4], list(windows.split(self.BATCH))

    @staticmethod
    def _read() -> tuple[str, str]:
        files = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in files]
        return "".join(text for i, text in enumerate(texts) if i % 10), "".join(texts[::10])

    def build(self):
        return CharacterTransformer()

    def train(self, model, *, share=1.0, learning_rate=None):
        learning_rate, steps = learning_rate or self.learning_rate, max(1, round(share * self.STEPS))
        context = CharacterTransformer.CONTEXT
        groups = tq.training.parameter_groups(model, learning_rate)
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=1e-2, betas=(0.9, 0.98))
        rates = [group["lr"] for group in groups]
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
        model.train()
        for _ in range(steps):
            starts = torch.randint(len(self.train_ids) - context, (self.BATCH, 1))
            windows = self.train_ids[starts + torch.arange(context + 1)]
            optimizer.zero_grad()
            _next_character_loss(model, windows).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        return model.eval()

    @torch.no_grad()
    def evaluate(self, model):
        losses = [_next_character_loss(model, windows) for windows in self.test_windows.split(64)]
        return torch.stack(losses).double().mean().exp().item()


class OutlierLanguageModel(LanguageModel):
    """The same trained transformer with outlier channels put in by rescaling, which changes no float result: in every norm before linear
    layers, 3 of 64 channels times 30, the weights that read them divided by 30. Dettmers et al. ("LLM.int8()", NeurIPS 2022) find such
    channels, up to 60 times larger, in every language model of more than 6 billion parameters; one of this size grows none by itself."""

    name = "lm_outliers"

    def float_model(self, seed):
        model = LanguageModel.float_model(self, seed)
        with torch.no_grad():
            for norm, readers in model.normalised():
                chosen = torch.randperm(norm.weight.numel())[:OUTLIER_CHANNELS]
                norm.weight[chosen] *= OUTLIER_FACTOR
                norm.bias[chosen] *= OUTLIER_FACTOR
                for reader in readers:
                    reader.weight[:, chosen] /= OUTLIER_FACTOR
        return model


def _ids(text: str) -> torch.Tensor:
    """Positions in string.printable; anything else reads as a question mark."""
    unknown = string.printable.index("?")
    table = torch.full((256,), unknown)
    table[list(string.printable.encode())] = torch.arange(len(string.printable))
    return table[torch.frombuffer(bytearray(text.encode("ascii", errors="replace")), dtype=torch.uint8).long()]


def _spread_windows(ids: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """[count, length], evenly spread over the text."""
    starts = torch.linspace(0, len(ids) - length, count).long()
    return ids[starts.unsqueeze(1) + torch.arange(length)]


def _next_character_loss(model, windows: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


WORKLOADS: dict[str, type[Workload]] = {workload.name: workload for workload in (Digits, MobileDigits, LanguageModel, OutlierLanguageModel)}
