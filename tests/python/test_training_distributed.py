"""Quantization-aware training on several processes: one all-reduce per step gives every process the ranges of all, the same as one
process has over the same data. Two processes under torchrun and one alone, with gloo; support/distributed_worker.py trains."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import distributed_worker as worker
from torch import nn

import torchquant as tq

WORKER = Path(worker.__file__)
STATE = ("min_val", "max_val", "nonfinite_count", "scale", "zero_point", "clip")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """{(world size, rank): {scenario: what that process returned}}"""
    folder = tmp_path_factory.mktemp("distributed")
    two = _start_two(folder)
    alone = _alone()
    output, _ = two.communicate(timeout=300)
    assert two.returncode == 0, output
    return {(1, 0): alone, **{(2, rank): torch.load(folder / f"{rank}.pt") for rank in (0, 1)}}


def _start_two(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(WORKER), str(folder)]
    path = os.pathsep.join([str(Path(tq.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _alone():
    """The same scenarios with a process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return {name: run() for name, run in worker.scenarios().items() if name != "compiled"}
    finally:
        dist.destroy_process_group()


def quantization_state(state):
    return {name: value for name, value in state.items() if name.rpartition(".")[2] in STATE}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], **tolerance, msg=lambda text: f"{name}: {text}")


TRAINED = ["plain", "without broadcasts", "checkpointed", "compiled"]


@pytest.mark.parametrize("scenario", TRAINED)
def test_every_process_holds_the_same_state_after_every_step(ranks, scenario):
    first, second = ranks[2, 0][scenario][0], ranks[2, 1][scenario][0]
    for step in first:
        assert_equal(first[step], second[step])


@pytest.mark.parametrize("scenario", TRAINED)
def test_two_processes_have_the_ranges_of_one_over_the_same_data(ranks, scenario):
    two, one = ranks[2, 0][scenario][0], ranks[1, 0]["plain" if scenario == "compiled" else scenario][0]
    assert_equal(quantization_state(two[0]), quantization_state(one[0]))  # before the first sum of gradients, to the bit
    for step in two:
        assert_close(two[step], one[step], rtol=1e-4, atol=1e-6)


def test_the_ranges_of_a_lone_process_are_those_of_plain_training(ranks):
    prepared = worker.prepared_net(tq.qconfigs.int8_static())
    prepared(worker.BATCHES[0]).square().mean().backward()
    assert_equal(quantization_state(prepared.state_dict()), quantization_state(ranks[2, 0]["plain"][0][0]))


def test_one_all_reduce_per_step(ranks):
    _, calls = ranks[2, 0]["plain"]
    assert calls[1:] == [1] * (len(calls) - 1)
    fake_quants = [name for name in ranks[2, 0]["plain"][0][0] if "activation_fake_quants" in name and name.endswith("scale")]
    assert len(fake_quants) > 1 and calls[0] == 1 + len(fake_quants)  # a first range is needed at once


def test_checkpointing_and_compiling_change_nothing(ranks):
    assert_equal(ranks[2, 0]["checkpointed"][0][4], ranks[2, 0]["module by module"][0][4])
    assert_close(ranks[2, 0]["compiled"][0][2], ranks[2, 0]["plain"][0][2])


@pytest.mark.parametrize("scenario", ["learned", "learned from range", "pact"])
def test_what_is_learned_starts_from_the_first_batch_of_all(ranks, scenario):
    assert_equal(ranks[2, 0][scenario], ranks[2, 1][scenario])
    assert_close(ranks[2, 0][scenario], ranks[1, 0][scenario], rtol=1e-4, atol=1e-6)


def test_histograms_in_training_are_refused_with_what_to_do(ranks):
    for rank in ((1, 0), (2, 0), (2, 1)):
        assert 'activation_fake_quants.' in ranks[rank]["refused"] and 'observer="moving_average"' in ranks[rank]["refused"]
        assert "'mse'" in ranks[rank]["refused"] and "calibrate before training" in ranks[rank]["refused"]


def test_a_sharded_model_has_the_ranges_of_one_process_over_the_same_data(ranks):
    first, second = (ranks[2, rank]["sharded"][0] for rank in (0, 1))
    one = ranks[1, 0]["plain"][0]
    assert_equal(quantization_state(first[0][0]), quantization_state(one[0]))  # before the first sum of gradients, to the bit
    for step in first:
        assert_equal(first[step][1], second[step][1])
        assert_close(first[step][0], one[step], rtol=1e-4, atol=1e-6)


