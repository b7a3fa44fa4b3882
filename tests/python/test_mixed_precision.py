"""The solver of mixed precision: as good as brute force, never worse than greedy, and clear about what cannot be reached."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchquant.analysis.mixed_precision import Unreachable, choose


def instance(seed, layers, options):
    """Each layer: float (no drop, slow), and quantized options that trade drop for time."""
    generator = random.Random(seed)
    table = []
    for _ in range(layers):
        slow = generator.uniform(0.5, 5)
        quantized = [
            {"drop": max(generator.expovariate(20) - 0.005, 0.0), "noise": generator.random(), "ms": slow * generator.uniform(0.1, 1.05)}
            for _ in range(options - 1)
        ]
        table.append([{"drop": 0.0, "noise": 0.0, "ms": slow}, *quantized])
    return table


def total(table, choice, quantity):
    return sum(options[index][quantity] for options, index in zip(table, choice))


def greedy(table, limit):
    """From all float, the change with the most time per drop, until the limit holds; None if that does not get there."""
    choice = [0] * len(table)
    while total(table, choice, "ms") > limit:
        changes = []
        for layer, options in enumerate(table):
            for index, option in enumerate(options):
                saved = options[choice[layer]]["ms"] - option["ms"]
                if saved > 0:
                    lost = option["drop"] - options[choice[layer]]["drop"]
                    changes.append((saved / max(lost, 1e-12), layer, index))
        if not changes:
            return None
        _, layer, index = max(changes)
        choice[layer] = index
    return choice


def brute_force(table, limit):
    choices = itertools.product(*(range(len(options)) for options in table))
    return min((total(table, choice, "drop") for choice in choices if total(table, choice, "ms") <= limit), default=None)


def budgets(table, count=9):
    least = sum(min(option["ms"] for option in options) for options in table)
    most = sum(options[0]["ms"] for options in table)
    return [least + (most - least) * step / (count - 1) for step in range(count)]


@pytest.mark.parametrize("seed", range(12))
def test_never_worse_than_greedy(seed):
    table = instance(seed, layers=30, options=3)
    for limit in budgets(table):
        choice = choose(table, ["drop", "noise"], {"ms": limit})
        assert total(table, choice, "ms") <= limit * (1 + 1e-9)
        simple = greedy(table, limit)
        if simple is not None:
            assert total(table, choice, "drop") <= total(table, simple, "drop") + 1e-12


def test_greedy_is_a_reference_that_can_lose():
    table = instance(0, layers=30, options=3)
    limit = budgets(table)[4]
    assert total(table, choose(table, ["drop"], {"ms": limit}), "drop") < 0.99 * total(table, greedy(table, limit), "drop")


@pytest.mark.parametrize("seed", range(20))
def test_optimal_on_small_instances(seed):
    table = instance(seed, layers=5, options=3)
    for limit in budgets(table, count=6)[1:]:
        best = brute_force(table, limit * (1 + 1e-12))
        assert total(table, choose(table, ["drop"], {"ms": limit}), "drop") == pytest.approx(best, abs=1e-12)


layers_of_ties = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4), min_size=1, max_size=4)


@given(layers_of_ties, st.integers(0, 20))
def test_agrees_with_brute_force_on_ties(values, limit):
    table = [[{"drop": float(drop), "ms": float(ms)} for drop, ms in options] for options in values]
    expected = brute_force(table, limit)
    if expected is None:
        with pytest.raises(Unreachable) as error:
            choose(table, ["drop"], {"ms": limit})
        assert error.value.least == {"ms": sum(min(ms for _, ms in options) for options in values)}
    else:
        assert total(table, choose(table, ["drop"], {"ms": limit}), "drop") == expected


def test_first_quantity_beats_second_however_large():
    table = [[{"drop": 1e-9, "noise": 0.0}, {"drop": 0.0, "noise": 1e9}], [{"drop": 5.0, "noise": 0.0}, {"drop": 5.0, "noise": 1.0}]]
    assert choose(table, ["drop", "noise"], {}) == [1, 0]


def test_numbers_of_very_different_size():
    table = [[{"drop": 0.0, "ms": 1e6}, {"drop": 3e-7, "ms": 1e6 - 1}], [{"drop": 0.0, "ms": 1e-3}, {"drop": 2e-7, "ms": 5e-4}]]
    assert choose(table, ["drop"], {"ms": 1e6 + 6e-4}) == [0, 1]


def test_a_limit_at_exactly_the_least_is_met():
    table = [[{"drop": 0.0, "ms": 0.3}, {"drop": 1.0, "ms": 0.1}] for _ in range(3)]
    assert choose(table, ["drop"], {"ms": 0.1 + 0.1 + 0.1}) == [1, 1, 1]
    assert choose(table, ["drop"], {"ms": 0.3}) == [1, 1, 1]  # 0.1 + 0.1 + 0.1 > 0.3 by rounding


def test_limits_that_only_fail_together_name_the_least_of_each():
    table = [[{"drop": 0.0, "ms": 1.0, "mb": 4.0}, {"drop": 0.0, "ms": 4.0, "mb": 1.0}]]
    with pytest.raises(Unreachable) as error:
        choose(table, ["drop"], {"ms": 2.0, "mb": 2.0})
    assert error.value.least == {"ms": 4.0, "mb": 4.0}


def test_no_layers():
    assert choose([], ["drop"], {"ms": 1.0}) == []
