"""Two and three processes give the value, the gradients and the tables of one process on the concatenated batch."""

from typing import Any

import pytest
import torch
from cases import CONFIGURATIONS, Configuration, Views, guaranteed
from group import (
    COMPILED,
    FOUND,
    FSDP,
    INSIDE,
    ONE_VIEW,
    SHARDED,
    SIZES,
    WITH_NEGATIVES,
    Learning,
    alone_in_eval,
    assert_same,
    fully_shard,
    global_batch,
    global_negatives,
    global_weights,
    local_batch,
    mixed_rows,
    part_of,
    run,
    run_inside,
    train_learning,
)
from tolerances import assert_close


def one_process(configuration: Configuration, world: int, **params: Any) -> FOUND:
    """The same on the concatenated batches."""
    return run(configuration, [global_batch(step, sizes) for step, sizes in enumerate(SIZES[world])], **params)


@guaranteed("processes")
def test_equals_one_process(configuration: Configuration, found: list[FOUND], world: int) -> None:
    """Also of those that draw: all processes draw the same."""
    expected = one_process(configuration, world)
    for of_rank in found:
        assert_same(of_rank[str(configuration)], expected)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_tables_are_alike_on_all_processes(configuration: Configuration, found: list[FOUND]) -> None:
    first, *others = (of_rank[str(configuration)]["state"] for of_rank in found)
    for state in others:
        assert all(torch.equal(tensor, state[name]) for name, tensor in first.items())


@pytest.mark.parametrize("shared", [True, False], ids=["keys of a process", "keys of a sample"])
@pytest.mark.parametrize("configuration", WITH_NEGATIVES, ids=str)
def test_extra_keys_are_for_the_anchors_of_their_process(
    configuration: Configuration, shared: bool, found: list[FOUND], world: int
) -> None:
    """As if each sample had its own in one process; the encoder gets gradients through keys too."""
    keys = [global_negatives(step, sizes, shared) for step, sizes in enumerate(SIZES[world])]
    expected = one_process(configuration, world, negatives=keys)
    for of_rank in found:
        assert_same(of_rank[f"{configuration} with {shared=}"], expected)


@pytest.mark.parametrize("configuration", ONE_VIEW, ids=str)
def test_one_view(configuration: Configuration, found: list[FOUND], world: int) -> None:
    """Some anchors have all their positives on other processes."""
    expected = one_process(configuration, world, one_view=True)
    for of_rank in found:
        assert_same(of_rank["one view"][str(configuration)], expected)


def test_the_dense_backend_does_the_same(found: list[FOUND], world: int) -> None:
    expected = one_process(Configuration("ntxent", {}), world)
    keys = [global_negatives(step, sizes, shared=False) for step, sizes in enumerate(SIZES[world])]
    with_keys = one_process(Configuration("ntxent", {}), world, negatives=keys)
    for of_rank in found:
        assert_same(of_rank["dense"], expected)
        assert_same(of_rank["dense with negatives"], with_keys)


def test_objectives_may_compare_other_rows_than_those_of_the_batch(found: list[FOUND], world: int) -> None:
    expected = one_process(Configuration("ntxent", {}), world, objective=mixed_rows)
    for of_rank in found:
        assert_same(of_rank["mixed rows"], expected)


@pytest.mark.parametrize("configuration", [c for c in CONFIGURATIONS if c.card.per_sample], ids=str)
def test_each_process_has_the_values_of_its_own_samples(configuration: Configuration, found: list[FOUND], world: int) -> None:
    """Each weighs its own values; gradients are those of one process with all weights."""
    weights = [global_weights(step, sizes) for step, sizes in enumerate(SIZES[world])]
    expected = one_process(configuration, world, reduction="none", weights=weights)
    for rank, of_rank in enumerate(found):
        own = [loss[part_of(sizes, rank)] for loss, sizes in zip(expected["losses"], SIZES[world], strict=True)]
        assert_same(of_rank["none"][str(configuration)], {**expected, "losses": own})