def test_a_gathered_state_converts_and_a_sharded_model_says_so(ranks):
    seen, refusal = ranks[2, 0]["sharded"]
    assert "convert: conv.weight is sharded over processes" in refusal and "get_model_state_dict" in refusal
    prepared = worker.prepared_net(tq.qconfigs.int8_static())
    prepared.load_state_dict(seen[4][0])
    tq.convert(prepared.eval(), worker.BATCHES[0])


def test_what_cannot_be_sharded_says_so(ranks):
    for rank in (0, 1):
        assert "learns its range, and a range cannot be sharded" in ranks[2, rank]["sharded and learned"]
        message = ranks[2, rank]["sharded by block"]
        assert "calls the layers inside 'body', and never that itself" in message
        assert "shard layers and the prepared model as a whole" in message


def test_parameters_cannot_be_replaced_by_views():
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), tq.qconfigs.int8_static())
    del prepared[0]._parameters["weight"]
    with pytest.raises(AttributeError, match="Linear.weight is fake-quantized.*shard with torch.distributed.fsdp.fully_shard"):
        prepared[0].weight = torch.randn(4, 4)


def test_uneven_inputs_are_refused(ranks):
    for rank in ((2, 0), (2, 1)):
        message, merges = ranks[rank]["uneven"]
        assert "join() is not supported while observers are on; give every process as many batches" in message
        assert merges == 0  # the very first one would wait for a process that has no batches left


@pytest.mark.parametrize("scenario", ["calibrated min_max", "calibrated mse"])
def test_calibration_on_shares_is_calibration_on_everything(ranks, scenario):
    for rank in (0, 1):
        assert_equal(ranks[2, rank][scenario], ranks[1, 0][scenario])


def test_a_delayed_start_takes_the_ranges_of_all(ranks):
    assert_equal(ranks[2, 0]["delayed"], ranks[2, 1]["delayed"])
    assert_close(ranks[2, 0]["delayed"], ranks[1, 0]["delayed"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", worker.learning_qconfigs())
def test_what_is_learned_after_a_delayed_start_is_observed_no_longer(ranks, name):
    plain = quantization_state(worker.delayed(worker.learning_qconfigs()[name], distributed=False))
    for rank in ((1, 0), (2, 0), (2, 1)):
        state = ranks[rank][f"delayed {name}"]
        assert_close(quantization_state(state), plain, rtol=1e-4, atol=1e-6)
        assert not any(observer_on for observer_on, _, _ in activation_flags(state, "activation_fake_quants").values())


@pytest.mark.parametrize("name", worker.branch_qconfigs())
def test_the_first_batch_that_reaches_a_branch_is_merged_at_once(ranks, name):
    plain = worker.late_branch(worker.branch_qconfigs()[name], distributed=False)
    first, second = (ranks[2, rank][f"late branch {name}"] for rank in (0, 1))
    assert_equal(first["after"], second["after"])
    for result in (first, second):
        assert_equal(activation_flags(result["before"]), activation_flags(plain["before"]))  # the branch waits for its batch
        assert_equal(activation_flags(result["after"]), activation_flags(plain["after"]))
        assert_close(quantization_state(result["after"]), quantization_state(plain["after"]), rtol=1e-4, atol=1e-6)
    both = torch.cat([first["output"], second["output"]])
    assert (both - plain["output"]).abs().max() < 1e-4 * plain["output"].abs().max()


def activation_flags(state, kind="input_fake_quant"):
    """{name: whether its observer and its fake-quant are on, and how far it has come}; `kind` is how this placement names them."""
    flags = {name: value for name, value in state.items() if kind in name and name.endswith("_extra_state")}
    assert flags
    return flags


def test_synchronizing_without_processes_says_what_to_call():
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(2, 2)), torch.randn(3, 2), tq.qconfigs.int8_static())
    with pytest.raises(RuntimeError, match="torch.distributed is not initialized; call torch.distributed.init_process_group first"):
        tq.training.synchronize_observers(prepared)
    with pytest.raises(TypeError, match="expected a model that torchquant.prepare or prepare_qat returned, got Linear"):
        tq.training.synchronize_observers(nn.Linear(2, 2))
