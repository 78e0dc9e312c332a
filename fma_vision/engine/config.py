"""Reading a config file for a tool."""
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

from fma_vision import registry  # noqa: F401  silences the hosts' imports
from fma_vision.engine.errors import one_line

from mmengine.config import Config  # isort: skip

# Warnings about the host's own defaults, which the configs here mean.
_EXPECTED_WARNINGS = ('Default ``avg_non_ignore`` is False',
                      'The draw is False, it means that the hook',
                      '`build_loss` function will be deprecated',
                      "'pin_memory' argument is set as true",
                      'The shape of value will convert from',
                      '`reduce_zero_label` will be deprecated',
                      "Only use 'alpha' for pillow backend")


class UserError(Exception):
    """A mistake in what the user gave; tools print it as one line."""


@contextmanager
def building(what: str) -> Iterator[None]:
    """Turn what a wrong setting makes constructors raise into one line.

    Args:
        what (str): What is built, for the message.

    Raises:
        UserError: Instead of the errors that wrong arguments cause.
    """
    try:
        yield
    except (AssertionError, ImportError, KeyError, TypeError,
            ValueError) as error:
        raise UserError(f'{what} does not build: {one_line(error)}') \
            from error


def load_config(
    path: str,
    cfg_options: Optional[Dict[str, Any]] = None,
    bases: Sequence[str] = ()
) -> Config:
    """Read a config and merge the command line's changes into it.

    Args:
        path (str): The config file.
        cfg_options (dict, optional): Dotted keys and their new values, which
            are merged last.
        bases (sequence[str]): Files of parts, see :func:`merge_base`.

    Returns:
        Config: The whole config.

    Raises:
        UserError: A file is missing, broken, or a key cannot be set.
    """
    cfg = _read(path, 'config')
    for base in bases:
        merge_base(cfg, base)
    if cfg_options:
        try:
            cfg.merge_from_dict(cfg_options)
        except Exception as error:
            raise UserError(f'--cfg-options {cfg_options} do not fit '
                            f'{path}: {one_line(error)}')
    return cfg


def _read(path: str, what: str) -> Config:
    if not Path(path).is_file():
        raise UserError(f'no {what} file {path}')
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings('ignore', message=message)
    if Path(path).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(f'{what} {path} has suffix {Path(path).suffix!r}; '
                        'allowed are .py, .json, .yaml and .yml')
    try:
        return Config.fromfile(path)
    except Exception as error:
        raise UserError(f'{what} {path} cannot be read: {one_line(error)}')


def merge_base(cfg: Config, path: str) -> None:
    """Merge a file of ``configs/_base_`` into a whole config.

    Its ``attention`` goes where the model has its layers: what it holds for
    ``backbone`` (images) or ``net`` (sequences) into ``attn`` there.

    Args:
        cfg (Config): Changed in place.
        path (str): The file.

    Raises:
        UserError: It is missing, broken, or has nothing for such a model.
    """
    added = _read(path, '--base')._cfg_dict
    layers = added.pop('attention', {})
    model, place = cfg.get('model') or {}, 'model'
    if 'module' in model:  # test-time augmentation
        model, place = model['module'], 'model.module'
    parts = [part for part in layers if 'attn' in model.get(part, {})]
    if layers and not parts:
        raise UserError(f'--base {path} has attention for '
                        f'{" and ".join(layers)} of a model, and the config '
                        'has no attn there')
    for part in parts:
        added[f'{place}.{part}.attn'] = layers[part]
    try:
        cfg.merge_from_dict(added)
    except Exception as error:
        raise UserError(f'--base {path} does not fit the config: '
                        f'{one_line(error)}')


def set_work_dir(cfg: Config,
                 path: str,
                 work_dir: Optional[str],
                 bases: Sequence[str] = ()) -> None:
    """Choose the work folder: command line, then config, then file names.

    Args:
        cfg (Config): Changed in place.
        path (str): The config file.
        work_dir (str, optional): From the command line.
        bases (sequence[str]): What was merged into it.
    """
    if work_dir is not None:
        cfg.work_dir = work_dir
    elif cfg.get('work_dir') is None:
        name = '-'.join(Path(file).stem for file in (path, *bases))
        cfg.work_dir = str(Path('work_dirs') / name)


def drop_validation(cfg: Config) -> None:
    """Make a training run not evaluate in between.

    Args:
        cfg (Config): Changed in place.
    """
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    # Nothing is measured, so nothing can be the best.
    cfg.get('default_hooks', {}).get('checkpoint', {}).pop('save_best', None)


def drop_averaging(cfg: Config) -> None:
    """Leave out hooks that average weights, which have done their work.

    Their checkpoints hold the average as the model's weights.

    Args:
        cfg (Config): Changed in place.
    """
    cfg.custom_hooks = [
        hook for hook in cfg.get('custom_hooks') or []
        if hook.get('type') != 'EMAHook'
    ]


def datasets_of(node: Any) -> Iterator[dict]:
    """The dataset dicts inside a dataloader config, wrappers unfolded.

    Args:
        node: A dataloader or dataset config.

    Yields:
        dict: Every dict with ``type`` and ``data_root``.
    """
    if isinstance(node, dict):
        if 'type' in node and 'data_root' in node:
            yield node
        for value in node.values():
            yield from datasets_of(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from datasets_of(value)


def check_data_roots(cfg: Config, loaders: Tuple[str, ...]) -> None:
    """Refuse a config whose data is not there, before anything is built.

    Args:
        cfg (Config): The whole config.
        loaders (tuple[str]): Dataloader keys that will be used.

    Raises:
        UserError: Names the dataset and its root.
    """
    for key in loaders:
        for dataset in datasets_of(cfg.get(key)):
            root = dataset['data_root']
            if isinstance(root, str) and '://' not in root and root and \
                    not Path(root).expanduser().is_dir():
                raise UserError(
                    f"{key}: {dataset['type']} has data_root {root!r}, and "
                    'there is no such folder; the README beside the config '
                    'says how to make it, or --cfg-options gives another '
                    'place')
