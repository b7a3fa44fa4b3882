"""When, in the course of training, fake-quants and observers start and stop and batch norms freeze."""

from __future__ import annotations

from torch import nn

from torchquant.calibrate import named_fake_quants
from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare import check_prepared, freeze_batch_norm


class Schedule:
    """Switches parts of a prepared model on and off by the number of training steps done. Call `step()` after each step of
    the optimizer:

        schedule = training.Schedule(prepared, start_fake_quant_after=500, freeze_batch_norm_after=4000)
        for images, labels in loader:
            ...
            optimizer.step()
            schedule.step()

    Args:
        prepared: what `prepare_qat` returned; in DistributedDataParallel, the model inside.
        start_observers_after: steps that pass before activations are observed, while a fresh model's first activations say
            little about the later ones. Weights are always known.
        start_fake_quant_after: steps in float before anything is fake-quantized (Krishnamoorthi, "Quantizing deep
            convolutional networks for efficient inference", 2018). Observers watch meanwhile.
        stop_observers_after: steps after which the ranges of activations stay as they are. Those of weights go on
            following the weights. None: never.
        freeze_batch_norm_after: steps after which batch norms normalize with their running statistics and leave them alone,
            as at inference (Krishnamoorthi, 2018). None: never.

    The numbers count calls of `step()`; 0 is from the start. What a `calibrate` before has decided stays: its observers
    are off and are not turned on again unless `start_observers_after` says so.

    Raises:
        ValueError: a number that is no count of steps, or an order in which nothing could be observed before it is used.
    """

    def __init__(
        self,
        prepared: nn.Module,
        *,
        start_observers_after: int = 0,
        start_fake_quant_after: int = 0,
        stop_observers_after: int | None = None,
        freeze_batch_norm_after: int | None = None,
    ):
        check_prepared("Schedule", prepared, "prepare_qat")
        self.prepared = prepared
        self.start_observers_after = _count("start_observers_after", start_observers_after)
        self.start_fake_quant_after = _count("start_fake_quant_after", start_fake_quant_after)
        self.stop_observers_after = _count("stop_observers_after", stop_observers_after, optional=True)
        self.freeze_batch_norm_after = _count("freeze_batch_norm_after", freeze_batch_norm_after, optional=True)
        self._check_order()
        self.steps = 0
        self._apply()

    def step(self) -> None:
        """Counts one training step and does what is due."""
        self.steps += 1
        if self.steps in self._turns():
            self._apply()

    def state_dict(self) -> dict:
        """Plain numbers; save it beside the state of the model and the optimizer."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Brings the model to where it was after as many steps, in whatever order its own state is loaded."""
        if set(state) != {"steps"}:
            raise ValueError(f"Schedule.load_state_dict: expected what Schedule.state_dict returned, got the keys {sorted(state)}")
        self.steps = _count("steps", state["steps"])
        self._apply()

    def _turns(self) -> tuple[int | None, ...]:
        return self.start_observers_after, self.start_fake_quant_after, self.stop_observers_after, self.freeze_batch_norm_after

    def _check_order(self) -> None:
        start, stop = self.start_observers_after, self.stop_observers_after
        if self.start_fake_quant_after < start:
            raise ValueError(
                "Schedule: start_fake_quant_after must not come before start_observers_after, because fake-quants need a range, got "
                f"{self.start_fake_quant_after} and {start}"
            )
        if stop is not None and stop <= start and not all(module.observed for module in self._activations()):
            raise ValueError(
                f"Schedule: stop_observers_after must be greater than start_observers_after, {start}, because nothing has been observed "
                f"yet, got {stop}; or calibrate first"
            )

    def _activations(self) -> list[FakeQuantize]:
        fake_quants = named_fake_quants(self.prepared).values()
        return [module for module in fake_quants if module.observer is not None and not module.of_parameter]

    def _apply(self) -> None:
        """Brings the model to the state that belongs to this step, from whichever it is in."""
        self._apply_to_observers()
        if self.start_fake_quant_after:
            for fake_quant in named_fake_quants(self.prepared).values():
                fake_quant.enable_fake_quant(self.steps >= self.start_fake_quant_after)
        if self.freeze_batch_norm_after is not None:
            freeze_batch_norm(self.prepared, self.steps >= self.freeze_batch_norm_after)

    def _apply_to_observers(self) -> None:
        stopped = self.stop_observers_after is not None and self.steps >= self.stop_observers_after
        if stopped or self.steps < self.start_observers_after:
            for fake_quant in self._activations():
                fake_quant.enable_observer(False)
        elif self.start_observers_after:
            for fake_quant in self._activations():
                fake_quant.enable_observer(not fake_quant.has_learned_range)


def _count(name: str, value, optional: bool = False):
    if (value is None and optional) or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ValueError(f"Schedule: {name} must be a number of steps, 0 or more{', or None' if optional else ''}, got {value!r}")
