"""From the last block to logits and losses."""

from typing import Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ...layers.checks import typed
from ...registry import MODELS
from .masking import mask_by_content, mask_tokens


@MODELS.register_module()
class FMALMHead(nn.Module):
    """Final norm, projection to the vocabulary, and the loss.

    Args:
        embed_dims (int): Channels.
        vocab_size (int): Tokens, the mask token included where there is one.
        tied (bool): Project with the embedding's weight, which the model
            hands over and which no adapter of the embedding or int8
            conversion of linear layers changes; else with an own linear
            layer. Defaults to True.
        objective (str): ``'causal'`` predicts each next token, ``'masked'``
            predicts hidden ones (the 80/10/10 recipe of BERT).
        ignore_index (int): Targets that do not count. Defaults to -100.
        mask_ratio (float): Share of hidden tokens, for ``'masked'``.
        mask_id (int, optional): Token that stands for "hidden". Defaults to
            the last of the vocabulary, which random replacements avoid.
        chunk_elements (int): Logits held at once in a loss; longer inputs
            are cut along the tokens and recomputed in the backward pass.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 embed_dims: int,
                 vocab_size: int,
                 tied: bool = True,
                 objective: str = 'causal',
                 ignore_index: int = -100,
                 mask_ratio: float = .15,
                 mask_id: Optional[int] = None,
                 chunk_elements: int = 2**24) -> None:
        super().__init__()
        if vocab_size < 1 or chunk_elements < 1:
            raise ValueError('vocab_size and chunk_elements must be at least '
                             f'1, got {vocab_size} and {chunk_elements}')
        if objective not in ('causal', 'masked'):
            raise ValueError("objective must be 'causal' or 'masked', got "
                             f'{objective!r}')
        if not 0 < mask_ratio <= 1:
            raise ValueError(f'mask_ratio must be in (0, 1], got {mask_ratio}')
        mask_id = vocab_size - 1 if mask_id is None else mask_id
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f'mask_id must be below vocab_size={vocab_size}, '
                             f'got {mask_id}')
        self.vocab_size = vocab_size
        self.tied = tied
        self.objective = objective
        self.ignore_index = ignore_index
        self.mask_ratio = mask_ratio
        self.mask_id = mask_id
        self.chunk_elements = chunk_elements
        self.norm = nn.LayerNorm(embed_dims)
        self.proj = None if tied else nn.Linear(
            embed_dims, vocab_size, bias=False)

    @property
    def num_tokens(self) -> int:
        """int: Tokens of the data; a mask that comes last is none."""
        masked = self.objective == 'masked'
        own = masked and self.mask_id == self.vocab_size - 1
        return max(self.vocab_size - own, 1)

    def _logits(self, x: torch.Tensor,
                weight: Optional[torch.Tensor]) -> torch.Tensor:
        x = self.norm(x)
        if not self.tied:
            return self.proj(x)
        if weight is None:
            raise ValueError('a tied head needs the embedding weight '
                             f'[{self.vocab_size}, embed_dims]')
        return F.linear(x, weight)

    def forward(self,
                x: torch.Tensor,
                weight: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Logits of every token.

        Args:
            x (Tensor): ``[..., embed_dims]`` from the last block.
            weight (Tensor, optional): ``[vocab_size, embed_dims]``, where
                the projection is tied.

        Returns:
            Tensor: ``[..., vocab_size]``.

        Raises:
            ValueError: If a tied head gets no weight.
        """
        return self._logits(x, weight)

    def corrupt(
            self,
            tokens: torch.Tensor,
            targets: Optional[torch.Tensor] = None,
            key_mask: Optional[torch.Tensor] = None,
            seed: Optional[int] = None) -> Tuple[torch.Tensor, torch.Tensor]:
        """What the model gets to see, and what it has to tell.

        Args:
            tokens (Tensor): int64 ``[B, N]``.
            targets (Tensor, optional): int64 ``[B, N]``, the next tokens by
                default. ``'masked'`` hides no token whose target is
                ``ignore_index``, and does not use the others.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            seed (int, optional): Makes ``'masked'`` hide the same tokens at
                every call; drawn from PyTorch's generator by default.

        Returns:
            tuple[Tensor, Tensor]: Inputs and targets, int64 ``[B, N]``.
        """
        if self.objective == 'masked':
            eligible = key_mask
            if targets is not None:  # the rest was counted elsewhere
                counted = targets != self.ignore_index
                eligible = counted if key_mask is None else counted & key_mask
            options = dict(
                num_tokens=self.num_tokens,
                mask_id=self.mask_id,
                ratio=self.mask_ratio,
                eligible=eligible,
                ignore_index=self.ignore_index)
            if seed is None:
                return mask_tokens(tokens, **options)
            return mask_by_content(tokens, seed, **options)
        if targets is None:
            targets = F.pad(tokens[:, 1:], (0, 1), value=self.ignore_index)
            if key_mask is not None:
                real = F.pad(key_mask[:, 1:], (0, 1), value=False)
                targets = targets.masked_fill(~real, self.ignore_index)
        return tokens, targets

    def nats(
        self,
        x: torch.Tensor,
        targets: torch.Tensor,
        weight: Optional[torch.Tensor] = None
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Negative log likelihood of each sequence, as a sum.

        Args:
            x (Tensor): ``[B, N, embed_dims]`` from the last block.
            targets (Tensor): int ``[B, N]``; ``ignore_index`` where
                nothing counts.
            weight (Tensor, optional): As in :meth:`forward`.

        Returns:
            tuple[Tensor, Tensor]: Sums of -log p ``[B]``, float32 or wider,
            and numbers of counted targets, int64 ``[B]``.

        Raises:
            ValueError: If the shapes differ.
        """
        if targets.shape != x.shape[:-1]:
            raise ValueError(f'targets must be {tuple(x.shape[:-1])}, got '
                             f'{tuple(targets.shape)}')
        targets = targets.long()
        counted = targets != self.ignore_index
        if self.objective == 'masked':
            # Few tokens are asked for: only those are projected.
            each = self._each(x[counted], targets[counted], weight)
            total = each.new_zeros(targets.shape)
            total = total.masked_scatter(counted, each).sum(1)
        else:
            each = self._each(x.flatten(0, 1), targets.flatten(), weight)
            total = each.view(targets.shape).sum(1)
        return total, counted.sum(1)

    def _each(self, x: torch.Tensor, targets: torch.Tensor,
              weight: Optional[torch.Tensor]) -> torch.Tensor:
        """-log p of tokens ``[T, embed_dims]``, ``[T]``."""

        def part(x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            logits = self._logits(x, weight)
            return F.cross_entropy(
                logits.to(torch.promote_types(logits.dtype, torch.float32)),
                targets,
                ignore_index=self.ignore_index,
                reduction='none')

        size = max(self.chunk_elements // self.vocab_size, 1)
        if x.shape[0] <= size:
            return part(x, targets)
        keeps = torch.is_grad_enabled()
        return torch.cat([
            checkpoint(part, *pair, use_reentrant=False) if keeps else part(
                *pair) for pair in zip(x.split(size), targets.split(size))
        ])

    def loss(self,
             x: torch.Tensor,
             targets: torch.Tensor,
             weight: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Mean -log p over the counted targets; 0 where none counts.

        Args:
            x, targets, weight: As for :meth:`nats`.

        Returns:
            Tensor: A scalar.
        """
        total, count = self.nats(x, targets, weight)
        return total.sum() / count.sum().clamp(min=1)
