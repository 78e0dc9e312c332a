"""The record of where and with what a number was measured."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, Optional, Union

import torch

# Distributions whose version can change a measurement.
_PACKAGES = ('torch', 'triton', 'numpy', 'timm', 'onedl-mmengine',
             'onedl-mmcv', 'onedl-mmsegmentation', 'onedl-mmpretrain',
             'mmengine', 'mmcv', 'mmsegmentation', 'mmpretrain')


def _cpu_name() -> str:
    """Marketing name of the processor, or the best that is known."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(':')
        if key.strip() == 'model name':
            return value.strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> Optional[str]:
    if package == 'torch':
        return torch.__version__  # names the build, too
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> Optional[Dict[str, Any]]:
    """Commit of this checkout and whether files differ from it.

    Returns:
        dict with ``hash`` and ``modified``, or None outside a checkout (an
        installed wheel, or no git).
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / '.git').exists():
        return None

    def git(*args: str) -> str:
        return subprocess.run(
            ('git', '-C', str(root)) + args,
            check=True,
            capture_output=True,
            text=True).stdout.strip()

    try:
        return dict(
            hash=git('rev-parse', 'HEAD'),
            modified=bool(git('status', '--porcelain')))
    except (OSError, subprocess.CalledProcessError):
        return None


def collect_environment(device: Union[str, torch.device] = 'cpu',
                        seed: Optional[int] = None) -> Dict[str, Any]:
    """Describes the machine, the software and the code of a measurement.

    Args:
        device: The device measured on.
        seed: The seed that was set, if any.

    Returns:
        A dict that json can write: device, processor, threads, versions,
        commit, date (UTC) and seed.
    """
    device = torch.device(device)
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity') else os.cpu_count())
    record: Dict[str, Any] = dict(
        device=str(device),
        cpu=_cpu_name(),
        cpu_cores=cores,
        threads=torch.get_num_threads(),
        system=f'{platform.system()} {platform.machine()}',
        python=platform.python_version(),
        packages={
            name: version
            for name in _PACKAGES if (version := _version(name)) is not None
        },
        commit=git_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        seed=seed)
    if device.type == 'cuda':
        properties = torch.cuda.get_device_properties(device)
        record['device_name'] = properties.name
        record['device_memory'] = properties.total_memory
        record['cuda'] = torch.version.cuda
    return record
