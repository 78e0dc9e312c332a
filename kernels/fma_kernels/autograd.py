"""Custom ops that differentiate, once, under PyTorch's transforms as well.

An op that registers its own derivative is opaque to ``torch.func``: gradients
fail there and forward mode is silently zero. So the ops have none, and a
``torch.autograd.Function`` stands around each forward op, whose backward is
such a Function around the backward op. Neither has a ``jvp``: forward mode is
refused by PyTorch itself.
"""
from typing import Any, Callable, NamedTuple, Tuple, Union

import torch
from torch import Tensor

NAMESPACE = 'fma_kernels'


class CoreOp(NamedTuple):
    """A custom op before it is registered.

    Attributes:
        name: under ``torch.ops.fma_kernels``.
        schema: arguments (tensors, None and plain numbers, no defaults) and
            results.
        run: its implementation; results alias no argument.
        fake: the same arguments; empty tensors of the same shapes, dtypes
            and strides.
    """
    name: str
    schema: str
    run: Callable
    fake: Callable

    def register(self) -> Callable:
        """The op as the dispatcher has it."""
        torch.library.custom_op(
            f'{NAMESPACE}::{self.name}',
            self.run,
            mutates_args=(),
            schema=self.schema).register_fake(self.fake)
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default


def all_of(inputs: tuple, outputs: tuple) -> tuple:
    """Backward reads all results and all arguments."""
    return *outputs, *inputs


def _loop(apply: Callable, info: Any, in_dims: tuple,
          args: tuple) -> Tuple[Tuple[Tensor, ...], Tuple[int, ...]]:
    """``vmap``: a call for each entry of the mapped axes, stacked in front.

    A mapped axis cannot become part of the batch: a bias or a seed has none.
    """

    def entry(i: int, x: Any, dim: Any) -> Any:
        mapped = isinstance(x, Tensor) and dim is not None
        return x.select(dim, i) if mapped else x

    calls = [
        apply(*(entry(i, *each) for each in zip(args, in_dims)))
        for i in range(info.batch_size)
    ]
    results = tuple(torch.stack(x) for x in zip(*calls))
    return results, (0, ) * len(results)


def _learns(args: tuple) -> bool:
    return torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in args)


def differentiable(
    forward: CoreOp,
    backward: CoreOp,
    saved: Callable[[tuple, tuple], tuple] = all_of
) -> Callable[..., Union[Tensor, Tuple[Tensor, ...]]]:
    """Registers two ops and joins them to a function with gradients.

    Args:
        forward: returns a tensor or several.
        backward: takes the gradients of these, then what ``saved`` gives;
            returns a list with the gradients of the forward op's floating
            arguments, as far as they are given.
        saved: of the forward op's arguments and results, what backward
            takes; tensors, None and numbers.

    Returns:
        A function with the arguments and results of ``forward``.
    """
    forward_op, backward_op = forward.register(), backward.register()

    class Backward(torch.autograd.Function):

        @staticmethod
        def forward(*args):
            return tuple(backward_op(*args))

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, *grads):
            raise RuntimeError(
                f'{NAMESPACE}::{forward.name} is differentiable once, not '
                'twice: autograd has no formula for its backward pass')

        @staticmethod
        def vmap(info, in_dims, *args):
            return _loop(Backward.apply, info, in_dims, args)

    class Forward(torch.autograd.Function):

        @staticmethod
        def forward(*args):
            found = forward_op(*args)
            return (found, ) if isinstance(found, Tensor) else tuple(found)

        @staticmethod
        def setup_context(ctx, inputs, output):
            args = saved(inputs, output)
            tensors = [x if isinstance(x, Tensor) else None for x in args]
            ctx.save_for_backward(*tensors)
            ctx.others = [None if isinstance(x, Tensor) else x for x in args]
            ctx.floating = [
                isinstance(x, Tensor) and x.is_floating_point() for x in inputs
            ]

        @staticmethod
        def backward(ctx, *grads):
            args = [
                other if x is None else x
                for x, other in zip(ctx.saved_tensors, ctx.others)
            ]
            # Compiled code is not differentiated twice, and a Function inside
            # a Function is too much for some versions of the compiler.
            compiling = torch.compiler.is_compiling()
            run = backward_op if compiling else Backward.apply
            found = list(run(*grads, *args))
            return tuple(
                found.pop(0) if floating else None
                for floating in ctx.floating)

        @staticmethod
        def vmap(info, in_dims, *args):
            return _loop(Forward.apply, info, in_dims, args)

    def call(*args):
        if torch.onnx.is_in_onnx_export():
            # Its exporters know PyTorch's own operators, no library's.
            return forward.run(*args)
        if torch.jit.is_tracing():
            # A trace with a Function in it cannot be saved.
            return forward_op(*args)
        if torch.compiler.is_compiling() and not _learns(args):
            # Some compilers mistake setup_context where nobody needs it.
            return forward_op(*args)
        found = Forward.apply(*args)
        return found[0] if len(found) == 1 else found

    call.__name__ = call.__qualname__ = forward.name
    call.__doc__ = forward.run.__doc__
    return call
