"""Full attention in float64, and how far others are from it."""

import math
from typing import Any, Dict

import torch
from torch import Tensor

from .subjects import Needle

# Queries at a time: [heads, CHUNK, N] logits in float64.
CHUNK = 256


def full_attention(query: Tensor, key: Tensor, value: Tensor,
                   causal: bool) -> Tensor:
    """Softmax attention by its definition, some queries at a time.

    Args:
        query, key, value: ``[1, N, heads, head_dim]``.
        causal: Attend to the left only.

    Returns:
        float64 ``[1, N, heads, head_dim]``.
    """
    length = query.shape[1]
    # [heads, N, head_dim]
    query, key, value = (
        x[0].transpose(0, 1).double() for x in (query, key, value))
    query = query * query.shape[-1]**-.5
    parts = []
    for start in range(0, length, CHUNK):
        stop = min(start + CHUNK, length)
        seen = stop if causal else length
        logits = query[:, start:stop] @ key[:, :seen].transpose(1, 2)
        if causal:
            hidden = torch.ones(stop - start, seen, dtype=torch.bool)
            logits.masked_fill_(hidden.triu(start + 1), -math.inf)
        parts.append(logits.softmax(-1) @ value[:, :seen])
    return torch.cat(parts, 1).transpose(0, 1)[None]


def errors(out: Tensor, exact: Tensor) -> Dict[str, Any]:
    """Relative errors of an output ``[1, N, heads, head_dim]``.

    Returns:
        ``heads``: Frobenius norm of the difference over that of ``exact``,
        by head; ``mean`` and ``worst`` of them; ``cosine``: mean over tokens
        and heads of the cosine between the two.
    """
    out = out.double()
    axes = (0, 1, 3)
    norm = torch.linalg.vector_norm
    heads = norm(out - exact, dim=axes) / norm(exact, dim=axes)
    cosine = torch.nn.functional.cosine_similarity(out, exact, dim=-1)
    return dict(
        mean=float(heads.mean()),
        worst=float(heads.max()),
        heads=heads.tolist(),
        cosine=float(cosine.mean()))


def recovered(out: Tensor, exact: Tensor, needle: Needle) -> float:
    """How much of the needle's weight an output holds, over the exact one.

    Other values are orthogonal to the needle's, so that the part of an
    output along it is the needle's weight. 1 is all, 0 nothing.

    Args:
        out, exact: ``[1, N, heads, head_dim]``.
        needle: What was hidden.
    """

    def weight(x: Tensor) -> Tensor:
        asking = x[:, needle.first_query:].double()
        return (asking * needle.direction.double()).sum(-1).mean()

    return float(weight(out) / weight(exact))
