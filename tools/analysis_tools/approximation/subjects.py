"""Queries, keys and values to compare on: a language model's, and a needle.

A subject holds what full attention sees, all of shape
``[1, N, heads, head_dim]``.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from fma_vision.datasets.text import TextDataset
from fma_vision.engine import UserError
from fma_vision.layers import FullAttention1D
from fma_vision.layers.positions import rotate


@dataclass(frozen=True)
class Needle:
    """One key in a haystack for each head.

    Attributes:
        direction (Tensor): Unit vectors ``[heads, head_dim]``: the needle's
            value points there, all other values are orthogonal to it.
        first_query (int): All queries from here on look for it.
        positions (list[int]): Where it is, by head.
    """
    direction: Tensor
    first_query: int
    positions: List[int]


@dataclass(frozen=True)
class Subject:
    """What all methods are given.

    Attributes:
        query, key, value (Tensor): As full attention takes them.
        unturned_query, unturned_key (Tensor, optional): Before the rotation
            by positions; None where there are no positions.
        rotary_base (float): Of that rotation.
        needle (Needle, optional): What the last queries look for.
    """
    query: Tensor
    key: Tensor
    value: Tensor
    unturned_query: Optional[Tensor] = None
    unturned_key: Optional[Tensor] = None
    rotary_base: float = 10000.
    needle: Optional[Needle] = None

    @property
    def length(self) -> int:
        return self.query.shape[1]

    @cached_property
    def heads_first(self) -> Tuple[Tensor, ...]:
        """Query, key and value ``[1, heads, N, head_dim]``, contiguous."""
        given = self.query, self.key, self.value
        return tuple(x.transpose(1, 2).contiguous() for x in given)

    @cached_property
    def packed(self) -> Tensor:
        """Them as one projection: ``[1, N, 3 heads head_dim]``."""
        given = self.query, self.key, self.value
        return torch.cat([x.flatten(2) for x in given], -1)


def middle_layers(net: nn.Module) -> Tuple[int, int]:
    """Indices of the two blocks in the middle."""
    middle = len(net.blocks) // 2
    return max(middle - 1, 0), middle


def attentions(net: nn.Module, layers: Sequence[int]) -> List[FullAttention1D]:
    """The attention layers to read.

    Args:
        net: The language model.
        layers: Indices of its blocks.

    Raises:
        UserError: There is no such block, or one of other attention.
    """
    depth = len(net.blocks)
    for layer in layers:
        if not 0 <= layer < depth:
            raise UserError(f'--layers {layer}: the model has blocks 0 to '
                            f'{depth - 1}')
    found = [net.blocks[layer].attn for layer in layers]
    for attn in found:
        if type(attn) is not FullAttention1D or attn.positions != 'rotary' \
                or not attn.causal:
            raise UserError('the model must have causal FullAttention1D with '
                            f'rotary positions, it has {attn}')
    return found


def capture(net: nn.Module, tokens: Tensor, targets: Tensor,
            layers: Sequence[int]) -> Tuple[Subject, float]:
    """Reads a text and keeps what some attention layers get to see.

    Args:
        net: A language model on full attention.
        tokens: ``[N]``.
        targets: ``[N]``, the next tokens.
        layers: Indices of blocks; their heads are put side by side.

    Returns:
        The subject, and the model's nats per token.

    Raises:
        UserError: As :func:`attentions`.
    """
    projections: Dict[int, Tensor] = {}
    layers = list(layers)
    attns = attentions(net, layers)
    hooks = [
        attn.qkv.register_forward_hook(
            lambda module, args, out, at=at: projections.update({at: out}))
        for at, attn in enumerate(attns)
    ]
    try:
        with torch.no_grad():
            nats, count = net.nats(tokens[None], targets[None])
    finally:
        for hook in hooks:
            hook.remove()
    # [1, N, 3, all heads, head_dim]
    qkv = torch.cat([
        projections[at].unflatten(-1, (3, attn.num_heads, attn.head_dim))
        for at, attn in enumerate(attns)
    ], 3)
    query, key, value = qkv.unbind(2)
    at = torch.arange(len(tokens))
    base = attns[0].rotary_base
    # Contiguous, so that no method is timed on another's strides.
    subject = Subject(
        rotate(query, at, base).contiguous(),
        rotate(key, at, base).contiguous(), value.contiguous(),
        query.contiguous(), key.contiguous(), base)
    return subject, float(nats.sum() / count.sum())


def read_pieces(path: Path, length: int, count: int,
                seed: int) -> List[Dict[str, Any]]:
    """Pieces of a text that do not overlap, drawn by a seed.

    Args:
        path: A file; its bytes are the tokens.
        length: Tokens of a piece.
        count: Pieces.
        seed: Of the draw.

    Returns:
        Samples of :class:`TextDataset`, each with its ``start``.

    Raises:
        UserError: The text is missing or too short.
    """
    try:
        data = TextDataset(
            path=str(path), length=length, split=None, mode='sequential')
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from error
    # The last window reaches back over the one before.
    tiles = len(data) - 1
    if tiles < count:
        raise UserError(f'{path} has {tiles} pieces of {length} bytes, '
                        f'{count} are needed')
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(tiles, generator=generator)[:count].tolist()
    return [dict(data[index], start=index * length) for index in order]


def hide_needle(length: int, heads: int, head_dim: int, seed: int,
                logit: float) -> Subject:
    """Random tokens, and one key that the last quarter of queries wants.

    All logits are about standard normal but those of the needle, which are
    ``logit``: at log(length) + 5, it gets nearly all weight. It lies in the
    second eighth of the tokens, far from all who look for it.

    Args:
        length: Tokens.
        heads, head_dim: Of the subject.
        seed: Of all that is random.
        logit: Of the needle, after scaling by ``head_dim**-0.5``.

    Returns:
        The subject, without positions.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def without(x: Tensor, direction: Tensor) -> Tensor:
        """``[N, heads, head_dim]`` without its part along a direction."""
        return x - (x * direction).sum(-1, keepdim=True) * direction

    wanted, told = (
        nn.functional.normalize(normal(heads, head_dim), dim=-1)
        for _ in range(2))
    query, key, value = (normal(length, heads, head_dim) for _ in range(3))
    query, key = without(query, wanted), without(key, wanted)
    value = without(value, told)
    first = length - length // 4
    # tau * strength**2 is the logit.
    strength = (logit * head_dim**.5)**.5
    query[first:] += strength * wanted
    low, high = length // 8, length // 4
    places = torch.randint(low, high, (heads, ), generator=generator)
    head = torch.arange(heads)
    key[places, head] = strength * wanted
    value[places, head] = head_dim**.5 * told
    return Subject(
        *(x[None] for x in (query, key, value)),
        needle=Needle(told, first, places.tolist()))
