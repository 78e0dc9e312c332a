"""The backends of the core ops: one module (or package) each.

A backend has four functions on packed tensors::

    forward(inputs, hierarchy, options) -> out, lse
    backward(grad_out, grad_lse, inputs, out, lse, hierarchy, options)
        -> gradients of query, key, value, key_summaries, value_summaries,
        near_bias and far_bias (None for a bias that is None)
    pool(x, key_mask, hierarchy) -> packed averages
    pool_backward(grad, key_mask, hierarchy, total=None)
        -> gradient of the tokens; added to ``total`` in place, if given

and four more for pooled queries, of which ``near_*`` take a hierarchy of one
level::

    far_forward(query, key, value, key_mask, seed, hierarchy, options)
        -> out, lse
    far_backward(grad_out, grad_lse, query, key, value, key_mask, seed, out,
                 lse, hierarchy, options) -> three gradients
    near_forward(query, key, value, far_out, far_lse, key_mask, seed,
                 hierarchy, options) -> out, lse
    near_backward(grad_out, grad_lse, query, key, value, far_out, far_lse,
                  key_mask, seed, out, lse, hierarchy, options)
        -> five gradients

``inputs`` are :class:`fma_kernels.options.Inputs` with all summaries,
``hierarchy`` is trimmed, no batch is empty. Adding a backend means such a
module and a ``refuse_*`` in ``checks.py``.
"""
from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """The backend's module, imported when it is first needed.

    So that Triton need not be installed where nothing runs on a GPU.
    """
    return import_module(f'.{name}', __name__)
