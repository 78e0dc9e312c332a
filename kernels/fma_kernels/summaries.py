"""Summaries of tokens: one op from tokens to all levels, packed.

The average, and the learned forms of section "Summaries" in the design.
These are linear in the tokens and in each weight, so a form and its
gradients are three products of one kind. Weights are stored relative to the
average, W = (1[own sub-cell] + delta) / size: with a mass of m real tokens,
a summary is (size / m) * sum_real W x = (sum_own x + sum_cell delta x) / m.
"""
from dataclasses import replace
from math import prod
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from . import checks
from .autograd import CoreOp, differentiable
from .geometry import Hierarchy
from .ops import geometry_of, pool
from .pooling import (accumulation_dtype, blocks_of, cells_to_lattice,
                      lattice_to_cells, pack, packed_mass, packed_size, spread,
                      subcell_sums, unpack)

# Tokens are worked on image by image, as many at once as have so many
# numbers: what is held beside inputs and results stays small.
SLAB_ELEMENTS = 2**24


def average_summaries(x: Tensor,
                      hierarchy: Hierarchy,
                      key_mask: Optional[Tensor] = None) -> Tensor:
    """Means over the real tokens of every sub-cell.

    Args:
        x: ``[B, *grid, heads, head_dim]``.
        hierarchy: its cells, levels and rank.
        key_mask: bool ``[B, *grid]``, True = real. Masked tokens may hold
            NaN, and get a zero gradient.

    Returns:
        Packed ``[B, M_total, heads, head_dim]`` in the dtype of ``x``, level
        after level; 0 where no token is real.
    """
    if not hierarchy.num_levels:
        return x.new_zeros((x.shape[0], 0, *x.shape[-2:]))
    request = checks.Request.of(x)
    backend = next(
        name for name in checks.AUTO if checks.refusal(name, request) is None)
    return pool(x, key_mask, hierarchy.cell_size, hierarchy.num_levels,
                hierarchy.rank, backend)


def learned_summaries(form: str,
                      x: Tensor,
                      weights: Sequence[Tensor],
                      hierarchy: Hierarchy,
                      key_mask: Optional[Tensor] = None) -> Tensor:
    """Learned summaries (arXiv 2310.11960, section 3.2) of every level.

    Sums are taken in float32 (float64 for float64), autocast or not.
    Differentiable once, not twice.

    Args:
        form: ``'grouped_conv'``, ``'conv'`` or ``'hierarchical'``.
        x: ``[B, *grid, heads, head_dim]``.
        weights: what is added to the weights of the average.
            ``'grouped_conv'``: per level ``[rank ** d, width ** d,
            head_dim]``, tokens of a cell in row-major order; ``'conv'``: per
            level ``[rank ** d, width ** d, head_dim out, head_dim in]``.
            ``'hierarchical'``: the first as ``'grouped_conv'``, then the
            steps upwards, ``[2 ** d, head_dim out, head_dim in]`` for
            :func:`join`, of which the last serves all levels above.
            Those of levels that are not there are not used.
        hierarchy, key_mask: as :func:`average_summaries`.

    Returns:
        Packed ``[B, M_total, heads, head_dim]`` in the dtype of ``x``; 0
        where no token is real.

    Raises:
        ValueError: if there are weights for fewer levels.
    """
    levels = hierarchy.num_levels
    least = min(levels, 2) if form == 'hierarchical' else levels
    if len(weights) < least:
        raise ValueError(f'weights of {form!r} must be at least {least} for '
                         f'{levels} levels, got {len(weights)}')
    # One tensor: an op with a gradient takes no lists.
    flat = [weight.flatten() for weight in weights[:levels]]
    return summaries(x, key_mask,
                     torch.cat(flat) if flat else x.new_zeros(0), form,
                     hierarchy.cell_size, hierarchy.num_levels, hierarchy.rank)


# -------------------------------------------------------- tokens to a cell
# Axes of one product: image, per axis cell and place in it, part, head.
_TOKENS = {1: 'bxuh', 2: 'bxuyvh'}
_TAPS = {1: 'au', 2: 'auv'}
_CELLS = {1: 'bxah', 2: 'bxyah'}


