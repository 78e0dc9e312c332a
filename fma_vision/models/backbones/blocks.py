"""Parts of the hierarchical backbone, channels last throughout."""

from typing import Optional, Sequence, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import DropPath
from torch.utils.checkpoint import checkpoint

from fma_kernels.pooling import blocks_of, filled, shape_of

from ...layers import build_attention, build_position
from ...layers.common import drop_masked


def shrink_mask(mask: torch.Tensor, side: int) -> torch.Tensor:
    """What is real of a map with ``side`` times fewer places on each axis.

    Args:
        mask (Tensor): bool ``[B, H, W]``, True = real.
        side (int): How many become one; it is real if any of them is.

    Returns:
        Tensor: bool ``[B, ceil(H / side), ceil(W / side)]``.
    """
    pooled = F.max_pool2d(mask[:, None].float(), side, ceil_mode=True)
    return pooled[:, 0] > 0


def fill_with_mean(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Put the mean of the real tokens where there are none.

    Args:
        x (Tensor): ``[B, H, W, C]``.
        mask (Tensor): bool ``[B, H, W]``, True = real.

    Returns:
        Tensor: Like ``x``; its mean over all tokens is that of the real ones.
    """
    mask = mask.unsqueeze(-1)
    total = x.masked_fill(~mask, 0).sum((1, 2), keepdim=True)
    count = mask.sum((1, 2), keepdim=True).clamp(min=1)
    return torch.where(mask, x, (total / count).to(x.dtype))


class PatchEmbed(nn.Module):
    """Patches of an image as normalised tokens.

    Args:
        in_channels (int): Channels of the image.
        dim (int): Channels of a token.
        patch_size (int): Side of a patch in pixels.
        position (str | dict, optional): Config of a position encoding; one
            that belongs to the blocks is not built here.
    """

    def __init__(self,
                 in_channels: int,
                 dim: int,
                 patch_size: int,
                 position: Optional[Union[str, dict]] = None) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim)
        self.position = build_position(position, dim, in_stem=True)

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Map ``[B, C, H, W]`` to ``[B, ceil(H/p), ceil(W/p), dim]``.

        The last patches of a ragged image are filled with zeros.

        Args:
            x (Tensor): Images; zero where there is none.
            key_mask (Tensor, optional): bool, which tokens are real.
        """
        # In whole patches: what may be symbolic then divides without a rest.
        sides = [-(-side // self.patch_size) for side in shape_of(x)[-2:]]
        x = filled(x, [side * self.patch_size for side in sides], first=2)
        x = self.norm(self.proj(x).permute(0, 2, 3, 1))
        if key_mask is None or isinstance(self.position, nn.Identity):
            return self.position(x)
        return self.position(x, key_mask)


class PatchMerging(nn.Module):
    """Join 2 x 2 tokens into one.

    Args:
        in_dim (int): Channels in.
        out_dim (int): Channels out.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim)
        self.reduction = nn.Linear(4 * in_dim, out_dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, H, W, C]`` to ``[B, ceil(H/2), ceil(W/2), out_dim]``.

        An odd side is filled with zeros, as before a strided convolution.
        """
        sides = tuple(-(-side // 2) for side in shape_of(x)[1:-1])
        x = blocks_of(x, sides, (2, 2))  # [B, H/2, 2, W/2, 2, C]
        x = x.transpose(2, 3).flatten(3)  # [B, H/2, W/2, 2*2*C]
        return self.reduction(self.norm(x))


# Numbers between the two layers of an MLP that fit into a processor's caches.
MLP_ELEMENTS = 2**20


class Mlp(nn.Module):
    """Two linear layers around a GELU.

    Without gradients on a CPU, some tokens at a time go through both layers:
    what lies between them is written and read four times, and at once it
    would be as large as the rest of a backbone together.

    Args:
        dim (int): Channels in and out.
        hidden_dim (int): Channels between.
        drop (float): Dropout after each layer.
    """

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[..., dim]`` to the same shape."""
        if (torch.is_grad_enabled() or x.device.type != 'cpu'
                or torch.compiler.is_compiling() or torch.jit.is_tracing()):
            return self._all(x)
        size = max(MLP_ELEMENTS // self.fc1.out_features, 1)
        parts = x.flatten(0, -2).split(size)  # [tokens, dim]
        if len(parts) == 1:
            return self._all(x)
        return torch.cat([self._all(part) for part in parts]).view(x.shape)

    def _all(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class Block(nn.Module):
    """Position, attention and MLP, each as a residual branch.

    Args:
        dim (int): Channels.
        num_heads (int): Heads.
        attn (dict): Config of the attention layer.
        position (str | dict, optional): Config of the position encoding; one
            that belongs to the stem is not built here.
        mlp_ratio (float): Hidden width of the MLP over ``dim``.
        qkv_bias (bool): Bias in the query, key, value projection.
        drop (float): Dropout in the MLP and after the attention.
        drop_path (float): Probability of skipping a branch in training.
        block_index (int): Index in the stage.
    """

    def __init__(self, dim: int, num_heads: int, attn: dict,
                 position: Optional[Union[str, dict]], mlp_ratio: float,
                 qkv_bias: bool, drop: float, drop_path: float,
                 block_index: int) -> None:
        super().__init__()
        self.position = build_position(position, dim, in_stem=False)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = build_attention(
            attn,
            dim,
            num_heads,
            block_index=block_index,
            qkv_bias=qkv_bias,
            proj_drop=drop)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Map ``[B, H, W, dim]`` to the same shape.

        Args:
            x (Tensor): The map.
            key_mask (Tensor, optional): bool ``[B, H, W]``, which tokens are
                real. Others reach none of these, whatever they hold.
        """
        x = self.position(drop_masked(x, key_mask))
        masks = () if key_mask is None else (key_mask, )
        x = x + self.drop_path(self.attn(self.norm1(x), *masks))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Stage(nn.Module):
    """Blocks at one resolution, after a 2 x reduction except at the first.

    Args:
        in_dim (int): Channels of the stage before.
        dim (int): Channels of this stage.
        downsample (bool): Start with :class:`PatchMerging`.
        drop_paths (sequence[float]): One per block.
        with_cp (bool): Recompute each block in the backward pass.
        **kwargs: Arguments of :class:`Block`.
    """

    def __init__(self, in_dim: int, dim: int, downsample: bool,
                 drop_paths: Sequence[float], with_cp: bool, **kwargs) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.downsample = (
            PatchMerging(in_dim, dim) if downsample else nn.Identity())
        self.blocks = nn.ModuleList(
            Block(dim, drop_path=drop_path, block_index=index, **kwargs)
            for index, drop_path in enumerate(drop_paths))

    def forward(self,
                x: torch.Tensor,
                key_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Map ``[B, H, W, in_dim]`` to ``[B, H', W', dim]``.

        Args:
            x (Tensor): The map; zero where a token is not real.
            key_mask (Tensor, optional): bool ``[B, H', W']``, which tokens
                are real; the others are zero in the result.
        """
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, key_mask, use_reentrant=False)
            else:
                x = block(x, key_mask)
        return drop_masked(x, key_mask)
