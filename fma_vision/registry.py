"""Registries of scope ``fma_vision``, and all that depends on MMEngine.

This is the only module that knows whether MMEngine is installed. With it,
each registry below is a child of MMEngine's root registry of the same name,
so that ``type='fma_vision.FMATransformer'`` is found from inside the configs
of mmsegmentation, mmpretrain and mmdetection. Without it, stand-ins with the
same names return classes unchanged, so that layers and backbones stay usable
with torch and timm alone.
"""

import functools
import warnings
from typing import Any, Callable, Optional, Sequence

import torch
import torch.nn as nn

try:
    import mmengine.logging
    import mmengine.registry as _root
    HAS_MMENGINE = True
except ImportError as error:
    # A broken MMEngine must be seen; an absent one is fine.
    if (error.name or '').split('.')[0] != 'mmengine':
        raise
    HAS_MMENGINE = False

__all__ = [
    'DATASETS', 'DATA_SAMPLERS', 'EVALUATOR', 'FUNCTIONS', 'HAS_MMENGINE',
    'HOOKS', 'LOOPS', 'METRICS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS',
    'PARAM_SCHEDULERS', 'TASK_UTILS', 'TRANSFORMS', 'VISUALIZERS', 'BaseModule'
]

SCOPE = 'fma_vision'


def _silence_host_noise() -> None:
    """Keep two messages of the host packages off the console.

    mmcv warns that an operator nobody here uses was not compiled, and mmseg
    and mmpretrain print a debug message when an optional package is absent
    (``print_log`` without a logger prints whatever the level).
    """
    warnings.filterwarnings(
        'ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    print_log = mmengine.logging.print_log
    if getattr(print_log, 'drops_onedl_message', False):
        return

    @functools.wraps(print_log)
    def quiet_print_log(msg: Any, *args: Any, **kwargs: Any) -> None:
        if msg != 'Could not import OneDL':
            print_log(msg, *args, **kwargs)

    quiet_print_log.drops_onedl_message = True
    mmengine.logging.print_log = quiet_print_log


if HAS_MMENGINE:
    from mmengine.model import BaseModule

    _silence_host_noise()

    def _child(name: str, locations: Sequence[str] = ()) -> _root.Registry:
        parent = getattr(_root, name)
        return _root.Registry(
            parent.name, parent=parent, scope=SCOPE, locations=list(locations))
else:

    class Registry:
        """Stand-in for MMEngine's registry: hands classes back unchanged.

        Args:
            name (str): Name of the registry, used in messages.
        """

        def __init__(self, name: str) -> None:
            self.name = name

        def register_module(self,
                            name: Any = None,
                            force: bool = False,
                            module: Optional[type] = None) -> Callable:
            """Return ``module``, or a decorator that changes nothing."""
            if module is not None:
                return module
            return lambda cls: cls

        def get(self, key: str) -> None:
            """Nothing is ever found here."""
            return None

        def build(self, cfg: Any, *args: Any, **kwargs: Any) -> None:
            """Building from a config needs MMEngine.

            Raises:
                ImportError: Always.
            """
            raise ImportError(f'building {cfg!r} from registry {self.name!r} '
                              'needs MMEngine: pip install '
                              '"fma_vision[openmmlab]"')

    class BaseModule(nn.Module):
        """``nn.Module`` with MMEngine's ``init_cfg`` and ``init_weights``.

        Args:
            init_cfg (dict, optional): Only ``dict(type='Pretrained',
                checkpoint=path, prefix=None)`` can be honoured without
                MMEngine.
        """

        def __init__(self, init_cfg: Optional[dict] = None) -> None:
            super().__init__()
            self.init_cfg = init_cfg

        def init_weights(self) -> None:
            """Load the checkpoint that ``init_cfg`` names, if any.

            Raises:
                ValueError: If ``init_cfg`` asks for anything else, or the
                    checkpoint shares no parameter with this module.
            """
            if not self.init_cfg:
                return
            cfg = dict(self.init_cfg)
            if cfg.pop('type', None) != 'Pretrained':
                raise ValueError(
                    f'init_cfg={self.init_cfg!r} needs MMEngine; without it '
                    "only dict(type='Pretrained', checkpoint=...) is allowed")
            state = torch.load(
                cfg['checkpoint'], map_location='cpu', weights_only=True)
            state = state.get('state_dict', state)
            prefix = cfg.get('prefix') or ''
            prefix += '.' if prefix and not prefix.endswith('.') else ''
            state = {
                key[len(prefix):]: value
                for key, value in state.items() if key.startswith(prefix)
            }
            if not set(state) & set(self.state_dict()):
                raise ValueError(f'checkpoint {cfg["checkpoint"]!r} holds no '
                                 f'parameter of this module under prefix '
                                 f'{prefix!r}')
            self.load_state_dict(state, strict=False)

    def _child(name: str, locations: Sequence[str] = ()) -> Registry:
        return Registry(name)


MODELS = _child('MODELS', ['fma_vision.models'])
DATASETS = _child('DATASETS', ['fma_vision.datasets'])
TRANSFORMS = _child('TRANSFORMS', ['fma_vision.datasets'])
DATA_SAMPLERS = _child('DATA_SAMPLERS', ['fma_vision.datasets'])
FUNCTIONS = _child('FUNCTIONS', ['fma_vision.datasets'])
METRICS = _child('METRICS', ['fma_vision.datasets'])
EVALUATOR = _child('EVALUATOR')
HOOKS = _child('HOOKS', ['fma_vision.engine.hooks'])
LOOPS = _child('LOOPS')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS')
TASK_UTILS = _child('TASK_UTILS')
VISUALIZERS = _child('VISUALIZERS')