class _Cells:
    """Weighted sums over the cells of one level, and their gradients.

    Args:
        x: ``[B, *grid, heads, head_dim]``, 0 where masked.
        delta: ``[rank ** d, width ** d, head_dim]``, channel by channel, or
            with a matrix ``[..., head_dim out, head_dim in]`` per token.
        sizes: cells per axis.
        width: side of a cell.
    """

    def __init__(self, x: Tensor, delta: Tensor, sizes: Tuple[int, ...],
                 width: int) -> None:
        self.ndim = len(sizes)
        self.grid = x.shape[1:1 + self.ndim]
        # A cell that is wider than the grid needs no padding.
        self.widths = tuple(min(width, size) for size in self.grid)
        # [B, size0, width0, (size1, width1), heads, head_dim]
        self.blocks = blocks_of(x, sizes, self.widths)
        mixed = delta.ndim == 4
        self.tokens = _TOKENS[self.ndim] + ('i' if mixed else 'd')
        self.taps = _TAPS[self.ndim] + ('oi' if mixed else 'd')
        self.cells = _CELLS[self.ndim] + ('o' if mixed else 'd')
        self.shape = delta.shape[0], *(width, ) * self.ndim, *delta.shape[2:]
        # [rank ** d, width0, (width1), channels]
        self.delta = self._inside(delta.reshape(self.shape).to(x.dtype))
        # For one summary a channel, products of tokens where they lie beat a
        # transposed copy.
        self.plain = not mixed and delta.shape[0] == 1

    def _inside(self, delta: Tensor) -> Tensor:
        """The taps that the grid has tokens for: a view."""
        for axis, width in enumerate(self.widths, 1):
            delta = delta.narrow(axis, 0, width)
        return delta

    def sums(self) -> Tensor:
        """``[B, *sizes, rank ** d, heads, head_dim]``."""
        return self._product(self.tokens, self.blocks, self.taps, self.delta,
                             self.cells)

    def add_token_grads(self, grad: Tensor, total: Tensor) -> None:
        """Adds to ``[B, *grid, heads, head_dim]``, from that of the sums."""
        found = self._product(self.cells, grad, self.taps, self.delta,
                              self.tokens)
        for axis, size in enumerate(self.grid, 1):
            # [..., cells, width, ...] -> [..., cells * width, ...]
            found = found.flatten(axis, axis + 1).narrow(axis, 0, size)
        total += found

    def tap_grads(self, grad: Tensor) -> Tensor:
        """``[rank ** d, width ** d, channels]``, from that of the sums."""
        found = grad.new_zeros(self.shape)
        self._inside(found).copy_(
            self._product(self.cells, grad, self.tokens, self.blocks,
                          self.taps))
        return found.flatten(1, self.ndim)

    def _product(self, one: str, x: Tensor, other: str, y: Tensor,
                 result: str) -> Tensor:
        if not self.plain:
            return torch.einsum(f'{one},{other}->{result}', x, y)
        axes = self.tokens.replace('h', 'ah')  # the order of the three
        z = _aligned(x, one, axes) * _aligned(y, other, axes)
        # One axis at a time: several at once are slow on a CPU.
        for axis in reversed(range(len(axes))):
            if axes[axis] not in result:
                z = z.sum(axis) if z.shape[axis] > 1 else z.squeeze(axis)
        order = [name for name in axes if name in result]
        return z.permute([order.index(name) for name in result])


def _aligned(x: Tensor, names: str, axes: str) -> Tensor:
    """Axes ``names`` in the order of ``axes``; those it lacks have size 1."""
    x = x.permute([names.index(name) for name in axes if name in names])
    for axis, name in enumerate(axes):
        if name not in names:
            x = x.unsqueeze(axis)
    return x


def _direct(x: Tensor, mass: Tensor, weights: Sequence[Tensor],
            tree: Hierarchy) -> Tensor:
    """Every level straight from the tokens."""
    levels = [
        total + _Cells(x, delta, sizes, width).sums()
        for total, delta, sizes, width in zip(
            subcell_sums(x, tree), weights, tree.grids, tree.widths)
    ]
    return pack(levels, tree.ndim) / mass.clamp(min=1)[..., None, None]


def _direct_grads(grad: Tensor, x: Tensor, mass: Tensor,
                  weights: Sequence[Tensor], out: Optional[Tensor],
                  tree: Hierarchy) -> List[Tensor]:
    total = spread(grad, tree, None, mass)  # of the average
    grad = grad / mass.clamp(min=1)[..., None, None]
    found = [total]
    for level, delta, sizes, width in zip(
            unpack(grad, tree), weights, tree.grids, tree.widths):
        cells = _Cells(x, delta, sizes, width)
        cells.add_token_grads(level, total)
        found.append(cells.tap_grads(level))
    return found


