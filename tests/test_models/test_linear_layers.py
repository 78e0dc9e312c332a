"""Every linear layer is called: hooks, adapters and shards rely on it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from networks import NETWORKS, joined
from processes import in_two_processes, need_fully_shard
from torch import nn


def _linears(net: nn.Module) -> dict:
    found = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert found
    return found


@pytest.mark.parametrize('name', NETWORKS)
def test_hooks_fire_on_every_linear_layer(name):
    net, inputs = NETWORKS[name]()
    called = set()
    linears = _linears(net)
    for key, module in linears.items():
        module.register_forward_hook(lambda *_, key=key: called.add(key))
    for training in (True, False):
        called.clear()
        net.train(training)(inputs)
        assert called == set(linears)


def test_losses_call_an_untied_head():
    net, tokens = NETWORKS['language untied']()
    calls = []
    net.head.proj.register_forward_hook(lambda *_: calls.append(1))
    net.loss(tokens)
    net.nats(tokens)
    assert len(calls) == 2


@torch.inference_mode()
def test_steps_call_every_linear_layer():
    """Hooks, and a forward that others replaced as accelerate does."""
    net, tokens = NETWORKS['language hierarchical']()
    net.eval()
    state, called = net.init_state(len(tokens)), set()
    for key, module in _linears(net).items():

        def forward(x, key=key, forward=module.forward):
            called.add(key)
            return forward(x)

        module.forward = forward
    for token in tokens.T[:3]:
        called.clear()
        _, state = net.step(token, state)
        assert called == set(_linears(net))


@pytest.mark.parametrize('name', NETWORKS)
def test_lora_trains_and_merges(name):
    peft = pytest.importorskip('peft')
    net, inputs = NETWORKS[name]()
    net.eval()
    before = joined(net(inputs)).detach()
    # Adapters that begin at random, not at zero.
    config = peft.LoraConfig(
        r=2, target_modules=list(_linears(net)), init_lora_weights=False)
    adapted = peft.get_peft_model(net, config)
    out = joined(adapted(inputs))
    assert not torch.allclose(out, before, rtol=1e-3, atol=1e-3)
    out.square().sum().backward()
    adapters = {n: p for n, p in net.named_parameters() if 'lora_' in n}
    assert len(adapters) == 2 * len(config.target_modules)
    for key, parameter in adapters.items():
        assert parameter.grad is not None and parameter.grad.any(), key
    merged = joined(adapted.merge_and_unload()(inputs))
    torch.testing.assert_close(merged, out, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------- several processes
def _shard() -> None:
    """One of two processes; each reads the same batch."""
    from torch.distributed.fsdp import fully_shard
    mesh = dist.device_mesh.init_device_mesh('cpu', (2, ))
    for name in NETWORKS:
        net, inputs = NETWORKS[name]()
        expected = joined(net(inputs))
        expected.square().mean().backward()
        grads = {key: p.grad for key, p in net.named_parameters()}
        net.zero_grad()
        for module in _linears(net).values():
            fully_shard(module, mesh=mesh)
        out = joined(net(inputs))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        out.square().mean().backward()
        for key, parameter in net.named_parameters():
            grad = parameter.grad
            if isinstance(grad, dist.tensor.DTensor):
                grad = grad.full_tensor()
            torch.testing.assert_close(grad, grads[key], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_every_linear_layer_may_be_sharded(tmp_path: Path) -> None:
    need_fully_shard()
    in_two_processes(_shard, tmp_path)
