"""From a config's name to a model, for tools that need no data.

Needs mmengine and the host toolbox that the config is written for.
"""

import importlib.util
import warnings
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from .complexity import Complexity, measure_complexity
from .config import UserError, building, load_config

# Of images, and of texts.
DEFAULT_SIZE, DEFAULT_LENGTH = (224, 224), (1024, )


def find_config(name: str) -> Path:
    """Finds a config file, also one that an OpenMMLab package ships.

    Args:
        name: A path, or ``package::path`` such as
            ``mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py``.

    Returns:
        The file's path.

    Raises:
        UserError: The file or the package does not exist.
    """
    package, separator, inner = name.partition('::')
    if not separator:
        path = Path(name)
        if not path.is_file():
            raise UserError(f'config {name}: no such file')
        return path
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f'config {name}: package {package!r} is not installed')
    if not inner.endswith('.py'):
        inner += '.py'
    root = Path(spec.submodule_search_locations[0])
    # A wheel carries its configs in .mim; a checkout has them beside it.
    folders = (root / '.mim' / 'configs', root.parent / 'configs')
    for folder in folders:
        if (folder / inner).is_file():
            return folder / inner
    raise UserError(f'config {name}: {package} ships no config {inner!r}')


def load_model_config(
    name: str,
    cfg_options: Optional[Dict[str, Any]] = None,
    bases: Sequence[str] = ()
) -> Config:
    """Reads a config that describes a model.

    Args:
        name: As for :func:`find_config`.
        cfg_options: Settings to override, ``{'model.backbone.arch': ...}``.
        bases: Files to merge, as for :func:`~fma_vision.engine.load_config`.

    Returns:
        The config, the modules in its ``custom_imports`` imported.

    Raises:
        UserError: There is no such config, it cannot be read or describes no
            model.
    """
    cfg = load_config(str(find_config(name)), cfg_options, bases)
    if not isinstance(cfg.get('model'), dict):
        raise UserError(f'config {name} holds no `model`')
    return cfg


def model_settings(cfg: Config) -> Dict[str, Any]:
    """The model's own settings, out of a test-time augmentation wrapper.

    Args:
        cfg: A config as :func:`load_model_config` returns it.

    Returns:
        A copy of ``cfg.model``, or of its ``module`` where ``model`` only
        averages several views.
    """
    settings = cfg.model
    if 'backbone' not in settings and 'module' in settings:
        settings = settings.module
    return settings.to_dict()


def preprocessor_settings(cfg: Config) -> Dict[str, Any]:
    """Settings of the host's data preprocessor, out of a wrapper for masks.

    Args:
        cfg: A config as :func:`load_model_config` returns it.

    Returns:
        A copy of them; empty where there are none.
    """
    found = model_settings(cfg).get('data_preprocessor') or cfg.get(
        'data_preprocessor') or {}
    return dict(found.get('preprocessor', found))


def build_model(cfg: Config, backbone: Optional[Dict] = None) -> nn.Module:
    """Builds a config's model for inference on one device, not initialised.

    Nothing is downloaded: pretrained weights are not loaded. Synchronised
    batch norms become plain ones.

    Args:
        cfg: A config as :func:`load_model_config` returns it.
        backbone: Settings to change in the backbone.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: A setting is wrong.
    """
    settings = model_settings(cfg)
    settings.pop('pretrained', None)
    if 'train_cfg' in settings:
        settings['train_cfg'] = None
    # One image, or several of one size, have no padding to mask.
    settings.get('backbone', {}).pop('mask_padding', None)
    preprocessor = preprocessor_settings(cfg)
    if preprocessor:
        settings['data_preprocessor'] = preprocessor
    if backbone:
        settings['backbone'].update(backbone)
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope), \
            warnings.catch_warnings():
        # About a loss, which inference does not use.
        warnings.filterwarnings(
            'ignore', message='Default ``avg_non_ignore`` is False')
        with building("the config's model"):
            # The hosts read some settings as attributes.
            model = MODELS.build(ConfigDict(settings))
    model = revert_sync_batchnorm(model)
    # Some backbones' eval() returns None, so never chain it.
    model.eval()
    return model


def input_channels(cfg: Config) -> int:
    """Channels of the images that a config's backbone takes."""
    backbone = model_settings(cfg).get('backbone', {})
    return int(backbone.get('in_channels', 3))


def is_language_model(cfg: Config) -> bool:
    """Whether a config's model takes tokens instead of images."""
    return 'vocab_size' in model_settings(cfg).get('net', {})


def training_size(cfg: Config) -> Optional[Tuple[int, ...]]:
    """What a config trains at, where it says so.

    Returns:
        Height and width of images, or the tokens of a window of text; where
        sequences have lengths of their own, the longest that the model takes.
    """

    def pair(size: Any) -> Tuple[int, int]:
        return (size, size) if isinstance(size, int) else tuple(size)

    if is_language_model(cfg):
        dataset = (cfg.get('train_dataloader') or {}).get('dataset', {})
        length = dataset.get('length',
                             model_settings(cfg)['net'].get('max_length'))
        return None if length is None else (length, )
    if cfg.get('crop_size') is not None:
        return pair(cfg.crop_size)
    for step in cfg.get('train_pipeline') or ():
        if step['type'] == 'RandomResizedCrop':
            return pair(step['scale'])
        if step['type'] == 'RandomCrop':
            return pair(step['crop_size'])
    return None


def input_shape(cfg: Config,
                given: Optional[Sequence[int]] = None) -> Tuple[int, ...]:
    """The size of the input to measure with.

    Args:
        cfg: The config.
        given: From the command line.

    Returns:
        Height and width, or the tokens of a text.

    Raises:
        UserError: Two numbers for a text.
    """
    if not is_language_model(cfg):
        if given:
            return given[0], given[-1]
        return training_size(cfg) or DEFAULT_SIZE
    if given and len(given) > 1:
        raise UserError('--shape of a language model is one number, the '
                        f'tokens of a text; got {list(given)}')
    return tuple(given or training_size(cfg) or DEFAULT_LENGTH)


def measure(cfg: Config, shape: Tuple[int, ...]) -> Dict[str, Complexity]:
    """Measures a config's backbone and whole model on one image or text.

    Args:
        cfg: The config.
        shape: As from :func:`input_shape`.

    Returns:
        ``backbone`` (where the model has one) and ``model``: the latter as
        used at test time, so without auxiliary heads.
    """
    model = build_model(cfg)
    if getattr(model, 'auxiliary_head', None) is not None:
        model.auxiliary_head = None
    if is_language_model(cfg):
        sample = torch.zeros(1, *shape, dtype=torch.int64)
    else:
        sample = torch.zeros(1, input_channels(cfg), *shape)
    found = {}
    if hasattr(model, 'backbone'):
        found['backbone'] = measure_complexity(model.backbone, sample)
    with building(f'the model on an input of {list(shape)}'):
        found['model'] = measure_complexity(model, sample, mode='tensor')
    return found
