"""Memory that is used again: only when nobody needs it any more, and never with old numbers in it that a test could miss."""

import copy
import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

import contrastive_zoo as zoo
from contrastive_zoo.pairwise import scratch

FLOATS = 2**18  # 1 MiB


@pytest.fixture(autouse=True)
def _nothing_waits() -> Iterator[None]:
    """No block of other tests is handed out, and those of a test go."""
    scratch._waiting.clear()
    yield
    scratch._waiting.clear()


def block(numel: int = FLOATS, dtype: torch.dtype = torch.float32) -> Tensor:
    return scratch.empty(torch.zeros((), dtype=dtype), numel)


def test_memory_of_a_tensor_that_is_gone_is_used_again() -> None:
    first = block()
    address = first.data_ptr()
    del first
    assert block(FLOATS - 5).data_ptr() == address


HOLDS: dict[str, Callable[[Tensor], object]] = {
    "part": lambda t: t[5:9],
    "detached": Tensor.detach,
    "transpose": lambda t: t.view(2, -1).T,
    "array": Tensor.numpy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("hold", HOLDS.values(), ids=HOLDS)
def test_memory_that_somebody_looks_at_is_not(hold: Callable[[Tensor], object]) -> None:
    first = block()
    held = hold(first)
    address = first.data_ptr()
    del first
    assert block().data_ptr() != address
    del held
    assert block().data_ptr() == address


def test_memory_that_a_backward_pass_needs_is_not() -> None:
    factor, x = block().fill_(3.0), torch.ones(FLOATS, requires_grad=True)
    address = factor.data_ptr()
    product = (factor * x).sum()
    del factor
    assert block().fill_(7.0).data_ptr() != address
    product.backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.full_like(x, 3.0))


def test_shape_dtype_device_and_alignment() -> None:
    for like in (torch.zeros((), dtype=torch.float64), torch.zeros(()), torch.zeros((), device="meta")):
        tensor = scratch.empty(like, 300, 700)
        assert (tensor.shape, tensor.dtype, tensor.device) == ((300, 700), like.dtype, like.device)
        assert tensor.is_contiguous()
        assert tensor.device.type == "meta" or tensor.data_ptr() % 64 == 0


def test_what_waits_is_bounded() -> None:
    tensors = [block(FLOATS - i) for i in range(9)]
    del tensors
    gc.collect()
    assert sum(len(blocks) for blocks in scratch._waiting.values()) == 2
    large = block(scratch.LARGEST // 4 + 1)
    del large
    assert max(scratch._waiting) <= scratch.LARGEST


def test_old_numbers_do_not_show_where_unwritten_memory_is_marked() -> None:
    block().fill_(3.0)
    assert block().isnan().all()  # deterministic algorithms are on in all tests


def test_two_losses_at_once_do_not_share_their_tiles() -> None:
    """Forward passes of several losses come before the first backward pass."""
    batches = [torch.randn(2, 300, 8, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in range(3)]
    loss_fn = zoo.get_loss("ntxent")
    alone = [torch.autograd.grad(loss_fn(*batch), batch)[0] for batch in batches]
    losses = [loss_fn(*batch) for batch in batches]
    for loss, batch, expected in zip(losses, batches, alone, strict=True):
        assert torch.equal(torch.autograd.grad(loss, batch)[0], expected)
