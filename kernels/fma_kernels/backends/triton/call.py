"""What all kernels of one call share: shapes, strides, constants."""
from contextlib import nullcontext
from functools import cached_property, lru_cache
from math import prod
from typing import Dict, Optional, Tuple

import torch
import triton
from torch import Tensor

from ...geometry import Hierarchy
from ...options import Options
from ...pooling import packed_mass
from . import configs
from .blocks import product
from .plan import level_table, plan

# Whether Triton runs kernels in Python (``TRITON_INTERPRET=1``).
INTERPRETED = not isinstance(product, triton.runtime.JITFunction)


def on_device(x: Tensor):
    """Kernels launch on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def unit_rows(x: Tensor) -> Tensor:
    """``x`` with a contiguous last axis."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(name: str, x: Tensor) -> Dict[str, int]:
    """Strides of ``[B, *grid, heads, D]``; a sequence is a single row."""
    batch, *grid, head, _ = x.stride()
    y, column = (0, *grid)[-2:]
    return {
        f'{name}_batch': batch,
        f'{name}_y': y,
        f'{name}_x': column,
        f'{name}_head': head
    }


def mask_arguments(key_mask: Optional[Tensor], spare: Tensor) -> dict:
    """The mask ``[B, *grid]`` and its strides; ``spare`` if there is none."""
    if key_mask is None:
        return dict(
            key_mask=spare, mask_batch=0, mask_y=0, mask_x=0, MASKED=False)
    batch, *grid = key_mask.stride()
    y, column = (0, *grid)[-2:]
    return dict(
        key_mask=key_mask,
        mask_batch=batch,
        mask_y=y,
        mask_x=column,
        MASKED=True)


def run(kernel, programs: int, config: configs.Config,
        arguments: dict) -> None:
    """Launches with a default configuration, or the best one around it."""
    if 'num_stages' in config and configs.autotunes() and not INTERPRETED:
        kernel = configs.tuned(kernel, tuple(config.items()))
        config = {}
    kernel[(programs, )](**arguments, **config)


def wide(box: Tuple[int, int], *tensors: Tensor) -> bool:
    """Whether offsets in a box of tokens of ``[B, *grid, heads, D]`` need 64
    bits."""
    for x in tensors:
        y, column = (0, *x.stride()[1:-2])[-2:]
        if box[0] * y + box[1] * column >= 2**31:
            return True
    return False


def _allows_tf32() -> bool:
    """float32 is IEEE unless the user told PyTorch otherwise."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, 'fp32_precision'):  # newer than allow_tf32
        return matmul.fp32_precision == 'tf32'
    return matmul.allow_tf32


def _bias(mass: Tensor, use_mass: bool) -> Tensor:
    """float32 log2(mass) (or 0) of summaries; -inf where nothing is real."""
    bias = mass.to(torch.float32).log2()
    return bias if use_mass else bias.clamp(max=0)


@lru_cache(maxsize=64)
def _grid_bias(hierarchy: Hierarchy, use_mass: bool,
               device: torch.device) -> Tensor:
    # On the CPU, then sent: complete wherever it is read first.
    return _bias(packed_mass(hierarchy), use_mass).to(device)


class Call:
    """The keyword arguments that kernels have in common, in groups.

    Args:
        query: ``[B, *grid, heads, D]``, or packed, ``[B, M, heads, D]``.
        key_mask: bool ``[B, *grid]`` or None.
        seed: int64 scalar, used where weights are dropped.
        hierarchy, options: of the call; the scale is at least 0.
    """

    def __init__(self, query: Tensor, key_mask: Optional[Tensor],
                 seed: Optional[Tensor], hierarchy: Hierarchy,
                 options: Options) -> None:
        self.hierarchy, self.plan = hierarchy, plan(hierarchy)
        p, self.dim = self.plan, query.shape[-1]
        self.batch, self.heads = query.shape[0], query.shape[-2]
        self.shape = dict(
            height=p.height,
            width=p.width,
            heads=self.heads,
            DIM=self.dim,
            BLOCK_D=max(triton.next_power_of_2(self.dim), 16),
            NDIM=p.ndim,
            CELL=p.cell,
            CAUSAL=p.causal)
        self.work = configs.Work(p, self.shape['BLOCK_D'],
                                 query.dtype == torch.float32,
                                 configs.capability(query.device),
                                 options.dropout_p > 0)
        self.tiles = dict(
            tiles_y=p.tiles[0],
            tiles_x=p.tiles[1],
            GROUPED=p.grouped,
            TILE_Y=p.tile[0],
            TILE_X=p.tile[1],
            BOX_Y=p.window[0],
            BOX_X=p.window[1])
        # Any integers will do where none are read.
        spare = packed_mass(hierarchy, device=query.device)
        self.mask = mask_arguments(key_mask, spare)
        self._key_mask, self._use_mass = key_mask, options.mass
        self._device = query.device
        self.numbers = dict(
            # log2(e), and never 0: hidden logits are -inf times the scale.
            scale=max(options.scale * 1.4426950408889634, 1e-30),
            seed=spare if seed is None else seed.to(query.device),
            threshold=int(options.dropout_p * 2.0**32),
            keep_scale=1 / (1 - options.dropout_p),
            DROPOUT=options.dropout_p > 0,
            PRECISION='tf32' if self.work.wide and _allows_tf32() else 'ieee',
            UPCAST=INTERPRETED and query.dtype == torch.bfloat16)

    @cached_property
    def far(self) -> dict:
        """The packed summaries, but for their content."""
        hierarchy, mask = self.hierarchy, self._key_mask
        if mask is None:  # shared between calls
            bias = _grid_bias(hierarchy, self._use_mass, self._device)
        else:
            bias = _bias(packed_mass(hierarchy, mask), self._use_mass)
        return dict(
            bias=bias,
            bias_batch=bias.stride(0) if bias.shape[0] > 1 else 0,
            summaries=hierarchy.num_summaries,
            levels=level_table(hierarchy, self._device),
            PARTS=self.plan.parts)

    def programs(self, block: int) -> int:
        """Programs of a call where tiles are cut into blocks of tokens."""
        tiles = self.batch * self.heads * prod(self.plan.tiles)
        return tiles * -(-self.plan.tile_tokens // block)
