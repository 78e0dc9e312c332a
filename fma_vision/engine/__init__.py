"""What the command-line tools share: configs, checks and the runner."""
from .checkpoint import (check_checkpoint, check_weights, latest_checkpoint,
                         read_checkpoint, select_state_dict)
from .classes import check_classes, check_vocabulary, find_head
from .config import (UserError, building, check_data_roots, drop_averaging,
                     drop_validation, load_config, set_work_dir)
from .launch import (build_runner, check_data, prepare, run_tool,
                     select_device, trained_runner)

__all__ = [
    'UserError', 'build_runner', 'building', 'check_checkpoint',
    'check_classes', 'check_data', 'check_data_roots', 'check_vocabulary',
    'check_weights', 'drop_averaging', 'drop_validation', 'find_head',
    'latest_checkpoint', 'load_config', 'prepare', 'read_checkpoint',
    'run_tool', 'select_device', 'select_state_dict', 'set_work_dir',
    'trained_runner'
]
