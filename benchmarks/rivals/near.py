"""Attention to near tokens alone: what FMA's near field costs elsewhere."""
from functools import partial
from typing import Dict, Sequence, Tuple

from case import Case, Op
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


def windows(tensors: Sequence[Tensor], side: int = 8) -> Tensor:
    """Attention inside windows that divide a map, without shift and bias."""
    sides, (height, width, heads) = (side, side), tensors[0].shape[1:4]
    # [windows, heads, tokens, head_dim] of [B, H, W, heads, head_dim]
    parts = (
        window_partition(x.flatten(3), sides).flatten(1, 2).unflatten(
            2, (heads, -1)).transpose(1, 2) for x in tensors)
    out = scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    out = window_reverse(out.unflatten(1, sides), sides, height, width)
    return out.unflatten(3, (heads, -1))


def natten(case: Case, own: Dict[str, tuple]) -> Tuple[Op, Sequence[Tensor]]:
    """NATTEN with about the near field of a cell: a window of 3 cells."""
    import natten as package
    if case.causal:
        call = partial(
            package.na1d, kernel_size=2 * case.cell_size, is_causal=True)
    else:  # odd, as all its versions allow
        call = partial(package.na2d, kernel_size=3 * case.cell_size - 1)
    return lambda x: call(*x), own['fma'][1]
