"""The language model as MMEngine's runner trains and tests it."""

from typing import Any, Dict, List, Optional, Sequence, Union

import torch
import torch.nn as nn
from mmengine.model import BaseModel

from ...layers.checks import typed
from ...registry import MODELS

Batch = Union[torch.Tensor, Sequence[torch.Tensor]]


@MODELS.register_module()
class LanguageModelTask(BaseModel):
    """A language model with the modes of an MMEngine model.

    Batches are dicts of what :meth:`forward` takes, as ``default_collate``
    makes them.

    Args:
        net (dict | nn.Module): An :class:`FMALanguageModel` or its config.
        data_preprocessor (dict, optional): Moves batches to the device.
        eval_seed (int): Of the tokens that a masked model hides when tested.
        init_cfg (dict, optional): As everywhere in OpenMMLab.
    """

    @typed
    def __init__(self,
                 net: Union[dict, nn.Module],
                 data_preprocessor: Optional[Union[dict, nn.Module]] = None,
                 eval_seed: int = 0,
                 init_cfg: Optional[dict] = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.net = MODELS.build(net) if isinstance(net, dict) else net
        self.eval_seed = eval_seed

    def forward(
        self,
        tokens: Batch,
        targets: Optional[Batch] = None,
        characters: Optional[Batch] = None,
        key_mask: Optional[Batch] = None,
        mode: str = 'tensor'
    ) -> Union[torch.Tensor, Dict[str, torch.Tensor], List[Dict[str, Any]]]:
        """Logits, losses or what the metrics count.

        Args:
            tokens (Tensor): int64 ``[B, N]``, or B tensors ``[N]``.
            targets (Tensor, optional): int64 ``[B, N]``; see
                :meth:`FMALanguageModel.loss`.
            characters (Tensor, optional): int64 ``[B]``, characters that
                the targets of each row stand for; one per target by default.
            key_mask (Tensor, optional): bool ``[B, N]``, True = real.
            mode (str): ``'tensor'``, ``'loss'`` or ``'predict'``.

        Returns:
            Tensor | dict | list[dict]: Logits ``[B, N, vocab_size]``;
            ``dict(loss=...)``; or per row ``nats`` (float, the sum of
            -log p), ``tokens`` (int, counted targets) and ``characters``
            (float). A masked model tells some tokens of a window, and gets
            as large a part of the window's characters.

        Raises:
            ValueError: If the mode is unknown.
        """
        tokens, targets, characters, key_mask = (
            torch.stack(list(x)) if isinstance(x, (list, tuple)) else x
            for x in (tokens, targets, characters, key_mask))
        if mode == 'tensor':
            return self.net(tokens, key_mask)
        if mode == 'loss':
            return dict(loss=self.net.loss(tokens, targets, key_mask))
        if mode != 'predict':
            raise ValueError("mode must be 'tensor', 'loss' or 'predict', "
                             f'got {mode!r}')
        nats, counts = self.net.nats(tokens, targets, key_mask, self.eval_seed)
        spelled = counts.double()
        if characters is not None:
            given = counts if self.net.causal or targets is None else (
                targets != self.net.head.ignore_index).sum(1)
            spelled = spelled * characters / given.clamp(min=1)
        return [
            dict(nats=a, tokens=b, characters=c) for a, b, c in zip(
                nats.tolist(), counts.tolist(), spelled.tolist())
        ]
