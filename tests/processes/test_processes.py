"""Two and three processes give the value, the gradients and the tables of one process on the concatenated batch.

All names run in one group of processes, which write what they found to files; the tests compare the files.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import CONFIGURATIONS, NUM_SAMPLES, Configuration, Views, guaranteed, views
from tolerances import assert_close
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import contrastive_zoo as zoo

STEPS, WIDTH = 3, 5
# Sizes of the local batches in each step: equal, unequal, and one sample on a process.
SIZES = {2: [(4, 4), (5, 3), (1, 6)], 3: [(3, 3, 3), (1, 5, 2), (4, 1, 1)]}
ENCODED = {"emc2": {"out_of_batch": "encode"}, "negative_cache": {"num_negatives": 4}}
INSIDE = ["dcl", "sogclr", "emc2", *(f"{name}, encode" for name in ENCODED)]
FOUND = dict[str, Any]


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, 4).double()


def global_batch(step: int, sizes: tuple[int, ...]) -> Views:
    """In the second step one sample is on the first and the last process."""
    batch = views(sum(sizes), WIDTH, seed=step)
    if step == 1:
        batch.index[-1] = batch.index[0]
    return batch


def local_batch(step: int, sizes: tuple[int, ...], rank: int) -> Views:
    start = sum(sizes[:rank])
    return Views(*(leaf[start : start + sizes[rank]].detach() for leaf in global_batch(step, sizes)))


def run(configuration: Configuration, batches: list[Views], wrap: Any = lambda model: model, **params: Any) -> FOUND:
    """Losses, gradients of the encoder and of a learned temperature, and state after some steps."""
    if "temperature" in configuration.card.parameters:
        params["temperature"] = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
    loss_fn, model = configuration.make(**params).double(), wrap(encoder())
    losses, found = [], []
    for batch in batches:
        loss = loss_fn(model(batch.z1), model(batch.z2), index=batch.index, labels=batch.labels)
        parameters = [*model.parameters(), *loss_fn.parameters()]
        for parameter in parameters:
            parameter.grad = None
        loss.sum().backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
    return {"losses": losses, "gradients": found, "state": {name: t.clone() for name, t in loss_fn.state_dict().items()}}


class Model(nn.Module):
    """Encoder and loss as one module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.encoder = encoder()
        temperature = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        name, _, encodes = name.partition(", ")
        params = {**ENCODED[name], "encode": self.encode_sample} if encodes else {}
        self.loss_fn = zoo.get_loss(name, num_samples=NUM_SAMPLES, temperature=temperature, **params).double()

    def encode_sample(self, index: Tensor, view: Tensor) -> Tensor:
        """Features of samples that are not in the batch."""
        draws = torch.Generator().manual_seed(11)
        samples = torch.randn(2, NUM_SAMPLES, WIDTH, generator=draws, dtype=torch.float64)
        return self.encoder(samples[view, index])

    def forward(self, batch: Views) -> Tensor:
        return self.loss_fn(self.encoder(batch.z1), self.encoder(batch.z2), index=batch.index)


def run_inside(name: str, batches: list[Views], wrap: Any = lambda model: model) -> FOUND:
    """The same as `run`, where the loss is inside of what is wrapped, its buffers and temperature included."""
    model = Model(name)
    wrapped = wrap(model)
    losses, found = [], []
    for batch in batches:
        wrapped.zero_grad()
        loss = wrapped(batch)
        loss.backward()
        losses.append(loss.detach())
        found.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()])
    return {"losses": losses, "gradients": found, "state": {name: t.clone() for name, t in model.state_dict().items()}}


