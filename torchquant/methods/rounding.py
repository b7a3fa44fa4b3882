"""AdaRound: learns for each weight whether to round it up or down, so that the layer's output stays what it was."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..fake_quantize import FakeQuantize
from ..prepare.quantized_parameter import float_parameter
from ..progress import ProgressBar
from .checks import batches_as_list, check_ready
from .quantized_layers import Key, LayerCall, QuantizedLayer, QuantizedModelRun
from .report import MethodReport

_METHOD = "adaround"
_ops = torch.ops.torchquant

# The rectified sigmoid reaches 0 and 1 at finite values: equation 23 of the paper.
_ZETA, _GAMMA = 1.1, -0.1
# A weight this near to a code, in steps, has nothing to choose.
_ON_GRID = 1e-3


@dataclass(frozen=True)
class _Settings:
    iterations: int
    learning_rate: float
    regularization: float
    beta: tuple[float, float]
    warm_start: float
    batch_size: int
    seed: int

    def __post_init__(self):
        for name, allowed, holds in (
            ("iterations", "a positive integer", isinstance(self.iterations, int) and self.iterations > 0),
            ("learning_rate", "positive", self.learning_rate > 0),
            ("regularization", "0 or more", self.regularization >= 0),
            ("beta", "two positive numbers, the larger first", len(self.beta) == 2 and self.beta[0] >= self.beta[1] > 0),
            ("warm_start", "from 0 to below 1", 0 <= self.warm_start < 1),
            ("batch_size", "a positive integer", isinstance(self.batch_size, int) and self.batch_size > 0),
        ):
            if not holds:
                raise ValueError(f"{_METHOD}: {name} must be {allowed}, got {getattr(self, name)!r}")

    def exponent(self, iteration: int) -> float | None:
        """The regulariser's beta, which falls along a cosine; None while rounding moves freely."""
        done = (iteration / self.iterations - self.warm_start) / (1 - self.warm_start)
        first, last = self.beta
        return None if done < 0 else last + 0.5 * (first - last) * (1 + math.cos(done * math.pi))


def adaround(
    prepared: nn.Module,
    batches,
    *,
    iterations: int = 500,
    learning_rate: float = 0.05,
    regularization: float = 3.0,
    beta: tuple[float, float] = (20.0, 2.0),
    warm_start: float = 0.2,
    batch_size: int = 32,
    seed: int = 0,
) -> nn.Module:
    """Learns the rounding of the weights of a prepared and calibrated model. In place; returns `prepared`.

    Nagel et al., "Up or down? Adaptive rounding for post-training quantization" (ICML 2020). Layer by layer in the order in which they
    run, each weight may take the code below or above it. A rectified sigmoid stands for the choice; Adam makes the layer's output on its
    quantized input (that of the layers before, rounded already) approach what the float weight gives on it, and a regulariser drives each
    choice to one of the two codes. A layer keeps its nearest rounding where the learned one is no better on the batches. (The paper's
    last step, aiming at the output on the float model's input, is left out: it made transformers worse than nearest rounding, for
    there most of the error of a layer's input comes along the residual stream, which no rounding can mend.)

    Weights move onto the chosen codes, and their scales stay, so that `convert` writes exactly these codes; a second call finds nothing
    left to choose. Convolutions, transposed ones, linear layers and products with a parameter are rounded, of any width, per tensor,
    channel or group; embeddings are left alone.

    Args:
        prepared: from `prepare` or `prepare_qat`, calibrated.
        batches: typical inputs, as for `calibrate`; kept in memory, together with one layer's inputs and outputs, and run once per layer.
        iterations: Adam steps per layer.
        learning_rate: Adam's.
        regularization: weight of the regulariser beside the output's error, which is 1 for nearest rounding.
        beta: the regulariser's exponent at the start and at the end.
        warm_start: part of the iterations before the regulariser sets in.
        batch_size: samples along the first dimension of a layer's input per iteration, drawn from one batch.
        seed: of the draws; the same seed, batches and number of threads give the same codes.

    Returns:
        `prepared`. The newest entry of its ``torchquant_methods`` is the report: a row per layer with its output's squared error,
        relative to its energy, by nearest and by learned rounding, and the part of its weights that moved to the other code; or the reason
        why it was left alone.

    Raises:
        TypeError, ValueError: for a model that is not prepared and calibrated, for an argument out of its range, for empty batches,
            batches that are none, and infinite or NaN outputs. The model is unchanged then.
        RuntimeError: if the model does not run on a batch.
    """
    settings = _Settings(iterations, learning_rate, regularization, tuple(beta), warm_start, batch_size, seed)
    check_ready(_METHOD, prepared)
    run = QuantizedModelRun(_METHOD, prepared, batches_as_list(_METHOD, batches))
    report = MethodReport(_METHOD, {"iterations": iterations, "batches": len(run.batches), "seed": seed})
    keys: dict[str, dict[Key, None]] = {}
    embeddings = set()

    def note(call):
        keys.setdefault(call.key.fake_quant, {})[call.key] = None
        if call.is_embedding:
            embeddings.add(call.key.fake_quant)

    run.see_all(note)
    with ProgressBar(_METHOD, len(keys) * iterations) as bar:
        for path in keys:
            reason = _why_not(run.layers[path], path in embeddings)
            if reason:
                report.add(run.layers[path].name, reason)
                bar.advance(iterations)
            else:
                _round_layer(run, path, list(keys[path]), settings, bar, report)
    for path, layer in run.layers.items():
        if path not in keys:
            report.add(layer.name, "no batch reached it")
    report.attach_to(prepared)
    return prepared


