"""Two processes train as one does on both their batches."""

import copy
from pathlib import Path
from typing import Dict, List

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from networks import backbone, classifier, joined, language_model
from processes import in_two_processes
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fma_vision.models.backbones.blocks import Block
from fma_vision.models.lm.blocks import LMBlock

# Batches of other sizes: fewer levels, so that weights have nothing to do.
IMAGES = [torch.randn(4, 3, *size) for size in ((40, 50), (9, 8), (33, 70))]
TEXTS = [torch.randint(13, (4, length)) for length in (70, 3, 41)]
CONV = dict(type='FMAttention2D', cell_size=2, summaries='conv')
RELATIVE = dict(type='FMAttention2D', cell_size=2, positions='relative')
CASES = {
    'backbone': (lambda: backbone(CONV), IMAGES),
    'checkpointing': (lambda: backbone(CONV, with_cp=True), IMAGES),
    'frozen': (lambda: backbone(CONV, frozen_stages=0), IMAGES),
    'both':
    (lambda: backbone(RELATIVE, frozen_stages=0, with_cp=True), IMAGES),
    'mano': (lambda: backbone(
        dict(type='MANOAttention', window_size=4, downsample='conv')), IMAGES),
    'language': (lambda: language_model(with_cp=True), TEXTS),
    'classifier': (classifier, TEXTS),
}


def train(net: nn.Module, batches: List[Tensor]) -> Dict[str, Tensor]:
    """A few steps; gives losses, the last gradients and the weights."""
    net.train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=.05, momentum=.9)
    found = {}
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = joined(net(batch)).square().mean()
        loss.backward()
        optimizer.step()
        found[f'loss {step}'] = loss.detach()
    for name, value in net.named_parameters():
        name = name.removeprefix('module.')
        found[name] = value.detach()
        if value.grad is not None:
            found[f'gradient of {name}'] = value.grad
    return found


def check(case: str, wrap: callable) -> None:
    """Compare one of two processes with one process alone."""
    build, batches = CASES[case]
    # The batches of this process, which it drew itself, are not the others'.
    batches = [batch.clone() for batch in batches]
    for batch in batches:
        dist.broadcast(batch, 0)
    net, _ = build()
    expected = train(copy.deepcopy(net), batches)
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    found = train(wrap(net), [batch[mine] for batch in batches])
    assert set(found) == set(expected), case
    for name, value in found.items():
        if name.startswith('loss'):
            dist.all_reduce(value)
            value = value / 2
        elif isinstance(value, dist.tensor.DTensor):
            value = value.full_tensor()
        where = f'{case}, {wrap.__name__}, {name}'
        torch.testing.assert_close(
            value,
            expected[name],
            rtol=1e-4,
            atol=1e-5,
            msg=lambda text, where=where: f'{where}: {text}')


def _shard(net: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard
    mesh = dist.device_mesh.init_device_mesh('cpu', (2, ))
    for module in net.modules():
        if isinstance(module, (Block, LMBlock)):
            fully_shard(module, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def _all_cases() -> None:
    wraps = [DistributedDataParallel]
    if hasattr(torch.distributed.fsdp, 'fully_shard'):  # from torch 2.6 on
        wraps.append(_shard)
    for case in CASES:
        for wrap in wraps:
            check(case, wrap)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Data parallel without a search for unused parameters, and sharded."""
    in_two_processes(_all_cases, tmp_path)