def work(rank: int, world: int, folder: Path) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    # Processes that wait for one another in vain fail soon.
    place = {"init_method": f"file://{folder}/group", "timeout": timedelta(seconds=60)}
    dist.init_process_group("gloo", rank=rank, world_size=world, **place)
    batches = [local_batch(step, sizes, rank) for step, sizes in enumerate(SIZES[world])]
    found: FOUND = {str(c): run(c, batches, DistributedDataParallel) for c in CONFIGURATIONS}
    found["none"] = run(Configuration("dcl", {}), batches, DistributedDataParallel, reduction="none")
    found["dense"] = run(Configuration("ntxent", {}), batches, DistributedDataParallel, backend="dense")
    found["local"] = run(Configuration("ntxent", {}), batches[:1], gather=False)
    two = dist.new_group([0, 1])
    found["group"] = run(Configuration("ntxent", {}), batches[:1], process_group=two) if rank < 2 else None
    found["inside"] = {name: run_inside(name, batches, DistributedDataParallel) for name in INSIDE}
    found["eval"] = alone_in_eval(batches[0]) if rank == 0 else None
    dist.barrier()
    found["refused"] = refuses_negatives(batches[0])
    found["empty"] = one_sample_everywhere(batches[0])
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def alone_in_eval(batch: Views) -> Tensor:
    """One process evaluates while the others do not: nothing may wait for them."""
    loss_fn = zoo.get_loss("sogclr", num_samples=NUM_SAMPLES).double().eval()
    value: Tensor = loss_fn(batch.z1, batch.z2)
    return value


def refuses_negatives(batch: Views) -> str:
    try:
        zoo.get_loss("ntxent")(batch.z1, batch.z2, negatives=batch.z1)
    except ValueError as error:
        return str(error)
    return "accepted"


def one_sample_everywhere(batch: Views) -> FOUND:
    """All rows of all processes are one sample."""
    return run(Configuration("sogclr", {}), [batch._replace(index=torch.full_like(batch.index, 3))])


@pytest.fixture(scope="module", params=SIZES, ids="{} processes".format)
def world(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def found(world: int, tmp_path_factory: pytest.TempPathFactory) -> list[FOUND]:
    """What each process found, in the order of ranks."""
    folder = tmp_path_factory.mktemp(f"processes{world}")
    mp.spawn(work, args=(world, folder), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def one_process(configuration: Configuration, world: int, **params: Any) -> FOUND:
    """The same on the concatenated batches."""
    return run(configuration, [detached(global_batch(step, sizes)) for step, sizes in enumerate(SIZES[world])], **params)


def detached(batch: Views) -> Views:
    return Views(*(leaf.detach() for leaf in batch))


def assert_same(actual: FOUND, expected: FOUND) -> None:
    for step, (loss, wanted) in enumerate(zip(actual["losses"], expected["losses"], strict=True)):
        assert_close(loss, wanted, f"loss of step {step}", magnitude=1.0)
    for step, (some, others) in enumerate(zip(actual["gradients"], expected["gradients"], strict=True)):
        for number, (gradient, wanted) in enumerate(zip(some, others, strict=True)):
            assert_close(gradient, wanted, f"gradient {number} of step {step}", magnitude=10.0)
    assert actual["state"].keys() == expected["state"].keys()
    for name, tensor in expected["state"].items():
        assert_close(actual["state"][name], tensor, name)


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


def test_the_dense_backend_does_the_same(found: list[FOUND], world: int) -> None:
    expected = one_process(Configuration("ntxent", {}), world)
    for of_rank in found:
        assert_same(of_rank["dense"], expected)


def test_values_per_sample_are_those_of_the_whole_batch(found: list[FOUND], world: int) -> None:
    expected = one_process(Configuration("dcl", {}), world, reduction="none")
    for of_rank in found:
        assert_same(of_rank["none"], expected)


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
    expected = run_inside(name, [detached(global_batch(step, sizes)) for step, sizes in enumerate(SIZES[world])])
    for of_rank in found:
        assert_same(of_rank["inside"][name], expected)


def test_one_process_may_evaluate_alone(found: list[FOUND], world: int) -> None:
    batch = local_batch(0, SIZES[world][0], 0)
    assert_close(found[0]["eval"], alone_in_eval(batch), "loss")


def test_extra_keys_stay_where_they_are(found: list[FOUND]) -> None:
    for of_rank in found:
        assert "negatives stay on their process: pass gather=False" in of_rank["refused"]


def test_emptiness_is_decided_on_the_whole_batch(found: list[FOUND]) -> None:
    for of_rank in found:
        assert of_rank["empty"]["losses"][0] == 0
        assert not any(gradient.any() for gradient in of_rank["empty"]["gradients"][0])
        assert not of_rank["empty"]["state"]["objective.averages.visited"].any()
