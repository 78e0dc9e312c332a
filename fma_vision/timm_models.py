"""Classifiers registered with timm: ``timm.create_model('fma_tiny')``."""

from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch
import torch.nn as nn
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead
from timm.models import (build_model_with_cfg, generate_default_cfgs,
                         register_model, register_notrace_function,
                         register_notrace_module)
from timm.models._features import feature_take_indices

from .layers import ATTENTION_LAYERS, AbsolutePosition
from .layers.checks import check_rates, typed
from .layers.depthwise import DepthwiseConv2d
from .models.backbones import FMATransformer
from .models.backbones.blocks import Mlp, PatchEmbed, PatchMerging
from .models.backbones.fma_transformer import check_images

# What asks for sizes or devices is one node where FX extracts features.
register_notrace_function(check_images)
for _module in (PatchEmbed, PatchMerging, Mlp, DepthwiseConv2d,
                AbsolutePosition, *ATTENTION_LAYERS.values()):
    register_notrace_module(_module)


class FMAClassifier(nn.Module):
    """An :class:`FMATransformer` with a linear head, as timm expects.

    Parameter names are those of mmpretrain's ``ImageClassifier`` with a
    ``LinearClsHead``, so that weights move between the two unchanged.

    Args:
        arch (str | dict): As :class:`FMATransformer`.
        num_classes (int): Classes; 0 leaves out the linear layer.
        in_chans (int): Channels of the image.
        global_pool (str): ``'avg'``, ``'max'``, ... or ``''`` for none.
        drop_rate (float): Dropout before the head.
        proj_drop_rate (float): Dropout inside the blocks.
        **kwargs: Further arguments of :class:`FMATransformer`.
    """

    output_fmt = 'NHWC'

    @typed
    def __init__(self,
                 arch: Union[str, dict] = 'tiny',
                 num_classes: int = 1000,
                 in_chans: int = 3,
                 global_pool: str = 'avg',
                 drop_rate: float = 0.,
                 proj_drop_rate: float = 0.,
                 **kwargs: Any) -> None:
        super().__init__()
        if kwargs.get('mask_padding'):
            raise ValueError('mask_padding=True is for FMATransformer in an '
                             "OpenMMLab model; timm's images are not padded")
        check_rates(drop_rate=drop_rate, proj_drop_rate=proj_drop_rate)
        self.backbone = FMATransformer(
            arch, in_channels=in_chans, drop_rate=proj_drop_rate, **kwargs)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.feature_info = [
            dict(
                num_chs=dim,
                reduction=self.backbone.patch_size * 2**i,
                module=f'backbone.stages.{i}')
            for i, dim in enumerate(self.backbone.embed_dims)
        ]
        self.num_features = self.head_hidden_size = self.backbone.embed_dims[
            -1]
        self.head = ClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            input_fmt=self.output_fmt)

    @property
    def _norm_name(self) -> str:
        return f'norm{self.backbone.num_stages - 1}'

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.backbone, self._norm_name)(x)

    def no_weight_decay(self) -> Set[str]:
        """Names of parameters that must not decay."""
        return {f'backbone.{n}' for n in self.backbone.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Patterns that group parameters by depth."""
        return dict(
            stem=r'^backbone\.patch_embed',
            blocks=r'^backbone\.stages\.(\d+)' if coarse else [
                (r'^backbone\.stages\.(\d+)\.downsample', (0, )),
                (r'^backbone\.stages\.(\d+)\.blocks\.(\d+)', None),
                (r'^backbone\.norm', (99999, )),
            ])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, or stop doing so."""
        for stage in self.backbone.stages:
            stage.with_cp = enable

    def get_classifier(self) -> nn.Module:
        """The linear layer of the head."""
        return self.head.fc

    def reset_classifier(self,
                         num_classes: int,
                         global_pool: Optional[str] = None) -> None:
        """Replace the head."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)
        self.head_hidden_size = self.head.num_features
        if global_pool is not None:
            self.global_pool = global_pool

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features of chosen stages.

        Args:
            x (Tensor): ``[B, in_chans, H, W]``.
            indices (int | list[int], optional): The last n stages, or their
                indices; None is all.
            norm (bool): Normalise the last stage's map.
            stop_early (bool): Do not compute stages past the last index.
            output_fmt (str): ``'NCHW'`` or ``'NHWC'``.
            intermediates_only (bool): Leave out the final features.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: Maps per index, after
            the final features ``[B, H, W, C]`` unless left out.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ValueError("output_fmt must be 'NCHW' or 'NHWC', got "
                             f'{output_fmt!r}')
        stages = self.backbone.stages
        take, last = feature_take_indices(len(stages), indices)
        x = self.backbone.patch_embed(x)
        maps = []
        final = False
        for i, stage in enumerate(stages):
            if stop_early and i > last:
                break
            x = stage(x)
            final = i == self.backbone.num_stages - 1
            if i in take:
                out = self._norm(x) if norm and final else x
                if output_fmt == 'NCHW':
                    out = out.permute(0, 3, 1, 2).contiguous()
                maps.append(out)
        if intermediates_only:
            return maps
        return (self._norm(x) if final else x), maps

    def prune_intermediate_layers(self,
                                  indices: Union[int, List[int]] = 1,
                                  prune_norm: bool = False,
                                  prune_head: bool = True) -> List[int]:
        """Drop the stages past the last index, and the head if asked."""
        stages = self.backbone.stages
        take, last = feature_take_indices(len(stages), indices)
        if prune_norm or last < len(stages) - 1:
            setattr(self.backbone, self._norm_name, nn.Identity())
        self.backbone.stages = stages[:last + 1]
        if prune_head or last < len(stages) - 1:
            self.reset_classifier(0, '')
        return take

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, in_chans, H, W]`` to normalised ``[B, h, w, C]``."""
        x = self.backbone.patch_embed(x)
        for stage in self.backbone.stages:
            x = stage(x)
        return self._norm(x)

    def forward_head(self,
                     x: torch.Tensor,
                     pre_logits: bool = False) -> torch.Tensor:
        """Pool and classify ``[B, h, w, C]``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, in_chans, H, W]`` to logits ``[B, num_classes]``."""
        return self.forward_head(self.forward_features(x))


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        'url': '',
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': .9,
        'interpolation': 'bicubic',
        'fixed_input_size': False,
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'backbone.patch_embed.proj',
        'classifier': 'head.fc',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {f'fma_{arch}': _cfg()
     for arch in ('nano', 'tiny', 'small', 'base')})


