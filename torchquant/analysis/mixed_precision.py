"""The solver of mixed precision: one option for every layer, the best total within limits. SensitivityReport.propose calls it.

This is the multiple-choice knapsack problem (Kellerer, Pferschy and Pisinger, "Knapsack problems", 2004, chapter 11), solved
as an integer program by HiGHS through scipy.optimize.milp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

Options = Sequence[Sequence[Mapping]]  # per layer, per option: quantity -> value; what is not asked for may be anything

_INFEASIBLE = 2  # milp's status
_ROUNDING = 1e-12  # relative; sums of the same numbers in another order differ by less
_TIGHTENINGS = 8


class Unreachable(ValueError):
    """No choice keeps the limits. `least` has, for each limited quantity, the smallest total within the other limits, None
    where there is none."""

    def __init__(self, least: dict[str, float | None]):
        super().__init__(f"no choice keeps the limits; least reachable: {least}")
        self.least = least


def choose(options: Options, minimize: Sequence[str], limits: Mapping[str, float]) -> list[int]:
    """The index of one option per layer whose total of the first quantity in `minimize` is the least that the limits allow;
    of equal ones the one with the least total of the second, and so on. A total may exceed its limit by rounding alone.

    Raises Unreachable where no choice keeps the limits.
    """
    problem = _Problem(options, {*minimize, *limits})
    limits = dict(limits)
    best = None
    for quantity in minimize:
        solution = problem.solve(quantity, limits)
        if solution is None and best is None:
            raise Unreachable({name: problem.least(name, limits) for name in limits})
        if solution is None:  # the tie that the earlier quantities leave is narrower than the solver's tolerance
            break
        best = solution
        limits[quantity] = min(problem.total(quantity, best), limits.get(quantity, np.inf))
    return best


class _Problem:
    def __init__(self, options: Options, quantities: set[str]):
        from scipy.optimize import LinearConstraint  # here and below: half a second that only proposals should pay
        from scipy.sparse import csr_array

        self.sizes = [len(choices) for choices in options]
        self.starts = np.cumsum([0, *self.sizes[:-1]])
        flat = [option for choices in options for option in choices]
        self.values = {name: np.array([option[name] for option in flat], dtype=np.float64) for name in quantities}
        layer_of = np.repeat(np.arange(len(self.sizes)), self.sizes)
        one_each = csr_array((np.ones(len(flat)), (layer_of, np.arange(len(flat)))), shape=(len(self.sizes), len(flat)))
        self.one_each = LinearConstraint(one_each, 1, 1)

    def total(self, quantity: str, choice: list[int]) -> float:
        return float(self.values[quantity][self.starts + choice].sum()) if self.sizes else 0.0

    def solve(self, quantity: str, limits: Mapping[str, float]) -> list[int] | None:
        """None where no choice keeps the limits. The solver keeps them within a tolerance; where that lets a total exceed its
        limit, the limit is tightened by as much."""
        if not self.sizes:
            return [] if all(limit >= 0 for limit in limits.values()) else None
        tightened = dict(limits)
        for _ in range(_TIGHTENINGS):
            choice = self._run_solver(quantity, tightened)
            if choice is None:
                return None
            excess = {name: self.total(name, choice) - limit - self._rounding(name) for name, limit in limits.items()}
            broken = {name: amount for name, amount in excess.items() if amount > 0}
            if not broken:
                return choice
            for name, amount in broken.items():
                tightened[name] -= amount + self._rounding(name)
        return None

    def least(self, quantity: str, limits: Mapping[str, float]) -> float | None:
        others = {name: limit for name, limit in limits.items() if name != quantity}
        choice = self.solve(quantity, others)
        return None if choice is None else self.total(quantity, choice)

    def _run_solver(self, quantity: str, limits: Mapping[str, float]) -> list[int] | None:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        constraints = [self.one_each]
        for name, limit in limits.items():
            # The difference to the least total, in units of the largest one: the solver's tolerances are absolute.
            rest, least = self._above_least(name)
            unit = rest.max() or 1.0
            bound = (limit - least + self._rounding(name)) / unit
            if bound < 0:
                return None
            constraints.append(LinearConstraint(csr_array((rest / unit)[None]), -np.inf, bound))
        objective, _ = self._above_least(quantity)
        # Large, because the solver stops once it is within an absolute gap of the best.
        objective = objective / (objective.max() or 1.0) * 1e5
        integers = np.ones(objective.size)
        result = milp(objective, constraints=constraints, integrality=integers, bounds=Bounds(0, 1), options={"mip_rel_gap": 0})
        if result.status == _INFEASIBLE:
            return None
        if result.x is None:
            raise RuntimeError(f"propose: the solver gave up: {result.message}")
        return [int(np.argmax(result.x[start : start + size])) for start, size in zip(self.starts, self.sizes)]

    def _above_least(self, quantity: str) -> tuple[np.ndarray, float]:
        """(each option's value above the least of its layer, the sum of those least values)."""
        least = np.minimum.reduceat(self.values[quantity], self.starts)
        return self.values[quantity] - np.repeat(least, self.sizes), float(least.sum())

    def _rounding(self, quantity: str) -> float:
        return _ROUNDING * float(np.abs(self.values[quantity]).sum())
