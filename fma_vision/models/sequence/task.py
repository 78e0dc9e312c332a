"""The sequence classifier as MMEngine's runner trains and tests it."""

from typing import Dict, List, Optional, Union

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmengine.model import BaseModel

from ...layers.checks import typed
from ...registry import MODELS


@MODELS.register_module()
class SequenceClassifierTask(BaseModel):
    """A sequence classifier with the modes of an MMEngine model.

    Batches are dicts of what :meth:`forward` takes, as
    :func:`~fma_vision.datasets.pad_sequences` makes them.

    Args:
        net (dict | nn.Module): A :class:`FMASequenceClassifier` or its
            config.
        data_preprocessor (dict, optional): Moves batches to the device.
        init_cfg (dict, optional): As everywhere in OpenMMLab.
    """

    @typed
    def __init__(self,
                 net: Union[dict, nn.Module],
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.net = MODELS.build(net) if isinstance(net, dict) else net

    def forward(
        self,
        tokens: torch.Tensor,
        key_mask: Optional[torch.Tensor] = None,
        labels: Optional[torch.Tensor] = None,
        mode: str = 'tensor'
    ) -> Union[torch.Tensor, Dict[str, torch.Tensor], List[Dict[
            str, torch.Tensor]]]:
        """Logits, losses or predictions.

        Args:
            tokens (Tensor): int64 ``[B, N]``.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            labels (Tensor, optional): int64 ``[B]``; needed by ``'loss'``.
            mode (str): ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            Tensor | dict | list[dict]: Logits ``[B, num_classes]``;
            ``dict(loss=...)``; or for each sequence what mmpretrain's
            metrics read: ``pred_score`` (probabilities, ``[num_classes]``),
            ``pred_label`` and, where given, ``gt_label`` (int64 ``[1]``).

        Raises:
            ValueError: If the mode is unknown, or a loss has no labels.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ValueError("mode must be 'tensor', 'loss' or 'predict', "
                             f'got {mode!r}')
        if mode == 'loss' and labels is None:
            raise ValueError("labels must be given for mode 'loss'")
        logits = self.net(tokens, key_mask)
        if mode == 'tensor':
            return logits
        logits = logits.float()
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        found = [
            dict(pred_score=row, pred_label=row.argmax()[None])
            for row in logits.softmax(-1)
        ]
        if labels is not None:
            for sample, label in zip(found, labels):
                sample['gt_label'] = label[None]
        return found
