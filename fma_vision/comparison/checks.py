"""No layer is timed before it has given the right numbers."""

import copy
import inspect
from dataclasses import replace
from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from ..layers import (FMAttention1D, FMAttention2D, FMMformerAttention1D,
                      FMMformerAttention2D, FullAttention, FullAttention1D,
                      NeighborhoodAttention, WindowAttention)
from ..utils.complexity import attention_layer_macs, measure_complexity
from ..utils.precision import TOLERANCES, autocast, relative_error
from .specs import LayerSpec
from .subject import Setting, build_layer, random_tokens

# Of float64 sums in another order.
EXACT = 1e-9
# The name of the share of multiply-adds that a layer's formula leaves out.
MACS = 'MACs beyond the formula'
_FMA = (FMAttention1D, FMAttention2D)


class CheckError(Exception):
    """A layer's numbers are wrong."""


def check_grid(layer: nn.Module, ndim: int) -> Tuple[int, ...]:
    """Several levels of cells with ragged borders, yet cheap densely."""
    cell = getattr(layer, 'cell_size', 4 if ndim == 2 else 32)
    side = min(5 * cell + cell // 2 + 1, 45 if ndim == 2 else 1000)
    return (side, side - 2)[:ndim]


def window_grid(layer: nn.Module, ndim: int) -> Tuple[int, ...]:
    """A grid on which a query of a local layer sees every token; or ()."""
    if isinstance(layer, _FMA):
        side = 2 * layer.cell_size  # no level, so no far field
    elif isinstance(layer, (FullAttention, FullAttention1D)):
        side = 9
    elif isinstance(layer, WindowAttention):
        side = layer.window_size
    elif isinstance(layer, (NeighborhoodAttention, FMMformerAttention2D)):
        side = layer.kernel_size
    elif isinstance(layer, FMMformerAttention1D):
        side = layer.band + 1
    else:
        return ()
    return (side, max(side - 2, 1))[:ndim]


def _local(layer: nn.Module) -> nn.Module:
    """A copy whose near field has the weight 1, and nothing else any."""
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        if hasattr(layer, 'field_weights'):
            layer.field_weights.near.fill_(1)
            layer.field_weights.far.zero_()
        # Of windows; a layer of cells has a module here, or None.
        if isinstance(layer, WindowAttention):
            layer.relative_position_bias_table.zero_()
    return layer


def all_tokens(layer: nn.Module, x: Tensor, causal: bool) -> Tensor:
    """Softmax attention over all tokens, by its definition.

    Args:
        layer: Its ``qkv`` and ``proj`` are used.
        x: ``[B, *grid, dim]``.
        causal: Hide later tokens.
    """
    tokens = x.flatten(1, -2)
    qkv = layer.qkv(tokens).unflatten(-1, (3, layer.num_heads, -1))
    query, key, value = qkv.unbind(2)
    logits = torch.einsum('bihd,bjhd->bhij', query, key)
    logits = logits / query.shape[-1]**.5
    if causal:
        later = torch.ones_like(logits, dtype=torch.bool).triu(1)
        logits = logits.masked_fill(later, -torch.inf)
    out = torch.einsum('bhij,bjhd->bihd', logits.softmax(-1), value)
    return layer.proj(out.flatten(2)).view_as(x)


def _gradients(layer: nn.Module, x: Tensor) -> List[Tensor]:
    """The output, and the gradients of the input and the weights."""
    x = x.clone().requires_grad_()
    leaves = [x, *layer.parameters()]
    out = layer(x)
    found = torch.autograd.grad(out, leaves, x.detach(), allow_unused=True)
    return [
        out.detach(), *(torch.zeros_like(leaf) if g is None else g
                        for leaf, g in zip(leaves, found))
    ]


def _joined(tensors: List[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors])


class _Checks:
    """Collects errors; raises at the first that is too large."""

    def __init__(self) -> None:
        self.errors: Dict[str, float] = {}

    def add(self, name: str, error: float, allowed: float) -> None:
        if not error <= allowed:
            raise CheckError(f'{name}: off by {error:.1e} of the largest '
                             f'number, allowed is {allowed:.0e}')
        self.errors[name] = error


def check_layer(spec: LayerSpec, ndim: int,
                setting: Setting) -> Dict[str, float]:
    """Refuses a layer whose numbers are wrong, on small ragged grids.

    In float64: Fast Multipole Attention against its naive reference, with
    gradients; layers that see all of a small grid against softmax attention
    by its definition; tokens under a mask, later ones of a causal layer and
    other images must have no effect. Then the dtype to be timed against
    float64. The multiply-adds of the formula are compared with counted ones.

    Args:
        spec: The layer.
        ndim: Axes of the grid.
        setting: Its size; a batch of two is used.

    Returns:
        The largest error of each check, relative.

    Raises:
        CheckError: An error is not rounding.
        TypeError, ValueError: The layer does not build.
    """
    setting = replace(setting, batch=2)
    grid = check_grid(build_layer(spec, (8, ) * ndim, setting), ndim)
    layer = build_layer(spec, grid, setting)
    x = random_tokens(grid, setting)
    with autocast(setting.device, setting.dtype), torch.no_grad():
        narrow = layer(x)
    if narrow.shape != x.shape:
        raise CheckError(f'output is {list(narrow.shape)} instead of '
                         f'{list(x.shape)}')
    checks = _Checks()
    wide, x = copy.deepcopy(layer).double(), x.double()
    found = _gradients(wide, x)
    if not all(torch.isfinite(t).all() for t in found):
        raise CheckError('outputs or gradients are not finite')
    if isinstance(layer, _FMA):
        naive = copy.deepcopy(wide)
        naive.backend = 'naive'
        reference = _gradients(naive, x)
        checks.add('naive reference', relative_error(found[0], reference[0]),
                   EXACT)
        # Together, as some gradients are 0, such as of the keys' bias.
        checks.add('naive gradients',
                   relative_error(*map(_joined, (found[1:], reference[1:]))),
                   EXACT)
        found[0] = reference[0]
    checks.add(setting.dtype, relative_error(narrow, found[0]),
               TOLERANCES[setting.dtype])
    with torch.no_grad():
        _check_all_tokens(checks, spec, ndim, setting)
        _check_effects(checks, wide, x, found[0], setting.causal)
    _check_macs(checks, layer, x[:1].float())
    return checks.errors


def _check_macs(checks: _Checks, layer: nn.Module, x: Tensor) -> None:
    """Notes what the formula leaves out, such as the padding of windows.

    It may count more: a product with a filter is no matrix product.
    """
    formula = attention_layer_macs(layer, *x.shape[1:-1])
    if formula:
        counted = measure_complexity(layer, x).macs
        checks.add(MACS, max(counted / formula - 1, 0.), torch.inf)


def _check_all_tokens(checks: _Checks, spec: LayerSpec, ndim: int,
                      setting: Setting) -> None:
    layer = build_layer(spec, (8, ) * ndim, setting)
    grid = window_grid(layer, ndim)
    if not grid or getattr(layer, 'positions', None):
        return
    layer = _local(layer).double()
    x = random_tokens(grid, setting).double()
    reference = all_tokens(layer, x, setting.causal)
    checks.add('all tokens', relative_error(layer(x), reference), EXACT)


def _check_effects(checks: _Checks, layer: nn.Module, x: Tensor, out: Tensor,
                   causal: bool) -> None:
    alone = torch.cat([layer(part) for part in x.split(1)])
    checks.add('alone and in a batch', relative_error(alone, out), EXACT)
    if causal:
        half = x.shape[1] // 2
        later = torch.cat([x[:, :half], x[:, half:] + 1], 1)
        checks.add('later tokens',
                   relative_error(layer(later)[:, :half], out[:, :half]),
                   EXACT)
    if 'key_mask' in inspect.signature(layer.forward).parameters:
        mask = torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
        mask[:, 1::3] = False
        hidden, blank = (
            layer(x.masked_fill(~mask[..., None], fill), mask)
            for fill in (torch.nan, 0.))
        checks.add('masked tokens', relative_error(hidden, blank), EXACT)
