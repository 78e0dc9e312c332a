"""Dtypes of measurements, and how far rounding may lead in each."""

from typing import Union

import torch
from torch import Tensor

DTYPES = dict(
    float32=torch.float32, float16=torch.float16, bfloat16=torch.bfloat16)
# Relative to the largest output; by the dtype of the products.
TOLERANCES = dict(float32=1e-3, float16=3e-2, bfloat16=1e-1)


def autocast(device: Union[str, torch.device], dtype: str) -> torch.autocast:
    """The context in which products are of a dtype.

    Args:
        device: Where the products run.
        dtype: One of ``DTYPES``.
    """
    enabled = dtype != 'float32'
    # The context refuses float32 even when it is switched off.
    return torch.autocast(
        torch.device(device).type,
        dtype=DTYPES[dtype] if enabled else None,
        enabled=enabled)


def relative_error(found: Tensor, reference: Tensor) -> float:
    """Largest difference over the largest entry of the reference.

    Args:
        found, reference: Tensors of one shape.
    """
    wide = torch.promote_types(reference.dtype, torch.float32)
    found, reference = found.to(wide), reference.to(wide)
    error = (found - reference).abs().max()
    return float(error / reference.abs().max().clamp(min=1e-12))
