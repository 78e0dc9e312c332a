"""Checks of constructors' arguments, for layers and models."""

import functools
import inspect
import numbers
import types
from collections import abc
from typing import Any, Callable, Union, get_args, get_origin, get_type_hints

import numpy as np

_MISFIT = object()
# Kinds of one value: what counts as one, and its name in messages.
_PLAIN = {
    int: (numbers.Integral, 'an int'),
    float: (numbers.Real, 'a number'),
    bool: ((bool, np.bool_), 'a bool'),
    str: (str, 'a str'),
    dict: (dict, 'a dict'),
    type: (type, 'a class'),
    type(None): (type(None), 'None')
}


def _fitted(value: Any, hint: Any) -> Any:
    """A value as an annotation wants it, or ``_MISFIT``."""
    kind, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if kind in (Union, types.UnionType):
        found = (_fitted(value, option) for option in inside)
        return next((x for x in found if x is not _MISFIT), _MISFIT)
    if kind in (tuple, list, abc.Sequence):
        if isinstance(value, str) or not isinstance(value, abc.Sequence):
            return _MISFIT
        if kind is tuple and len(inside) != len(value):
            return _MISFIT
        hints = inside if kind is tuple else inside * len(value)
        items = [_fitted(x, each) for x, each in zip(value, hints)]
        if any(x is _MISFIT for x in items):
            return _MISFIT
        return items if isinstance(value, list) else tuple(items)
    allowed, _ = _PLAIN.get(hint, (kind or hint, ''))
    if not isinstance(value, allowed) or \
            hint in (int, float) and isinstance(value, bool):
        return _MISFIT
    # NumPy's numbers become Python's.
    return hint(value) if hint in (int, float, bool) else value


def _named(hint: Any) -> str:
    """An annotation in words."""
    kind, inside = get_origin(hint), get_args(hint)
    if kind in (Union, types.UnionType):
        *first, last = map(_named, inside)
        return f'{", ".join(first)} or {last}'
    if kind is tuple:
        return f'({", ".join(map(_named, inside))})'
    if kind in (list, abc.Sequence):
        return f'a sequence with {_named(*inside)} each'
    default = None, getattr(hint, '__name__', str(hint))
    return _PLAIN.get(kind or hint, default)[1]


def check_type(name: str, value: Any, hint: Any) -> Any:
    """Check a value against an annotation.

    A bool is no number, a string no sequence.

    Args:
        name (str): For the message.
        value: Any value.
        hint: Numbers, strings, dicts, classes; sequences, fixed tuples and
            unions of these.

    Returns:
        The value, NumPy's numbers as Python's.

    Raises:
        TypeError: It is something else.
    """
    found = _fitted(value, hint)
    if found is _MISFIT:
        raise TypeError(f'{name} must be {_named(hint)}, got {value!r:.200}')
    return found


def typed(init: Callable) -> Callable:
    """Let a constructor check its arguments against their annotations.

    Wrong types are told by name where they are given, not by whatever fails
    on them later.

    Args:
        init (callable): An ``__init__``.

    Returns:
        callable: It, with :func:`check_type` before.
    """
    signature, hints = inspect.signature(init), get_type_hints(init)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            # Python's own message names the class.
            return init(self, *args, **kwargs)
        for name, value in bound.arguments.items():
            kind = signature.parameters[name].kind
            if name in hints and kind not in (inspect.Parameter.VAR_POSITIONAL,
                                              inspect.Parameter.VAR_KEYWORD):
                bound.arguments[name] = check_type(
                    f'{type(self).__name__}: {name}', value, hints[name])
        init(*bound.args, **bound.kwargs)

    return checked


def check_rates(**rates: float) -> None:
    """Check probabilities of leaving something out.

    Raises:
        ValueError: If one is not in [0, 1).
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f'{name} must be in [0, 1), got {rate}')
