"""The backends of the core op, best first.

Adding one means a module with ``forward`` and ``backward`` on packed
tensors, a ``refuse_*`` in ``checks.py``, and a line here.
"""
from typing import Callable, NamedTuple

from . import torch as _torch


class Backend(NamedTuple):
    """``forward`` and ``backward`` as :mod:`fma_kernels.ops` calls them."""
    forward: Callable
    backward: Callable


BACKENDS = {'torch': Backend(_torch.forward, _torch.backward)}
