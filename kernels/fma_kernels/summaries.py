"""Summaries of tokens: one op from tokens to all levels, packed.

The average, and the learned forms of section "Summaries" in the design.
These are linear in the tokens and in each weight, so a form and its
gradients are three products of one kind. Weights are stored relative to the
average, W = (1[own sub-cell] + delta) / size: with a mass of m real tokens,
a summary is (size / m) * sum_real W x = (sum_own x + sum_cell delta x) / m.
"""
from dataclasses import replace
from math import prod
from typing import Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from . import checks
from .autograd import CoreOp, differentiable
from .backends import native
from .geometry import Hierarchy
from .ops import geometry_of, pool
from .pooling import (accumulation_dtype, blocks_of, cells_to_lattice,
                      lattice_to_cells, pack, packed_mass, packed_size, repeat,
                      shape_of, subcell_sums, unpack)

# As many images at once as have so many numbers: what is held beside inputs
# and results stays small, on a CPU in its caches.
SLAB_ELEMENTS = {'cpu': 2**20, 'cuda': 2**23}


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


# -------------------------------------------------------- tokens to cells
def _cut(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """The first of ``[B, *grid, ...]``: a view."""
    for axis, size in enumerate(sizes, 1):
        x = x.narrow(axis, 0, size)
    return x


def _own(tree: Hierarchy, level: int, sizes: Sequence[int],
         like: Tensor) -> Tensor:
    """1 for a token of the own sub-cell: ``[rank ** d, *sizes]``."""
    own = torch.eye(tree.num_parts, dtype=like.dtype, device=like.device)
    # [rank ** d, rank, (rank)] -> [rank ** d, width, (width)]
    own = own.unflatten(1, (tree.rank, ) * tree.ndim)
    return repeat(own, tree.widths[level - 1] // tree.rank, sizes)


class _Plain:
    """Weighted sums over the cells of all levels, and their gradients.

    For one summary a cell, channel by channel: products of tokens where they
    lie beat a copy in order.

    Args:
        x: ``[B, *grid, heads, head_dim]``, 0 where masked.
        weights: per level ``[1, width ** d, head_dim]``.
        tree: the cells.
    """

    def __init__(self, x: Tensor, weights: Sequence[Tensor],
                 tree: Hierarchy) -> None:
        self.x, self.weights, self.tree = x, weights, tree

    def _widths(self, level: int) -> List[int]:
        """Sides of a cell, inside the grid: then it needs no padding."""
        width = self.tree.widths[level - 1]
        return [min(width, size) for size in self.tree.shape]

    def _blocks(self, level: int) -> Tensor:
        """``[B, size0, width0, (size1, width1), heads, head_dim]``."""
        return blocks_of(self.x, self.tree.grids[level - 1],
                         self._widths(level))

    def _taps(self, level: int) -> Tensor:
        """``[width0, 1, (width1, 1), head_dim]``."""
        whole = (self.tree.widths[level - 1], ) * self.tree.ndim
        taps = self.weights[level - 1].to(self.x.dtype).unflatten(1, whole)
        taps = _cut(taps, self._widths(level))[0]
        for axis in range(self.tree.ndim):
            taps = taps.unsqueeze(2 * axis + 1)
        return taps

    def sums(self, level: int) -> Tensor:
        """``[B, *grid_l, 1, heads, head_dim]``."""
        found = self._blocks(level) * self._taps(level)
        # One axis at a time: several at once are slow on a CPU.
        for axis in reversed(range(self.tree.ndim)):
            found = found.sum(2 + 2 * axis)
        return found.unsqueeze(-3)

    def grads(self, grads: Sequence[Tensor]) -> List[Tensor]:
        """Of tokens, those of averages among them, and of each weight."""
        total, found = None, []
        for level, grad in enumerate(grads, 1):
            grad = grad.squeeze(-3)
            for axis in range(self.tree.ndim):
                grad = grad.unsqueeze(2 + 2 * axis)
            part = grad * (self._taps(level) + 1)
            for axis in range(1, 1 + self.tree.ndim):
                part = part.flatten(axis, axis + 1)
            part = _cut(part, self.tree.shape)
            total = part if total is None else total.add_(part)
            found.append(self._tap_grads(level, grad * self._blocks(level)))
        return [total, *found]

    def _tap_grads(self, level: int, products: Tensor) -> Tensor:
        """``[1, width ** d, head_dim]``, summed over cells and heads."""
        products = products.sum(-2)
        for axis in reversed(range(self.tree.ndim)):
            products = products.sum(1 + 2 * axis)
        whole = (self.tree.widths[level - 1], ) * self.tree.ndim
        found = products.new_zeros((1, *whole, products.shape[-1]))
        _cut(found, self._widths(level)).copy_(products.sum(0))
        return found.flatten(1, self.tree.ndim)


# How an axis is cut: into top cells, these by two level by level, and leaf
# cells into tokens.
_Factors = List[List[int]]


def _factors(tree: Hierarchy) -> _Factors:
    """By axis. A cell as wide as the grid is its own parent: no padding."""
    found = []
    for axis, size in enumerate(tree.shape):
        *lower, top = [grid[axis] for grid in tree.grids]
        halves = [2 if cells > 1 else 1 for cells in reversed(lower)]
        found.append([top, *halves, min(tree.cell_size, size)])
    return found


def _to_groups(x: Tensor, factors: _Factors, mixed: bool) -> Tensor:
    """Puts each cell of each level in one piece.

    Args:
        x: ``[B, *grid, heads, head_dim]``, zero-padded here.
        factors: how the grid is cut.
        mixed: whether channels are summed over, too.

    Returns:
        ``[1, B * heads, n, head_dim]`` if they are, else ``[head_dim, B *
        heads, n, 1]``: groups, rows, tokens and channels.
    """
    ndim, depth = len(factors), len(factors[0])
    batch, heads, dim = x.shape[0], *x.shape[-2:]
    x = blocks_of(x, (1, ) * ndim, tuple(prod(cuts) for cuts in factors))
    # [B, top0, 2, ..., leaf0, (top1, 2, ..., leaf1), heads, head_dim]
    x = x.reshape(batch, *(n for cuts in factors for n in cuts), heads, dim)
    places = [
        1 + axis * depth + cut for cut in range(depth) for axis in range(ndim)
    ]
    if mixed:
        x = x.permute(0, x.ndim - 2, *places, x.ndim - 1)
        return x.reshape(1, batch * heads, -1, dim).contiguous()
    x = x.permute(x.ndim - 1, 0, x.ndim - 2, *places)
    return x.reshape(dim, batch * heads, -1, 1).contiguous()


def _from_groups(x: Tensor, factors: _Factors, shape: Sequence[int],
                 mixed: bool) -> Tensor:
    """The inverse, cut to ``shape = [B, *grid, heads, head_dim]``."""
    ndim, depth = len(factors), len(factors[0])
    batch, heads, dim = shape[0], *shape[-2:]
    nested = [cuts[cut] for cut in range(depth) for cuts in factors]
    first = 2 if mixed else 3
    places = [
        first + cut * ndim + axis for axis in range(ndim)
        for cut in range(depth)
    ]
    if mixed:
        x = x.reshape(batch, heads, *nested, dim)
        x = x.permute(0, *places, 1, x.ndim - 1)
    else:
        x = x.reshape(dim, batch, heads, *nested)
        x = x.permute(1, *places, 2, 0)
    x = x.reshape(batch, *(prod(cuts) for cuts in factors), heads, dim)
    return _cut(x, shape[1:1 + ndim])


class _Grouped:
    """The same for any weights.

    A grouped convolution with one group (``'conv'``) or as many as there
    are channels. Tokens are brought in order once: the cells of each level
    are then the rows of a view.

    Args:
        x: ``[B, *grid, heads, head_dim]``, 0 where masked.
        weights: per level ``[rank ** d, width ** d, head_dim]``, or with a
            matrix ``[..., head_dim out, head_dim in]`` per token.
        tree: the cells.
    """

    def __init__(self, x: Tensor, weights: Sequence[Tensor],
                 tree: Hierarchy) -> None:
        self.tree, self.weights, self.dtype = tree, weights, x.dtype
        self.shape = x.shape
        self.mixed = weights[0].ndim == 4
        self.batch, self.heads, self.dim = x.shape[0], *x.shape[-2:]
        self.factors = _factors(tree)
        # [groups, B * heads, n, channels]
        self.tokens = _to_groups(x, self.factors, self.mixed)

    def _rows(self, tokens: Tensor, level: int) -> Tensor:
        """``[groups, B * heads * cells, width ** d * channels]``: a view."""
        taps = prod(cuts[n] for cuts in self.factors for n in range(-level, 0))
        groups, _, _, channels = tokens.shape
        return tokens.view(groups, -1, taps * channels)

    def _taps(self, level: int) -> Tuple[_Factors, List[int], List[int]]:
        """How a cell is cut; shapes of weights with tokens, and without.

        ``[rank ** d, width, (width), out, in]``, of those that the grid has
        tokens for.
        """
        cuts = [cuts[-level:] for cuts in self.factors]
        weight, ndim = self.weights[level - 1], self.tree.ndim
        tail = weight.shape[2:] if self.mixed else (1, self.dim)
        whole = (self.tree.widths[level - 1], ) * ndim
        inside = [prod(cut) for cut in cuts]
        return (cuts, [len(weight), *whole,
                       *tail], [len(weight), *inside, *tail])

    def _matrix(self, level: int, average: bool = False) -> Tensor:
        """``[groups, rank ** d * out, width ** d * channels]``."""
        cuts, whole, inside = self._taps(level)
        weight = self.weights[level - 1].to(self.dtype).reshape(whole)
        weight = _cut(weight, inside[1:-2])
        if average:
            own = _own(self.tree, level, inside[1:-2], weight)[..., None, None]
            ones = weight.new_ones(1, self.dim)
            weight = weight + own * (
                ones.diag_embed()[0] if self.mixed else ones)
        return _to_groups(weight, cuts, self.mixed).flatten(2)

    def sums(self, level: int) -> Tensor:
        """``[B, *grid_l, rank ** d, heads, head_dim]``."""
        parts, sizes = self.tree.num_parts, self.tree.grids[level - 1]
        matrix = self._matrix(level).transpose(1, 2)
        found = self._rows(self.tokens, level) @ matrix
        # [groups, B * heads, cells, rank ** d, out], parts as heads do
        found = found.unflatten(1, (self.batch * self.heads, -1))
        found = found.unflatten(-1, (parts, -1)).transpose(2, 3)
        shape = self.batch, *sizes, self.heads * parts, self.dim
        found = _from_groups(found, [cuts[:-level] for cuts in self.factors],
                             shape, self.mixed)
        return found.unflatten(-2, (self.heads, parts)).transpose(-3, -2)

    def grads(self, grads: Sequence[Tensor]) -> List[Tensor]:
        """Of tokens, those of averages among them, and of each weight."""
        total, found = None, []
        for level, grad in enumerate(grads, 1):
            # [B, *grid_l, heads * rank ** d, head_dim]
            grad = grad.transpose(-3, -2).flatten(-3, -2)
            grad = _to_groups(grad, [cuts[:-level] for cuts in self.factors],
                              self.mixed)
            grad = grad.unflatten(1, (self.batch * self.heads, -1))
            # [groups, B * heads * cells, rank ** d * out]
            grad = grad.transpose(2, 3).flatten(3).flatten(1, 2)
            matrix = self._matrix(level, average=True)
            if total is None:
                total = torch.bmm(grad, matrix).view(self.tokens.shape)
            else:
                self._rows(total, level).baddbmm_(grad, matrix)
            found.append(self._tap_grads(level, grad))
        tokens = _from_groups(total, self.factors, self.shape, self.mixed)
        return [tokens, *found]

    def _tap_grads(self, level: int, grad: Tensor) -> Tensor:
        """Shaped as the weights of a level."""
        cuts, whole, inside = self._taps(level)
        # [groups, rank ** d * out, width ** d * channels]
        found = grad.transpose(1, 2) @ self._rows(self.tokens, level)
        weight = grad.new_zeros(whole)
        _cut(weight, inside[1:-2]).copy_(
            _from_groups(found, cuts, inside, self.mixed))
        return weight.view(self.weights[level - 1].shape)


def _products(x: Tensor, weights: Sequence[Tensor],
              tree: Hierarchy) -> Union[_Plain, _Grouped]:
    plain = tree.num_parts == 1 and weights[0].ndim == 3
    return (_Plain if plain else _Grouped)(x, weights, tree)


def _direct(x: Tensor, mass: Tensor, weights: Sequence[Tensor],
            tree: Hierarchy) -> Tensor:
    """Every level straight from the tokens."""
    shares = mass.clamp(min=1)[..., None, None]
    if weights[0].ndim == 3 and native.usable(
            x) and not torch.onnx.is_in_onnx_export():
        levels = []
        for level, weight in enumerate(weights[:tree.num_levels], 1):
            whole = (tree.widths[level - 1], ) * tree.ndim
            own = _own(tree, level, whole, weight).flatten(1)[..., None]
            levels.append(native.weigh(x, weight + own, tree, level))
        return pack(levels, tree.ndim).div_(shares)
    products = _products(x, weights, tree)
    levels = [
        total + products.sums(level)
        for level, total in enumerate(subcell_sums(x, tree), 1)
    ]
    return pack(levels, tree.ndim) / shares


def _direct_grads(grad: Tensor, x: Tensor, mass: Tensor,
                  weights: Sequence[Tensor], out: Optional[Tensor],
                  tree: Hierarchy) -> List[Tensor]:
    shares = grad / mass.clamp(min=1)[..., None, None]
    return _products(x, weights, tree).grads(unpack(shares, tree))


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
        children = lattice_to_cells(lattice, shape_of(masses)[1:-1], 2)
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
        lattice_to_cells(children,
                         shape_of(parents)[1:], 2)
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
        x: Tensor, key_mask: Optional[Tensor], weights: Tensor,
        tree: Hierarchy) -> Iterator[Tuple[slice, Optional[Tensor], Tensor]]:
    """Images, which of their tokens are masked, and masses."""
    if not x.numel() or not tree.num_levels:
        return
    # Weights are brought in order for each slab: not to dominate.
    budget = max(SLAB_ELEMENTS.get(x.device.type, 2**20), 4 * weights.numel())
    step = max(budget // x[0].numel(), 1)
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


def _joined(slabs: List[Tensor]) -> Tensor:
    return slabs[0].contiguous() if len(slabs) == 1 else torch.cat(slabs)


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
        for images, masked, mass in _slabs(x, key_mask, weights, tree):
            out = forward(_present(x[images], masked), mass, deltas, tree)
            found.append(_present(out, mass == 0).to(x.dtype))
    return _joined(found) if found else _empty(x, None, None, form, *sizes)


def _run_backward(grad: Tensor, x: Tensor, key_mask: Optional[Tensor],
                  weights: Tensor, out: Optional[Tensor], form: str,
                  *sizes) -> List[Tensor]:
    """Gradients of tokens and weights; only ``'hierarchical'`` has ``out``."""
    tree = geometry_of(x.shape[1:-2], *sizes, False)
    deltas = _split(weights, form, tree, x.shape[-1])
    _, backward = _FORMS[form]
    tokens = []
    total = torch.zeros_like(weights, dtype=accumulation_dtype(weights.dtype))
    with torch.autocast(x.device.type, enabled=False):
        for images, masked, mass in _slabs(x, key_mask, weights, tree):
            found = backward(
                _present(grad[images],
                         mass == 0), _present(x[images], masked), mass, deltas,
                None if out is None else _present(out[images]), tree)
            tokens.append(_present(found[0], masked).to(x.dtype))
            total += torch.cat([delta.flatten() for delta in found[1:]])
    # Nothing to sum is left of no image or no level.
    return [
        _joined(tokens) if tokens else x.new_zeros(x.shape),
        total.to(weights.dtype)
    ]


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
