"""What the command-line tools share: configs, checks and the runner.

Names are imported when they are asked for: files, timing and what else needs
no OpenMMLab is found without it.
"""
from importlib import import_module
from typing import Any

_MODULES = dict(
    checkpoint=('check_checkpoint', 'check_weights', 'latest_checkpoint',
                'read_checkpoint', 'select_state_dict'),
    classes=('check_classes', 'check_vocabulary', 'find_head'),
    config=('UserError', 'building', 'check_data_roots', 'drop_averaging',
            'drop_validation', 'load_config', 'set_work_dir'),
    launch=('build_runner', 'check_data', 'prepare', 'run_tool',
            'select_device', 'trained_runner'))
_HOMES = {name: home for home, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'{__name__}.{_HOMES[name]}'), name)
