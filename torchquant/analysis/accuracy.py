"""The user's metric of two models on the same samples, and a confidence interval of their difference. Called by validate.

The samples are paired: both models see each of them, so what counts is how their scores differ sample by sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils import _pytree as pytree

from torchquant.analysis.labelled_data import LabelledBatch
from torchquant.progress import ProgressBar

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 1000
MODELS = ("float", "quantized")


@dataclass
class Accuracy:
    """What a metric says of both models. `drop` is positive where the quantized model is worse, whichever way is better."""

    metric: str
    higher_is_better: bool
    float: float
    quantized: float
    drop: float
    interval: tuple[float, float]  # of the drop
    confidence: float  # of the interval: 0.95
    method: str  # how the interval was made, with its source
    p_value: float | None  # McNemar's exact test, for scores of 0 and 1
    samples: int

    def to_dict(self) -> dict:
        return {**asdict(self), "interval": list(self.interval)}


def top1(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """1 for each sample whose largest output is that of its class, else 0: outputs [N, classes], labels [N] of class indices."""
    if not isinstance(outputs, torch.Tensor) or outputs.dim() != 2:
        shape = list(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"top-1 accuracy needs one output of shape [N, classes], the model gives {shape}; pass a metric of your own")
    whole_numbers = isinstance(labels, torch.Tensor) and labels.dim() == 1 and not (labels.is_floating_point() or labels.is_complex())
    if not whole_numbers:
        got = f"{list(labels.shape)} of {labels.dtype}" if isinstance(labels, torch.Tensor) else f"a {type(labels).__name__}"
        raise ValueError(f"top-1 accuracy needs labels of shape [N] with class indices, got {got}; pass a metric of your own")
    if labels.min() < 0 or labels.max() >= outputs.size(1):
        raise ValueError(f"labels go from {labels.min()} to {labels.max()} and the model has {outputs.size(1)} classes")
    return (outputs.argmax(1) == labels).double()


def measure_accuracy(
    runs: dict[str, Callable],
    batches: Iterable[LabelledBatch],
    total: int | None,
    metric: Callable,
    *,
    higher_is_better: bool,
    confidence: float,
) -> Accuracy:
    """`runs` maps "float" and "quantized" to functions from a batch to its outputs, on the CPU."""
    scores = _Scores(metric)
    with ProgressBar("validating: accuracy", total) as bar:
        for batch in batches:
            scores.add(batch, {name: run(batch) for name, run in runs.items()})
            bar.advance()
    values = scores.values()
    sign = 1 if higher_is_better else -1
    interval, method, p_value = scores.interval(sign, confidence)
    name = "top-1 accuracy" if metric is top1 else getattr(metric, "__name__", type(metric).__name__)
    drop = sign * (values["float"] - values["quantized"])
    return Accuracy(name, higher_is_better, values["float"], values["quantized"], drop, interval, confidence, method, p_value, scores.samples)


class _Scores:
    """Collects what the metric says: one score per sample, or outputs and labels for a metric of the data as a whole."""

    def __init__(self, metric: Callable):
        self.metric = metric
        self.samples = 0
        self.per_sample: bool | None = None  # the metric's first answer tells
        self.scores: dict[str, list[np.ndarray]] = {name: [] for name in MODELS}
        self.outputs: dict[str, list] = {name: [] for name in MODELS}
        self.labels: list = []

    def add(self, batch: LabelledBatch, outputs: dict) -> None:
        _check_same_shapes(batch, outputs)
        labels = pytree.tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, batch.labels)
        for name in MODELS:
            if self.per_sample is not False:
                self._add_scores(name, batch, outputs[name], labels)
            if self.per_sample is False:
                self.outputs[name].append(outputs[name])
        if self.per_sample is False:
            self.labels.append(labels)
        self.samples += batch.size

    def _add_scores(self, name: str, batch: LabelledBatch, outputs, labels) -> None:
        score = self._call(outputs, labels, f"on batch {batch.index} for the {name} model")
        if score.ndim == 0 and not self.scores["float"]:
            self.per_sample = False
            return
        if score.shape != (batch.size,):
            raise ValueError(
                f"validate: metric must return one number, or one score for each of the {batch.size} samples of batch {batch.index}; "
                f"it returned {list(score.shape)}"
            )
        finite = [math.isfinite(value) for value in score]
        if not all(finite):
            first = finite.index(False)
            raise ValueError(f"validate: metric gives {score[first]} for sample {first} of batch {batch.index} with the {name} model")
        self.per_sample = True
        self.scores[name].append(score)

    def _call(self, outputs, labels, where: str) -> np.ndarray:
        import numpy as np  # here and below: training and converting need torch alone

        try:
            return np.asarray(self.metric(outputs, labels), dtype=np.float64)
        except Exception as error:  # the user's code, whatever it raises
            raise ValueError(f"validate: metric failed {where}: {error}") from error

    def values(self) -> dict[str, float]:
        if self.per_sample:
            import numpy as np

            self.scores = {name: [np.concatenate(parts)] for name, parts in self.scores.items()}
            return {name: float(scores[0].mean()) for name, scores in self.scores.items()}
        self.outputs = {name: _joined(parts, "outputs") for name, parts in self.outputs.items()}
        self.labels = _joined(self.labels, "labels")
        values = {name: float(self._call(self.outputs[name], self.labels, f"for the {name} model")) for name in MODELS}
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"validate: metric gives {value} for the {name} model")
        return values

    def interval(self, sign: int, confidence: float) -> tuple[tuple[float, float], str, float | None]:
        """(interval of the drop, its method, McNemar's p-value where there is one)."""
        if not self.per_sample:
            return self._bootstrap(sign, confidence), f"percentile bootstrap of {RESAMPLES} resamples (Efron 1979)", None
        import numpy as np

        differences = sign * (self.scores["float"][0] - self.scores["quantized"][0])
        if np.isin(self.scores["float"][0], (0, 1)).all() and np.isin(self.scores["quantized"][0], (0, 1)).all():
            return paired_proportions(differences, confidence)
        if np.ptp(differences) == 0:
            return (differences[0], differences[0]), "all samples differ alike", None
        from scipy import stats  # here and below: it takes half a second to import, which only these functions should pay

        low, high = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
        return (float(low), float(high)), "paired t interval (Student 1908)", None

    def _bootstrap(self, sign: int, confidence: float) -> tuple[float, float]:
        if self.samples < 2:
            raise ValueError(
                "validate: the confidence interval of a metric of the data as a whole needs at least 2 samples to draw from, data has "
                f"{self.samples}; give more data"
            )
        import numpy as np
        from scipy import stats

        with ProgressBar("validating: confidence interval", RESAMPLES) as bar:

            def drop(indices: np.ndarray) -> float:
                bar.advance()
                picked = torch.from_numpy(indices)
                labels = _picked(self.labels, picked)
                of_float, of_quantized = (float(self._call(_picked(self.outputs[name], picked), labels, "on a resample")) for name in MODELS)
                if not (math.isfinite(of_float) and math.isfinite(of_quantized)):
                    raise ValueError(
                        f"validate: metric is not finite on a random resample of the {self.samples} samples, so its confidence interval is "
                        "unknown; give more data, or a metric that returns one score per sample"
                    )
                return sign * (of_float - of_quantized)

            # resampling indices keeps the two models' outputs and the labels of a sample together
            interval = stats.bootstrap(
                (np.arange(self.samples),), drop, n_resamples=RESAMPLES, vectorized=False, method="percentile",
                confidence_level=confidence, random_state=np.random.default_rng(0)).confidence_interval  # fmt: skip
        return float(interval.low), float(interval.high)


def paired_proportions(differences: np.ndarray, confidence: float) -> tuple[tuple[float, float], str, float]:
    """Interval and test for two proportions of the same samples; `differences` holds 1 where only the first model is right, -1
    where only the second is, else 0.

    The interval is Wald's with one sample added to each kind of disagreement, which keeps its coverage where models rarely or
    never disagree: Bonett and Price, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", Journal of Educational and Behavioral Statistics 37 (2012). The test is McNemar's (Psychometrika 12, 1947), exact.
    """
    from scipy import stats

    count, first, second = len(differences), int((differences > 0).sum()), int((differences < 0).sum())
    share_first, share_second = (first + 1) / (count + 2), (second + 1) / (count + 2)
    center = share_first - share_second
    error = math.sqrt((share_first + share_second - center**2) / (count + 2))
    width = stats.norm.ppf((1 + confidence) / 2) * error
    disagreements = first + second
    p_value = float(stats.binomtest(first, disagreements, 0.5).pvalue) if disagreements else 1.0
    return (max(center - width, -1.0), min(center + width, 1.0)), "adjusted Wald for paired proportions (Bonett and Price 2012)", p_value


def _check_same_shapes(batch: LabelledBatch, outputs: dict) -> None:
    shapes = {name: [list(leaf.shape) for leaf in pytree.tree_leaves(outputs[name])] for name in MODELS}
    if shapes["float"] != shapes["quantized"]:
        raise ValueError(
            f"validate: on batch {batch.index} the float model returns {_text(shapes['float'])} and the quantized one "
            f"{_text(shapes['quantized'])}; are they the same network?"
        )


def _text(shapes: list) -> str:
    return ", ".join(map(str, shapes)) or "nothing"


def _joined(parts: list, what: str):
    """The batches' trees of tensors as one tree."""
    leaves = [pytree.tree_leaves(part) for part in parts]
    if not all(isinstance(leaf, torch.Tensor) for part in leaves for leaf in part):
        raise ValueError(f"validate: a metric of the data as a whole needs {what} that are tensors; return one score per sample instead")
    try:
        joined = [torch.cat(column) for column in zip(*leaves, strict=True)]
    except (RuntimeError, ValueError) as error:
        shapes = sorted({str([list(leaf.shape[1:]) for leaf in part]) for part in leaves})
        raise ValueError(
            f"validate: {what} of the batches cannot be joined, their samples have shapes {' and '.join(shapes)}; pad them, or let the "
            "metric return one score per sample"
        ) from error
    return pytree.tree_unflatten(joined, pytree.tree_structure(parts[0]))


def _picked(tree, indices: torch.Tensor):
    return pytree.tree_map(lambda leaf: leaf.index_select(0, indices), tree)
