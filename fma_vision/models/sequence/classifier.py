"""A classifier of token sequences on Fast Multipole Attention."""

from typing import Any, Optional

import torch
import torch.nn as nn

from ...layers.checks import typed
from ...registry import MODELS
from ..lm.trunk import TokenTransformer
from .head import PooledHead


@MODELS.register_module()
class FMASequenceClassifier(TokenTransformer):
    """Tokens in, one set of logits for each sequence out.

    Every token sees both sides. Padding changes no logit: masked tokens are
    attended by none and not part of the mean.

    Args:
        vocab_size (int): Tokens.
        num_classes (int): Classes.
        embed_dims (int): Channels. Defaults to 128.
        head (dict, optional): Arguments of :class:`PooledHead`.
        **kwargs: Arguments of
            :class:`~fma_vision.models.lm.trunk.TokenTransformer`, without
            ``causal``.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 vocab_size: int,
                 num_classes: int,
                 embed_dims: int = 128,
                 head: Optional[dict] = None,
                 **kwargs: Any) -> None:
        super().__init__(vocab_size, embed_dims, causal=False, **kwargs)
        self.head = PooledHead(embed_dims, num_classes, **(head or {}))
        self._init_parameters()
        # The mean over a long sequence is small, and small weights on top of
        # it would start with no gradient to speak of: PyTorch's own scale.
        for layer in self.head.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def forward(self,
                tokens: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Logits of every sequence.

        Args:
            tokens (Tensor): int ``[B, N]``, any N >= 1.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
                Masked tokens are any ids of the vocabulary.

        Returns:
            Tensor: ``[B, num_classes]``.

        Raises:
            TypeError, ValueError: If the tokens do not fit the model.
        """
        return self.head(self.features(tokens, key_mask), key_mask)
