"""Operators that are opaque to `torch.compile` and called directly in eager mode.

In eager mode, going through the dispatcher costs more than a small batch itself, so an `Operator` skips it. An `Operator` is
both an opaque `torch.library.custom_op` and the plain function, wrapped in a `torch.autograd.Function`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

SECOND_DERIVATIVE = (
    "the gradient of this operator is written by hand and has no derivative (create_graph=True, gradient "
    "penalties, Hessians). Use backend='dense', which is plain autograd."
)


T = TypeVar("T")

_NOTHING = nullcontext()


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off for the device of a tensor, at no cost if autocast is off already."""
    device_type = x.device.type
    return torch.autocast(device_type, enabled=False) if torch.is_autocast_enabled(device_type) else _NOTHING


def uncompiled(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function without compiling it; in compiled code, the graph breaks here."""
    # torch.compiler.disable is called here, not used as a decorator, because a decorator would import the compiler at import.
    if torch.compiler.is_compiling():
        function = torch.compiler.disable(function)
    return function(*arguments)


class Operator:
    """A function with a name and a schema.

    Args:
        name: Name of the operator, with its namespace.
        schema: Types of arguments and results, as for `torch.library`.
        function: Implementation of the operator.
    """

    def __init__(self, name: str, schema: str, function: Callable[..., Any]) -> None:
        self.plain = function
        self.opaque: Any = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        self.register_fake = self.opaque.register_fake
        self._eager = function

    def __call__(self, *inputs: Any) -> Any:
        """Call through the dispatcher while compiling, else directly."""
        return self.opaque(*inputs) if torch.compiler.is_compiling() else self._eager(*inputs)

    def differentiate(self, backward: "Operator", setup: Callable[..., None], gradient: Callable[..., Any]) -> None:
        """Give the operator a gradient.

        Args:
            backward: The operator that computes the gradient; `backward` itself has no derivative.
            setup: ``setup(ctx, inputs, output)`` saves what the gradient needs.
            gradient: ``gradient(ctx, compute, *grads)`` returns the gradients of all inputs; ``compute`` is ``backward``.
        """
        self.opaque.register_autograd(lambda ctx, *grads: gradient(ctx, backward.opaque, *grads), setup_context=setup)
        backward.opaque.register_autograd(_refuse)
        self._eager = _eager_function(self.plain, backward.plain, setup, gradient).apply


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that turns a function into an `Operator`."""
    return lambda function: Operator(name, schema, function)


def _refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(SECOND_DERIVATIVE)


class _LastDerivative(torch.autograd.Function):
    """Passes gradients on, and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        """``sources`` are what the gradient depends on."""
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuses."""
        _refuse(ctx)


def _eager_function(
    forward: Callable[..., Any], backward: Callable[..., Any], setup: Callable[..., None], gradient: Callable[..., Any]
) -> Any:
    class Eager(torch.autograd.Function):
        # No separate setup_context: with one, apply would inspect the signature at every call.
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            # Under autocast, the backward pass must compute in the same precision as the forward pass.
            given = [grad for grad in grads if grad is not None]
            plain = without_autocast(given[0]) if given else _NOTHING
            if not torch.is_grad_enabled():
                with plain:
                    return gradient(ctx, backward, *grads)
            with torch.no_grad(), plain:
                gradients = gradient(ctx, backward, *grads)
            sources = [source for source in (*ctx.saved_tensors, *grads) if isinstance(source, Tensor)]
            return tuple(g if g is None else _LastDerivative.apply(g, *sources) for g in gradients)  # type: ignore[no-untyped-call]

    return Eager
