"""The backends of the core ops: one module (or package) each.

A backend has four functions on packed tensors, as :mod:`fma_kernels.ops`
calls them: ``forward``, ``backward``, ``pool`` and ``pool_backward``; for
pooled queries four more, as :mod:`fma_kernels.pooled` does. Adding one means
such a module and a ``refuse_*`` in ``checks.py``.
"""
from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """The backend's module, imported when it is first needed.

    So that Triton need not be installed where nothing runs on a GPU.
    """
    return import_module(f'.{name}', __name__)