# ------------------------------------------------------ children to parent
def join(children: Tensor, mass: Tensor, delta: Tensor) -> Tensor:
    """The multipole-to-multipole step of the hierarchical form.

    parent = sum_c (mass_c / mass) * (1 + delta_c) child_c: with ``delta`` 0
    the mean over all real tokens. Plain differentiable PyTorch.

    Args:
        children: ``[..., 2 ** d, heads, head_dim]``, in row-major order.
        mass: their real tokens ``[..., 2 ** d]``, broadcastable.
        delta: ``[2 ** d, head_dim out, head_dim in]``.

    Returns:
        Parents ``[..., heads, head_dim]`` in the dtype of ``children``; 0
        where all masses are 0.
    """
    weighted = children * _shares(mass, children.dtype)
    mixed = torch.einsum('...chi,coi->...ho', weighted,
                         delta.to(children.dtype))
    # Under autocast the product is in half precision, the sum is not.
    return weighted.sum(-3) + mixed.to(children.dtype)


def _join_grads(grad: Tensor, children: Tensor, mass: Tensor,
                delta: Tensor) -> Tuple[Tensor, Tensor]:
    """Of children and delta, from that of the parents."""
    shares = _shares(mass, children.dtype)
    mixed = torch.einsum('...ho,coi->...chi', grad, delta.to(grad.dtype))
    return (grad.unsqueeze(-3) + mixed) * shares, torch.einsum(
        'nho,nchi->coi', grad.flatten(0, -3),
        (children * shares).flatten(0, -4))


def _shares(mass: Tensor, dtype: torch.dtype) -> Tensor:
    """Of the mass of all children, ``[..., 2 ** d, 1, 1]``."""
    mass = mass.to(dtype)
    return (mass / mass.sum(-1, keepdim=True).clamp(min=1))[..., None, None]


def _hierarchical(x: Tensor, mass: Tensor, weights: Sequence[Tensor],
                  tree: Hierarchy) -> Tensor:
    """Tokens to leaf cells, then children to parents, level by level."""
    leaves = replace(tree, num_levels=1)
    level = _direct(x, mass[:, :leaves.num_summaries], weights[:1], leaves)
    lattice, = _lattices(level, leaves)
    found = [level]
    for number, masses in enumerate(_family_masses(mass, tree), 1):
        children = lattice_to_cells(lattice, masses.shape[1:-1], 2)
        lattice = join(children, masses, _step(weights, number))
        cells = lattice_to_cells(lattice, tree.grids[number], tree.rank)
        found.append(cells.flatten(1, 1 + tree.ndim))
    return torch.cat(found, dim=1)


def _hierarchical_grads(grad: Tensor, x: Tensor, mass: Tensor,
                        weights: Sequence[Tensor], out: Tensor,
                        tree: Hierarchy) -> List[Tensor]:
    grads, lattices = _lattices(grad, tree), _lattices(out, tree)
    found = [torch.zeros_like(delta, dtype=grad.dtype) for delta in weights]
    masses = _family_masses(mass, tree)
    # From the top down: children get what reaches their parents, too.
    for number in reversed(range(1, tree.num_levels)):
        own = masses[number - 1]
        children = lattice_to_cells(lattices[number - 1], own.shape[1:-1], 2)
        handed, step = _join_grads(grads[number], children, own,
                                   _step(weights, number))
        _step(found, number).add_(step)
        handed = cells_to_lattice(handed, 2, tree.ndim)
        for axis, size in enumerate(grads[number - 1].shape[1:-2], 1):
            handed = handed.narrow(axis, 0, size)
        grads[number - 1] = grads[number - 1] + handed
    leaves = replace(tree, num_levels=1)
    cells = lattice_to_cells(grads[0], tree.grids[0], tree.rank)
    tokens, found[0] = _direct_grads(
        cells.flatten(1, 1 + tree.ndim), x, mass[:, :leaves.num_summaries],
        weights[:1], None, leaves)
    return [tokens, *found]


def _step(weights: Sequence[Tensor], level: int) -> Tensor:
    """From a level upwards; the last serves all above."""
    return weights[min(level, len(weights) - 1)]


def _lattices(packed: Tensor, tree: Hierarchy) -> List[Tensor]:
    """Per level ``[B, *(grid_l * rank), ...]``."""
    return [
        cells_to_lattice(level, tree.rank, tree.ndim)
        for level in unpack(packed, tree)
    ]


def _family_masses(mass: Tensor, tree: Hierarchy) -> List[Tensor]:
    """Of the children of each sub-cell, from level 2 on: ``[B or 1,
    *(grid_l * rank), 2 ** d]``."""
    lattices = _lattices(mass, tree)
    return [
        lattice_to_cells(children, parents.shape[1:], 2)
        for children, parents in zip(lattices, lattices[1:])
    ]


# ---------------------------------------------------------------- core op
_FORMS = {
    'grouped_conv': (_direct, _direct_grads),
    'conv': (_direct, _direct_grads),
    'hierarchical': (_hierarchical, _hierarchical_grads),
}


