"""Attention to near tokens alone: what FMA's near field costs elsewhere."""
from functools import partial
from typing import Dict, Sequence, Tuple

from case import Case, Op
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def windows(tensors: Sequence[Tensor], side: int = 8) -> Tensor:
    """Attention inside windows that divide a map, without shift and bias."""
    batch, height, width, heads, head_dim = tensors[0].shape
    split = (batch, height // side, side, width // side, side)
    # [B, rows, columns, heads, side, side, head_dim], then one image a window
    parts = (
        x.unflatten(2, split[3:]).unflatten(1, split[1:3]).permute(
            0, 1, 3, 5, 2, 4, 6).reshape(-1, heads, side**2, head_dim)
        for x in tensors)
    out = scaled_dot_product_attention(*parts)
    out = out.view(batch, split[1], split[3], heads, side, side, head_dim)
    return out.permute(0, 1, 4, 2, 5, 3, 6).reshape(tensors[0].shape)


def natten(case: Case, own: Dict[str, tuple]) -> Tuple[Op, Sequence[Tensor]]:
    """NATTEN with about the near field of a cell: a window of 3 cells."""
    import natten as package
    if case.causal:
        call = partial(
            package.na1d, kernel_size=2 * case.cell_size, is_causal=True)
    else:  # odd, as all its versions allow
        call = partial(package.na2d, kernel_size=3 * case.cell_size - 1)
    return lambda x: call(*x), own['fma'][1]