def test_values_per_sample_of_compiled_and_of_empty_batches(found: list[FOUND], world: int) -> None:
    weights = [global_weights(step, sizes) for step, sizes in enumerate(SIZES[world])]
    expected = one_process(Configuration("dcl", {}), world, reduction="none", weights=weights)
    for rank, of_rank in enumerate(found):
        for loss, wanted, sizes in zip(of_rank["none, compiled"]["losses"], expected["losses"], SIZES[world], strict=True):
            assert_close(loss, wanted[part_of(sizes, rank)], "values", magnitude=1.0)
        (loss,), (gradients,) = of_rank["none, empty"]["losses"], of_rank["none, empty"]["gradients"]
        assert loss.shape == SIZES[world][0][rank : rank + 1]
        assert not loss.any()
        assert not any(gradient.any() for gradient in gradients)


def test_without_gathering_each_process_is_by_itself(found: list[FOUND], world: int) -> None:
    for rank, of_rank in enumerate(found):
        local = local_batch(0, SIZES[world][0], rank)
        assert_same(of_rank["local"], run(Configuration("ntxent", {}), [local]))


def test_a_group_of_some_processes(found: list[FOUND], world: int) -> None:
    """Not averaged here: the gradients of the two, which carry the factor two, sum to twice that of one process."""
    parts = [local_batch(0, SIZES[world][0], rank) for rank in range(2)]
    together = Views(*(torch.cat(leaves) for leaves in zip(*parts, strict=True)))
    expected = run(Configuration("ntxent", {}), [together])
    for of_rank in found[:2]:
        assert_close(of_rank["group"]["losses"][0], expected["losses"][0], "loss")
    for number in range(2):
        summed = sum(of_rank["group"]["gradients"][0][number] for of_rank in found[:2])
        assert_close(summed / 2, expected["gradients"][0][number], "gradient", magnitude=1.0)


@pytest.mark.parametrize("name", INSIDE)
def test_a_loss_inside_of_a_wrapped_model(name: str, found: list[FOUND], world: int) -> None:
    expected = run_inside(name, [global_batch(step, sizes) for step, sizes in enumerate(SIZES[world])])
    for of_rank in found:
        assert_same(of_rank["inside"][name], expected)


@pytest.mark.parametrize("what", FSDP)
@pytest.mark.parametrize("name", SHARDED)
def test_a_sharded_model_with_a_loss_that_learns(name: str, what: str, found: list[FOUND], world: int) -> None:
    """With FSDP2; parameters of shape () and (1,) load each other."""
    if world != 2 or fully_shard is None:
        pytest.skip("two processes and torch 2.7 or newer")
    model = Learning(name, ())
    expected = train_learning(model, [global_batch(0, SIZES[world][0])] * 3)
    first, second = (of_rank["sharded"][f"{name}, {what}"] for of_rank in found)
    assert first["losses"] == second["losses"] == pytest.approx(expected, rel=1e-9)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(first["state"][key].reshape(tensor.shape), tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_equals_eager(name: str, found: list[FOUND], world: int) -> None:
    """With extra keys for one of them. Gradients of the encoder are averaged here, as no wrapper does it."""
    if world != 2:
        pytest.skip("compiled by two processes only")
    keys = [global_negatives(step, sizes, shared=False) for step, sizes in enumerate(SIZES[world])]
    expected = one_process(Configuration(name, {}), world, negatives=keys if name == "ntxent" else None)
    for of_rank in found:
        compiled = of_rank["compiled"][name]
        for step, (loss, wanted) in enumerate(zip(compiled["losses"], expected["losses"], strict=True)):
            assert_close(loss, wanted, f"loss of step {step}", magnitude=1.0)
    for step, wanted_gradients in enumerate(expected["gradients"]):
        gradients = [of_rank["compiled"][name]["gradients"][step] for of_rank in found]
        for number, wanted in enumerate(wanted_gradients):
            mean = torch.stack([of_rank[number] for of_rank in gradients]).mean(0)
            assert_close(mean, wanted, f"gradient {number} of step {step}", magnitude=10.0)


def test_one_process_may_evaluate_alone(found: list[FOUND], world: int) -> None:
    batch = local_batch(0, SIZES[world][0], 0)
    assert_close(found[0]["eval"], alone_in_eval(batch), "loss")


def test_emptiness_is_decided_on_the_whole_batch(found: list[FOUND]) -> None:
    for of_rank in found:
        assert of_rank["empty"]["losses"][0] == 0
        assert not any(gradient.any() for gradient in of_rank["empty"]["gradients"][0])
        assert not of_rank["empty"]["state"]["objective.averages.visited"].any()