def _split(weights: Tensor, form: str, tree: Hierarchy,
           head_dim: int) -> List[Tensor]:
    """Of a flat tensor, the weights of :func:`learned_summaries`."""
    mixing = (head_dim, ) * (1 if form == 'grouped_conv' else 2)
    shapes = [(tree.num_parts, width**tree.ndim, *mixing)
              for width in tree.widths]
    if form == 'hierarchical' and shapes:
        cell = tree.num_parts, tree.cell_size**tree.ndim, head_dim
        step = 2**tree.ndim, head_dim, head_dim
        steps = (weights.numel() - prod(cell)) // prod(step)
        shapes = [cell] + [step] * steps
    parts = weights.split([prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes)]


def _slabs(
        x: Tensor, key_mask: Optional[Tensor],
        tree: Hierarchy) -> Iterator[Tuple[slice, Optional[Tensor], Tensor]]:
    """Images, which of their tokens are masked, and masses."""
    if not x.numel() or not tree.num_levels:
        return
    step = max(SLAB_ELEMENTS // x[0].numel(), 1)
    for first in range(0, x.shape[0], step):
        images = slice(first, first + step)
        real = None if key_mask is None else key_mask[images]
        yield (images, None if real is None else ~real,
               packed_mass(tree, real, x.device))


def _present(x: Tensor, absent: Optional[Tensor] = None) -> Tensor:
    """``[B, ..., heads, head_dim]`` to compute with, 0 where absent.

    Masked tokens and summaries of mass 0 are, as inputs and as results:
    they may hold NaN and have neither an effect nor a gradient.
    """
    if absent is not None:
        x = x.masked_fill(absent[..., None, None], 0)
    return x.to(accumulation_dtype(x.dtype))


def _empty(x: Tensor, key_mask: Optional[Tensor], weights: Tensor, form: str,
           *sizes) -> Tensor:
    total = packed_size(x.shape[1:-2], *sizes)
    return x.new_empty((x.shape[0], total, *x.shape[-2:]))


def _run(x: Tensor, key_mask: Optional[Tensor], weights: Tensor, form: str,
         *sizes) -> Tensor:
    """:func:`learned_summaries` by its flat schema."""
    tree = geometry_of(x.shape[1:-2], *sizes, False)
    deltas = _split(weights, form, tree, x.shape[-1])
    forward, _ = _FORMS[form]
    found = []
    with torch.autocast(x.device.type, enabled=False):
        for images, masked, mass in _slabs(x, key_mask, tree):
            out = forward(_present(x[images], masked), mass, deltas, tree)
            found.append(_present(out, mass == 0).to(x.dtype))
    return torch.cat(found) if found else _empty(x, None, None, form, *sizes)


def _run_backward(grad: Tensor, x: Tensor, key_mask: Optional[Tensor],
                  weights: Tensor, out: Optional[Tensor], form: str,
                  *sizes) -> List[Tensor]:
    """Gradients of tokens and weights; only ``'hierarchical'`` has ``out``."""
    tree = geometry_of(x.shape[1:-2], *sizes, False)
    deltas = _split(weights, form, tree, x.shape[-1])
    _, backward = _FORMS[form]
    tokens = x.new_zeros(x.shape)
    total = torch.zeros_like(weights, dtype=accumulation_dtype(weights.dtype))
    with torch.autocast(x.device.type, enabled=False):
        for images, masked, mass in _slabs(x, key_mask, tree):
            found = backward(
                _present(grad[images],
                         mass == 0), _present(x[images], masked), mass, deltas,
                None if out is None else _present(out[images]), tree)
            tokens[images] = _present(found[0], masked).to(x.dtype)
            total += torch.cat([delta.flatten() for delta in found[1:]])
    return [tokens, total.to(weights.dtype)]


_SCHEMA = ('Tensor x, Tensor? key_mask, Tensor weights, {}str form, '
           'SymInt cell_size, SymInt num_levels, SymInt rank')

summaries = differentiable(
    CoreOp('summaries', f'({_SCHEMA.format("")}) -> Tensor', _run, _empty),
    CoreOp(
        'summaries_backward',
        f'(Tensor grad, {_SCHEMA.format("Tensor? out, ")}) -> Tensor[]',
        _run_backward, lambda grad, x, key_mask, weights, *_:
        [y.new_empty(y.shape) for y in (x, weights)]),
    saved=lambda inputs, outputs:
    (*inputs[:3], outputs[0]
     if inputs[3] == 'hierarchical' else None, *inputs[3:]))
