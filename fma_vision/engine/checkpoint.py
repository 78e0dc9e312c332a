"""Checks of a checkpoint against a model."""
from pathlib import Path
from typing import Dict

import numpy as np
import torch
from torch import nn

from .config import UserError

# The runner's log history holds numbers of these types; without them the
# host cannot load its own checkpoints safely and says so at length.
torch.serialization.add_safe_globals(
    [type(np.dtype(kind)) for kind in ('float32', 'float64', 'int64')])


def read_state_dict(path: str) -> Dict[str, torch.Tensor]:
    """The weights in a checkpoint file.

    Args:
        path (str): A file saved by the runner, or a bare state dict.

    Returns:
        dict[str, Tensor]: Weights on the CPU.

    Raises:
        UserError: The file is missing, unreadable or holds no weights.
    """
    from mmengine.runner.checkpoint import CheckpointLoader
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'no checkpoint file {path}')
    try:
        state = CheckpointLoader.load_checkpoint(
            path, map_location='cpu', logger='silent')
    except Exception as error:
        raise UserError(f'checkpoint {path} cannot be read: '
                        f'{type(error).__name__}: '
                        f'{" ".join(str(error).split())[:200]}')
    if isinstance(state, dict):
        state = state.get('state_dict', state)
    if not isinstance(state, dict) or not any(
            torch.is_tensor(v) for v in state.values()):
        raise UserError(f'checkpoint {path} holds no weights')
    return {k.removeprefix('module.'): v for k, v in state.items()}


def check_checkpoint(model: nn.Module, path: str) -> None:
    """Refuse a checkpoint that is not of this model.

    Loading is lenient in the host, so that a wrong pair of config and
    checkpoint would otherwise be scored as a random model.

    Args:
        model (nn.Module): The model built from the config; wrappers for
            test-time augmentation and data parallelism are looked through.
        path (str): The checkpoint.

    Raises:
        UserError: Names how many weights differ and the first of them.
    """
    state = read_state_dict(path)
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    own = model.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f'{k} {tuple(state[k].shape)} instead of {tuple(own[k].shape)}'
        for k in own if k in state and state[k].shape != own[k].shape
    ]
    parts = [
        f'{len(names)} {what} (first: {names[0]})'
        for names, what in ((missing, 'missing'), (unexpected, 'unexpected'),
                            (shapes, 'of another shape')) if names
    ]
    if parts:
        raise UserError(f'checkpoint {path} is not of this config: weights '
                        f'{", ".join(parts)}')
