"""Reading checkpoints without running what they hold, and checking them."""
import pickle
import re
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import numpy as np
import torch
from torch import nn

from .config import UserError

_DTYPES = [type(np.dtype(kind)) for kind in '?bBhHiIlLqQefdU']
# What torch says of a file that wants more than tensors and plain types.
_REFUSED = re.compile(
    'unsupported (global|class)|unrecognized|can only (build|create)', re.I)
# Plain types, so the host's own safe loading may know them, too: without
# them it cannot read its own log history and says so at length.
torch.serialization.add_safe_globals(_DTYPES)


def _renamed(function: Callable, path: str) -> Callable:
    """A function under the name that a file calls it by."""

    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, _, call.__name__ = path.rpartition('.')
    call.__qualname__ = call.__name__
    return call


def _history_method(owner: Any, name: Any) -> Callable:
    """Stands in for ``getattr``, which leads from any object to any code.

    Args:
        owner: Must be mmengine's ``HistoryBuffer``.
        name: One of its four statistics.

    Raises:
        pickle.UnpicklingError: The file asks for anything else.
    """
    from mmengine.logging import HistoryBuffer
    if owner is not HistoryBuffer or name not in ('min', 'max', 'current',
                                                  'mean'):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL getattr')
    return getattr(owner, name)


def _training_globals() -> List[Callable]:
    """What a runner's checkpoint holds besides tensors: its log history."""
    from mmengine.logging import HistoryBuffer
    core = getattr(np, '_core', None) or np.core
    multiarray = core.multiarray
    # NumPy 2 moved two functions; files of either version name either place.
    moved = [
        _renamed(function, f'numpy.{place}.multiarray.{function.__name__}')
        for place in ('core', '_core')
        for function in (multiarray._reconstruct, multiarray.scalar)
    ]
    return [
        HistoryBuffer, slice, np.ndarray, np.dtype, *_DTYPES, *moved,
        _renamed(_history_method, 'builtins.getattr')
    ]


@contextmanager
def _allowed(names: List[Callable]) -> Iterator[None]:
    """Allow exactly these globals, whatever other packages registered."""
    serialization = torch.serialization
    before = list(serialization.get_safe_globals())
    serialization.clear_safe_globals()
    serialization.add_safe_globals(names)
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def read_checkpoint(path: str, map_location: Any = 'cpu') -> Any:
    """Read a checkpoint without running pickled code.

    Args:
        path (str): A local file: one saved by the runner, a published one
            or a bare state dict.
        map_location: As of :func:`torch.load`.

    Returns:
        Any: The file's content.

    Raises:
        UserError: The file is missing, damaged or holds code.
    """
    if '://' in path:
        raise UserError(f'checkpoint {path} is a URL; download it and give '
                        'the file')
    # The host's loader understands `~`, too.
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f'no checkpoint file {path}')
    try:
        with _allowed(_training_globals()), warnings.catch_warnings():
            # Its note on pickle protocols would precede the one line.
            warnings.simplefilter('ignore')
            return torch.load(
                file, map_location=map_location, weights_only=True)
    except Exception as error:  # zip, EOF and key errors of damaged files
        text = str(error)
        if not isinstance(error, pickle.UnpicklingError) or \
                not _REFUSED.search(text):
            raise UserError(f'checkpoint {path} cannot be read: it is damaged '
                            'or not written by torch.save') from error
    named = re.search(r'GLOBAL ([\w.]+)', text)
    what = f' ({named.group(1)})' if named else ''
    raise UserError(f'checkpoint {path} is refused: it holds code besides '
                    f'weights{what}; of a file you trust, save the '
                    'state_dict alone')


def latest_checkpoint(work_dir: Union[str, Path]) -> Optional[Path]:
    """What a resumed training goes on from, wherever the folder has moved.

    Args:
        work_dir: Of the training.

    Returns:
        The file that ``last_checkpoint`` names; the newest one if a run died
        while writing that note; None if there is none.
    """
    folder = Path(work_dir)
    note = folder / 'last_checkpoint'
    if note.is_file():
        # The note names the place on the machine that wrote it.
        named = Path(note.read_text(errors='replace').strip())
        for path in (folder / named.name, named):
            if path.is_file():
                return path
    # A best checkpoint has no optimizer.
    found = [*folder.glob('iter_*.pth'), *folder.glob('epoch_*.pth')]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def use_safe_reader() -> None:
    """Make the host read local files by :func:`read_checkpoint` as well.

    Its own loader runs pickled code where reading safely fails.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    # The host reports the loader by its name, and calls this one 'local'.
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(filename, map_location)

    # The host's name for local files is the empty prefix.
    CheckpointLoader.register_scheme(
        prefixes='', loader=load_from_local, force=True)


def select_state_dict(content: Any, path: str) -> Dict[str, torch.Tensor]:
    """The weights in a checkpoint's content.

    Args:
        content (Any): As :func:`read_checkpoint` returns it.
        path (str): The file, for messages.

    Returns:
        dict[str, Tensor]: Without the prefix of parallel training.

    Raises:
        UserError: It holds no weights.
    """
    state = content
    if isinstance(content, dict):
        state = content.get('state_dict', content)
    if not isinstance(state, dict) or not state or not all(
            torch.is_tensor(v) for v in state.values()):
        raise UserError(f'checkpoint {path} holds no weights')
    return {k.removeprefix('module.'): v for k, v in state.items()}


def check_weights(model: nn.Module, state: Dict[str, torch.Tensor],
                  path: str) -> None:
    """Refuse weights that are not of this model.

    Loading is lenient in the host, so that a wrong pair of config and
    checkpoint would otherwise be scored as a random model.

    Args:
        model (nn.Module): The model built from the config; wrappers for
            test-time augmentation and data parallelism are looked through.
        state (dict[str, Tensor]): The weights.
        path (str): Where they come from, for messages.

    Raises:
        UserError: Names how many weights differ and the first of them.
    """
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
        raise UserError(f'checkpoint {path} does not match the config: '
                        f'weights {", ".join(parts)}')


def check_checkpoint(model: nn.Module, path: str) -> None:
    """Refuse a checkpoint file that is not of this model.

    Args:
        model (nn.Module): As for :func:`check_weights`.
        path (str): The checkpoint.

    Raises:
        UserError: It cannot be read or does not match.
    """
    check_weights(model, select_state_dict(read_checkpoint(path), path), path)
