"""A language model on Fast Multipole Attention."""

from typing import Any, Iterator, Optional, Sequence, Tuple, Union

import torch

from ...layers.checks import typed
from ...registry import MODELS
from .generation import Stop, generate, stream
from .head import FMALMHead
from .streaming import LMState, init_state, prefill, step
from .trunk import TokenTransformer


@MODELS.register_module()
class FMALanguageModel(TokenTransformer):
    """Tokens in, logits out: causal or masked, at any length.

    Args:
        vocab_size (int): Tokens.
        embed_dims (int): Channels. Defaults to 256.
        *args: As of :class:`TokenTransformer`.
        head (dict, optional): Arguments of :class:`FMALMHead`.
        **kwargs: As of :class:`TokenTransformer`.

    Raises:
        ValueError: If an argument is out of range.
    """

    @typed
    def __init__(self,
                 vocab_size: int,
                 embed_dims: int = 256,
                 *args: Any,
                 head: Optional[dict] = None,
                 **kwargs: Any) -> None:
        super().__init__(vocab_size, embed_dims, *args, **kwargs)
        objective = 'causal' if self.causal else 'masked'
        self.head = FMALMHead(embed_dims, vocab_size, **{
            'objective': objective,
            **(head or {})
        })
        if self.head.objective != objective:
            raise ValueError(f'a head with objective {self.head.objective!r} '
                             f'does not fit causal={self.causal}')
        self._init_parameters()

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Map features ``[..., embed_dims]`` to ``[..., vocab_size]``."""
        return self.head(x, self.embed.weight)

    def forward(self,
                tokens: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None,
                offset: int = 0) -> torch.Tensor:
        """Logits of every token.

        Args:
            tokens (Tensor): int ``[B, N]``, any N >= 1.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real. What
                masked tokens yield is finite and means nothing.
            offset (int): Position of the first token.

        Returns:
            Tensor: ``[B, N, vocab_size]``.

        Raises:
            TypeError, ValueError: If the tokens do not fit the model.
        """
        return self.logits(self.features(tokens, key_mask, offset))

    def loss(self,
             tokens: torch.Tensor,
             targets: Optional[torch.Tensor] = None,
             key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Mean negative log likelihood of a batch.

        Args:
            tokens (Tensor): int ``[B, N]``.
            targets (Tensor, optional): int ``[B, N]``, the next tokens by
                default; a masked model draws its own.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.

        Returns:
            Tensor: A scalar, in nats per target.
        """
        tokens = self.check_tokens(tokens, tokens.shape[-1])
        tokens, targets = self.head.corrupt(tokens, targets, key_mask)
        x = self.features(tokens, key_mask)
        return self.head.loss(x, targets, self.embed.weight)

    def nats(self,
             tokens: torch.Tensor,
             targets: Optional[torch.Tensor] = None,
             key_mask: Optional[torch.Tensor] = None,
             seed: int = 0) -> Tuple[torch.Tensor, torch.Tensor]:
        """Negative log likelihood of each sequence, the same at every call.

        Args:
            tokens, targets, key_mask: As for :meth:`loss`.
            seed (int): Of the hidden tokens of a masked model.

        Returns:
            tuple[Tensor, Tensor]: Sums of -log p ``[B]``, float32 or wider,
            and numbers of counted targets, int64 ``[B]``.
        """
        tokens = self.check_tokens(tokens, tokens.shape[-1])
        tokens, targets = self.head.corrupt(tokens, targets, key_mask, seed)
        x = self.features(tokens, key_mask)
        return self.head.nats(x, targets, self.embed.weight)

    # ---------------------------------------------------------- streaming
    def init_state(self,
                   batch: int = 1,
                   dtype: Optional[torch.dtype] = None) -> LMState:
        """The state before the first token; see :func:`.streaming.step`."""
        return init_state(self, batch, dtype)

    def step(self, token: torch.Tensor,
             state: LMState) -> Tuple[torch.Tensor, LMState]:
        """Read one token per sequence; see :func:`.streaming.step`."""
        return step(self, token, state)

    def prefill(self, tokens: torch.Tensor,
                **kwargs: Any) -> Tuple[torch.Tensor, LMState]:
        """Read many tokens; see :func:`.streaming.prefill`."""
        return prefill(self, tokens, **kwargs)

    def generate(self,
                 prompt: Union[torch.Tensor, Sequence[torch.Tensor]],
                 max_new_tokens: int,
                 temperature: float = 1.,
                 top_k: Optional[int] = None,
                 top_p: Optional[float] = None,
                 seed: Optional[int] = None,
                 stop: Stop = None) -> torch.Tensor:
        """Continue prompts; see :func:`.generation.generate`."""
        return generate(self, prompt, max_new_tokens, temperature, top_k,
                        top_p, seed, stop)

    def stream(self, prompt: Union[torch.Tensor, Sequence[torch.Tensor]],
               max_new_tokens: int, **kwargs: Any) -> Iterator[torch.Tensor]:
        """Continue prompts token by token; see :func:`.generation.stream`."""
        return stream(self, prompt, max_new_tokens, **kwargs)
