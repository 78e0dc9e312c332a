"""What the command-line tools share: configs, checks and the runner."""
from .checkpoint import check_checkpoint
from .config import UserError, check_data_roots, load_config, set_work_dir
from .launch import build_runner, prepare, run_tool, select_device

__all__ = [
    'UserError', 'build_runner', 'check_checkpoint', 'check_data_roots',
    'load_config', 'prepare', 'run_tool', 'select_device', 'set_work_dir'
]