def _create(arch: str,
            pretrained: bool = False,
            **kwargs: Any) -> FMAClassifier:
    out_indices: Sequence[int] = kwargs.pop('out_indices', (0, 1, 2, 3))
    return build_model_with_cfg(
        FMAClassifier,
        f'fma_{arch}',
        pretrained,
        feature_cfg=dict(out_indices=out_indices, feature_cls='getter'),
        arch=arch,
        **kwargs)


@register_model
def fma_nano(pretrained: bool = False, **kwargs: Any) -> FMAClassifier:
    """FMA-N: 3 M parameters, for small data and CPUs."""
    return _create('nano', pretrained, **kwargs)


@register_model
def fma_tiny(pretrained: bool = False, **kwargs: Any) -> FMAClassifier:
    """FMA-T: Swin-T's widths and depths."""
    return _create('tiny', pretrained, **kwargs)


@register_model
def fma_small(pretrained: bool = False, **kwargs: Any) -> FMAClassifier:
    """FMA-S: Swin-S's widths and depths."""
    return _create('small', pretrained, **kwargs)


@register_model
def fma_base(pretrained: bool = False, **kwargs: Any) -> FMAClassifier:
    """FMA-B: Swin-B's widths and depths."""
    return _create('base', pretrained, **kwargs)
