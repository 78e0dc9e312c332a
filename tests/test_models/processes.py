"""Two processes on one CPU, for tests of what is shared between them."""

from pathlib import Path
from typing import Any, Callable

import pytest
import torch
import torch.distributed as dist


def _join(rank: int, meeting: str, work: Callable, *args: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=meeting, rank=rank, world_size=2)
    work(*args)
    dist.destroy_process_group()


def in_two_processes(work: Callable, folder: Path, *args: Any) -> None:
    """Run a function of a module in each of two processes of a group."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip('two processes need gloo')
    meeting = (folder / 'meeting').as_uri()
    torch.multiprocessing.spawn(_join, (meeting, work, *args), nprocs=2)


def need_fully_shard() -> None:
    """Skip a test where PyTorch is too old for it."""
    fsdp = pytest.importorskip('torch.distributed.fsdp')
    if not hasattr(fsdp, 'fully_shard'):
        pytest.skip('fully_shard came with torch 2.6')
