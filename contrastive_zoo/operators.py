"""Operators that are opaque to `torch.compile` and called directly in eager mode.

In eager mode, going through the dispatcher costs more than a small batch itself, so an `Operator` skips it. An `Operator` is
both an opaque `torch.library.custom_op` and the plain function, wrapped in a `torch.autograd.Function`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from contrastive_zoo.devices import transforming

ONE_DERIVATIVE = (
    "this gradient is written by hand: it has no derivative (create_graph=True, gradient penalties, Hessians), and transforms "
    "(torch.func.grad, vmap, jacrev, ..., is_grads_batched=True) cannot enter it. "
)
DENSE = "Use backend='dense', which is plain autograd."


T = TypeVar("T")

NOTHING = nullcontext()
# Whether a backward pass with is_grads_batched=True hides the values of a tensor.
_legacy_batched = torch._C._functorch.is_legacy_batchedtensor


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off for the device of a tensor, at no cost if autocast is off already."""
    device_type = x.device.type
    if device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return NOTHING
    return torch.autocast(device_type, enabled=False)


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

    def differentiate(
        self,
        backward: "Operator",
        setup: Callable[..., None],
        gradient: Callable[..., Any],
        *,
        returned: Callable[[Any], Any] = lambda output: output,
        advice: str = DENSE,
    ) -> None:
        """Give the operator a gradient.

        Args:
            backward: The operator that computes the gradient; `backward` itself has no derivative.
            setup: ``setup(ctx, inputs, output)`` saves what the gradient needs. For second derivatives to be refused rather
                than lost, what is saved must depend on every input with a gradient.
            gradient: ``gradient(ctx, compute, *grads)`` returns the gradients of all inputs; ``compute`` is ``backward``.
            returned: Chooses the results that a direct call returns; the others serve the gradient only.
            advice: What to do where one derivative is not enough; the last sentence of the error.
        """
        refusal = ONE_DERIVATIVE + advice
        self.opaque.register_autograd(lambda ctx, *grads: gradient(ctx, backward.opaque, *grads), setup_context=setup)
        backward.opaque.register_autograd(lambda ctx, *grads: _refuse(refusal))
        directly = partial(_given_second, gradient, backward.plain)
        self._eager = eager_function(self.plain, setup, directly, refusal=refusal, returned=returned)


def operator(name: str, schema: str) -> Callable[[Callable[..., Any]], Operator]:
    """Decorator that turns a function into an `Operator`."""
    return lambda function: Operator(name, schema, function)


def _given_second(function: Callable[..., Any], second: Any, first: Any, *others: Any) -> Any:
    return function(first, second, *others)


def _refuse(message: str) -> NoReturn:
    raise RuntimeError(message)


class _LastDerivative(torch.autograd.Function):
    """Passes gradients on, and refuses to be differentiated."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, refusal: str, *sources: Tensor) -> Tensor:
        """``sources`` are what the gradient depends on."""
        ctx.refusal = refusal
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuses."""
        _refuse(ctx.refusal)


def eager_function(
    forward: Callable[..., Any],
    setup: Callable[..., None],
    gradient: Callable[..., Any],
    *,
    refusal: str = ONE_DERIVATIVE + DENSE,
    returned: Callable[[Any], Any] = lambda output: output,
) -> Callable[..., Any]:
    """A function with a gradient, in eager mode.

    Args:
        forward: Computes a tuple of tensors.
        setup: ``setup(ctx, inputs, output)``, as for `Operator.differentiate`.
        gradient: ``gradient(ctx, *grads)`` returns the gradients of all inputs.
        refusal: The error where one derivative is not enough.
        returned: Chooses the results that are returned; the others serve the gradient only.
    """

    class Eager(torch.autograd.Function):
        # No separate setup_context: with one, apply would inspect the signature at every call.
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup(ctx, inputs, output)
            return returned(output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            given = [grad for grad in grads if grad is not None]
            if transforming() or any(map(_legacy_batched, given)):
                _refuse(refusal)
            device_type = given[0].device.type if given else "cpu"
            ordinary = not torch.is_grad_enabled()
            if ordinary and not torch.is_autocast_enabled(device_type):
                return gradient(ctx, *grads)
            # Under autocast, the backward pass must compute in the same precision as the forward pass.
            with torch.no_grad(), torch.autocast(device_type, enabled=False):
                gradients = gradient(ctx, *grads)
            if ordinary:
                return gradients
            sources = [source for source in (*ctx.saved_tensors, *grads) if isinstance(source, Tensor)]
            last = _LastDerivative.apply
            return tuple(g if g is None else last(g, refusal, *sources) for g in gradients)  # type: ignore[no-untyped-call]

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            """Forward-mode differentiation."""
            _refuse(refusal)

    apply = Eager.apply

    def call(*inputs: Any) -> Any:
        if transforming():
            _refuse(refusal)
        return apply(*inputs)  # type: ignore[no-untyped-call]

    return call