def _why_not(layer: QuantizedLayer, embeds: bool) -> str | None:
    if embeds:
        return "an embedding's outputs are its weights, which nearest rounding serves best"
    if layer.fake_quant.spec.float8:
        return "its weight becomes 8-bit floats, and AdaRound chooses between integers"
    if layer.parameter not in layer.module._parameters:
        return "its weight is computed (torch.nn.utils.parametrize), so it cannot be moved onto codes"
    return None


class _Rounding:
    """The codes that a weight may take, and the choice between them."""

    def __init__(self, weight: Tensor, fake_quant: FakeQuantize):
        spec = fake_quant.spec
        self.scale = _expanded(fake_quant.scale.detach(), spec, weight)
        zero_point = _expanded(fake_quant.zero_point.detach(), spec, weight).round().clamp(spec.quant_min, spec.quant_max)
        lowest, highest = spec.quant_min - zero_point, spec.quant_max - zero_point
        steps = weight.float() / self.scale
        self.nearest = torch.minimum(torch.maximum(steps.round(), lowest), highest)
        self.below = torch.minimum(torch.maximum(steps.floor(), lowest), highest - 1)
        self.free = ((steps - steps.round()).abs() > _ON_GRID) & (steps > lowest) & (steps < highest)
        part = (steps - self.below).clamp(0, 1)
        self.choice = torch.logit((part - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()

    def share_of_upper(self) -> Tensor:
        return (torch.sigmoid(self.choice) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)

    def soft(self, share: Tensor) -> Tensor:
        return torch.where(self.free, self.below + share, self.nearest) * self.scale

    @torch.no_grad()
    def learned(self) -> Tensor:
        """Codes, the zero point taken off."""
        return torch.where(self.free, self.below + (self.share_of_upper() >= 0.5), self.nearest)

    def indecision(self, share: Tensor, exponent: float) -> Tensor:
        """The regulariser: 0 where every choice is made, 1 where none is."""
        undecided = 1 - (2 * share - 1).abs().pow(exponent)
        return (undecided * self.free).sum() / self.free.sum().clamp(min=1)


def _expanded(qparam: Tensor, spec, weight: Tensor) -> Tensor:
    """A scale or zero point in a shape that broadcasts over the weight."""
    if spec.group_size is not None:
        return qparam.float().repeat_interleave(spec.group_size, spec.axis)
    shape = [1] * weight.dim()
    if spec.axis is not None:
        shape[spec.axis] = -1
    return qparam.float().view(shape)


class _Samples:
    """A layer's calls with quantized inputs, and what each returns with the float weight."""

    def __init__(self, run: QuantizedModelRun, keys: list[Key], weight: Tensor):
        self.pairs: list[tuple[LayerCall, Tensor]] = []
        self.rows = weight.size(0)
        with torch.no_grad():
            for key in keys:
                for index in range(len(run.batches)):
                    for call in run.calls_of(key, index, quantized=True):
                        self.pairs.append((call, self.result(call, call.input, weight)))

    def draw(self, count: int, generator: torch.Generator) -> tuple[LayerCall, Tensor, Tensor]:
        """(call, input, target) of `count` samples of one call."""
        call, target = self.pairs[int(torch.randint(len(self.pairs), (), generator=generator))]
        if not call.is_batched or len(call.input) <= count:
            return call, call.input, target
        chosen = torch.randperm(len(call.input), generator=generator)[:count].to(call.input.device)
        return call, call.input[chosen], target[chosen]

    @torch.no_grad()
    def errors(self, weight: Tensor) -> dict[Key, Tensor]:
        """Mean squared error of each output channel, over all calls."""
        sums: dict[Key, list] = {}
        for call, target in self.pairs:
            error = call.channels_last(self.result(call, call.input, weight) - target).double().square()
            total = sums.setdefault(call.key, [0.0, 0])
            total[0], total[1] = total[0] + error.sum(0), total[1] + len(error)
        return {key: total / count for key, (total, count) in sums.items()}

    @torch.no_grad()
    def energy(self) -> float:
        return sum(float(target.double().square().mean()) for _, target in self.pairs) / len(self.pairs)

    def result(self, call: LayerCall, x: Tensor, weight: Tensor) -> Tensor:
        """What the call gives with this weight, or with those of its rows that the call takes."""
        weight = weight.to(call.weight.dtype)
        if call.weight.size(0) != self.rows:
            weight = weight.narrow(0, call.key.first_row, call.weight.size(0))
        return call.repeat(x, weight)


def _round_layer(run: QuantizedModelRun, path: str, keys: list[Key], settings: _Settings, bar: ProgressBar, report: MethodReport) -> None:
    layer = run.layers[path]
    weight = float_parameter(layer.module, layer.parameter).detach()
    rounding = _Rounding(weight, layer.fake_quant)
    samples = _Samples(run, keys, weight)
    before = samples.errors(rounding.nearest * rounding.scale)
    if rounding.free.any():
        _learn(rounding, samples, before, settings, bar)
    else:
        bar.advance(settings.iterations)
    learned = rounding.learned()
    after = samples.errors(learned * rounding.scale)
    if _total(after) >= _total(before):
        learned, after = rounding.nearest, before
    _store(layer, weight, learned, rounding)
    energy = samples.energy() or 1.0
    report.add(
        layer.name, error_nearest=_total(before) / energy, error_learned=_total(after) / energy,
        moved=float((learned != rounding.nearest).float().mean()),
    )  # fmt: skip


def _total(errors: dict[Key, Tensor]) -> float:
    return sum(float(error.mean()) for error in errors.values()) / len(errors)


@torch.enable_grad()
def _learn(rounding: _Rounding, samples: _Samples, before: dict[Key, Tensor], settings: _Settings, bar: ProgressBar) -> None:
    """Every output channel counts alike: its error is measured in that of nearest rounding."""
    unit = {key: torch.where(error > 0, error, torch.ones_like(error)).float() for key, error in before.items()}
    generator = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.Adam([rounding.choice], lr=settings.learning_rate)
    for iteration in range(settings.iterations):
        call, x, target = samples.draw(settings.batch_size, generator)
        share = rounding.share_of_upper()
        error = call.channels_last(samples.result(call, x, rounding.soft(share)) - target).float().square()
        loss = (error / unit[call.key]).mean()
        exponent = settings.exponent(iteration)
        if exponent is not None:
            loss = loss + settings.regularization * rounding.indecision(share, exponent)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.advance()


@torch.no_grad()
def _store(layer: QuantizedLayer, weight: Tensor, codes: Tensor, rounding: _Rounding) -> None:
    """Moves the weight onto the codes and lets its fake-quant keep its qparams."""
    weight.copy_(codes * rounding.scale)
    fake_quant, spec = layer.fake_quant, layer.fake_quant.spec
    fake_quant.keep_qparams_for(weight)
    kept = _ops.fake_quantize(
        weight.float(), fake_quant.scale, fake_quant.zero_point, axis=spec.axis, group_size=spec.group_size,
        quant_min=spec.quant_min, quant_max=spec.quant_max,
    )  # fmt: skip
    if not torch.equal((kept / rounding.scale).round(), codes):
        raise RuntimeError(f"{_METHOD}: {layer.name} does not round to the chosen codes; please report this")
