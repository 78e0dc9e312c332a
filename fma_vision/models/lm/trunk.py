"""Tokens to features: embedding, positions and blocks."""

from typing import Any, Dict, Optional, Sequence, Set, Union

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from ...layers import FMAttention1D
from ...layers.build import resolve_attention
from ...layers.checks import check_rates, typed
from ...layers.common import drop_masked, undecayed_parameters
from ...registry import BaseModule
from .blocks import LMBlock


class TokenTransformer(BaseModule):
    """What models of token sequences share; a head comes on top.

    Args:
        vocab_size (int): Tokens.
        embed_dims (int): Channels. Defaults to 256.
        depth (int): Blocks. Defaults to 6.
        num_heads (int): Heads. Defaults to 8.
        cell_size (int): Tokens of a leaf cell. Defaults to 64.
        rank (int): Summaries of a cell. Defaults to 4.
        summaries (str | dict): Pooling form; see
            :func:`~fma_vision.layers.build_summaries`.
        num_levels (int, optional): Levels of summaries; None picks them from
            the length.
        causal (bool): Predict from the left only. Defaults to True.
        positions (str): ``'rotary'`` (in the attention layer), ``'learned'``
            (added to the embedding, up to ``max_length`` tokens) or
            ``'none'``.
        rotary_base (float): Base of the rotary angles.
        max_length (int, optional): Learned positions.
        attn (dict | str | type, optional): Attention layer; see
            :func:`~fma_vision.layers.build_attention`. What it sets wins
            over the arguments above; only ``FMAttention1D`` and its
            subclasses take ``cell_size``, ``rank``, ``summaries`` and
            ``num_levels``. With ``dict(positions='relative')`` a language
            model reads whole texts only, not token by token.
        mlp_ratio (float): Hidden width of the MLPs. Defaults to 4.
        qkv_bias (bool): Bias in the query, key, value projections.
        drop_rate (float): Dropout of the embedding, in MLPs and after
            attention.
        attn_drop_rate (float): Dropout on attention weights.
        with_cp (bool): Recompute blocks in the backward pass.
        init_cfg (dict, optional): As everywhere in OpenMMLab.

    Raises:
        ValueError: If an argument is out of range.
    """

    # Name parts of parameters that must not decay, for `custom_keys`.
    no_decay_keys = ('summaries.delta', 'relative_position_bias_table',
                     'field_weights')

    @typed
    def __init__(
            self,
            vocab_size: int,
            embed_dims: int = 256,
            depth: int = 6,
            num_heads: int = 8,
            cell_size: int = 64,
            rank: int = 4,
            summaries: Union[str, dict] = 'hierarchical',
            num_levels: Optional[int] = None,
            causal: bool = True,
            positions: str = 'rotary',
            rotary_base: float = 10000.,
            max_length: Optional[int] = None,
            attn: Optional[Union[str, type, dict]] = None,
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            drop_rate: float = 0.,
            attn_drop_rate: float = 0.,
            with_cp: bool = False,
            init_cfg: Optional[Union[dict, Sequence[dict]]] = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if vocab_size < 1 or depth < 1:
            raise ValueError('vocab_size and depth must be at least 1, got '
                             f'{vocab_size} and {depth}')
        check_rates(drop_rate=drop_rate, attn_drop_rate=attn_drop_rate)
        if positions not in ('rotary', 'learned', 'none'):
            raise ValueError("positions must be 'rotary', 'learned' or "
                             f"'none', got {positions!r}")
        if positions == 'learned' and (max_length is None or max_length < 1):
            raise ValueError('learned positions need max_length, the tokens '
                             f'they reach; got {max_length}')
        self.vocab_size = vocab_size
        self.embed_dims = embed_dims
        self.causal = causal
        self.positions = positions
        self.max_length = max_length
        self.with_cp = with_cp
        self.embed = nn.Embedding(vocab_size, embed_dims)
        self.position = (
            nn.Embedding(max_length, embed_dims)
            if positions == 'learned' else None)
        self.drop = nn.Dropout(drop_rate)
        attn = dict(type=attn) if isinstance(attn, (str, type)) else attn or {}
        attn = {'type': 'FMAttention1D', **attn}
        if issubclass(resolve_attention(attn['type']), FMAttention1D):
            own = dict(
                cell_size=cell_size,
                rank=rank,
                summaries=summaries,
                num_levels=num_levels)
            attn = {**own, **attn}
        defaults: Dict[str, Any] = dict(
            causal=causal, qkv_bias=qkv_bias, attn_drop=attn_drop_rate)
        if positions == 'rotary':
            defaults.update(positions='rotary', rotary_base=rotary_base)
        self.blocks = nn.ModuleList(
            LMBlock(embed_dims, num_heads, attn, mlp_ratio, drop_rate, index,
                    **defaults) for index in range(depth))
        for block in self.blocks:
            if getattr(block.attn, 'causal', causal) != causal:
                raise ValueError(
                    f'attn has causal={block.attn.causal}, the model has '
                    f'causal={causal}: set it on the model alone')

    def _init_parameters(self) -> None:
        """Normal weights; branches shrink with the depth, as in GPT-2.

        For subclasses, when they have built their head.
        """
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                std = .02
                if name.endswith(('attn.proj', 'mlp.fc2')):
                    std /= (2 * len(self.blocks))**.5
                nn.init.normal_(module.weight, std=std)
                if getattr(module, 'bias', None) is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters that must not decay."""
        return undecayed_parameters(self)

    def check_tokens(self, tokens: torch.Tensor, end: int) -> torch.Tensor:
        """Refuse what is no batch of token ids.

        Args:
            tokens (Tensor): Should be int ``[B, N]`` with N >= 1.
            end (int): Position after the last token.

        Returns:
            Tensor: The same as int64.

        Raises:
            TypeError: If the dtype is not an integer one.
            ValueError: If shape, ids or length do not fit the model.
        """
        if tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise TypeError(f'tokens must be integers, got {tokens.dtype}')
        if tokens.ndim != 2 or 0 in tokens.shape:
            raise ValueError('tokens must be [B, N] with B, N >= 1, got '
                             f'{tuple(tokens.shape)}')
        if self.position is not None and end > self.max_length:
            raise ValueError(f'learned positions reach {self.max_length} '
                             f'tokens, got {end}')
        # On another device the check would wait for it, and a traced graph
        # has no values yet, or those of an example.
        if (tokens.device.type == 'cpu' and not torch.compiler.is_compiling()
                and not torch.jit.is_tracing()):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.vocab_size:
                raise ValueError(
                    f'tokens must be in [0, {self.vocab_size - 1}], got '
                    f'[{low}, {high}]: the text was encoded with another '
                    'vocabulary')
        return tokens.long()

    def embed_tokens(self, tokens: torch.Tensor,
                     at: torch.Tensor) -> torch.Tensor:
        """Embed tokens ``[B, N]`` at positions ``[N]`` or ``[B, N]``."""
        x = self.embed(tokens)
        if self.position is not None:
            x = x + self.position(at)
        return self.drop(x)

    def features(self,
                 tokens: torch.Tensor,
                 key_mask: Optional[torch.Tensor] = None,
                 offset: int = 0) -> torch.Tensor:
        """What the head sees.

        Args:
            tokens (Tensor): int ``[B, N]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            offset (int): Position of the first token.

        Returns:
            Tensor: ``[B, N, embed_dims]``.

        Raises:
            TypeError, ValueError: As :meth:`check_tokens`.
        """
        tokens = self.check_tokens(tokens, offset + tokens.shape[-1])
        at = torch.arange(tokens.shape[1], device=tokens.device)
        # A default that is used becomes an input of an ONNX file.
        at = at + offset if offset else at
        x = drop_masked(self.embed_tokens(tokens, at), key_mask)
        for block in self.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, key_mask, offset, use_reentrant=False)
            else:
                x = block(x, key_mask, offset)
        return x
