"""Networks under torch.compile: no graph break, the same numbers."""

import re
from typing import Callable, Dict, Tuple

import pytest
import torch
from networks import NETWORKS, joined, language_model
from torch import Tensor, nn

from fma_kernels.testing import missing_compiler
from fma_vision.layers import ConditionalPosition

needs_compiler = pytest.mark.skipif(
    missing_compiler() is not None, reason=str(missing_compiler()))


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _step(net: nn.Module, function: Callable,
          inputs: Tensor) -> Tuple[Tensor, Dict[str, Tensor]]:
    """What a function gives, and the gradients of its network."""
    net.zero_grad()
    out = joined(function(inputs))
    out.square().mean().backward()
    return out.detach(), {n: p.grad for n, p in net.named_parameters()}


def _compare(net: nn.Module, compiled: Callable, inputs: Tensor,
             function: Callable) -> None:
    """In training and in inference."""
    expected, wanted = _step(net, function, inputs)
    out, grads = _step(net, compiled, inputs)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for name, grad in wanted.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5)
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            joined(compiled(inputs)),
            joined(function(inputs)),
            rtol=1e-4,
            atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', [
    n for n in NETWORKS
    if n.split()[-1] not in ('neighborhood', 'fmmformer', 'mano', 'long_short',
                             'fastformer', 'filter')
])
def test_one_graph_with_the_same_numbers(name):
    net, inputs = NETWORKS[name]()
    compiled = torch.compile(net, fullgraph=True, backend='aot_eager')
    _compare(net, compiled, inputs, net)


@pytest.mark.parametrize('kind', ['checkpoints', 'mask', 'loss', 'chunks'])
def test_other_ways_through_a_language_model(kind):
    options = dict(
        checkpoints=dict(with_cp=True),
        chunks=dict(head=dict(chunk_elements=500, tied=False)))
    net, tokens = language_model(**options.get(kind, {}))
    real = torch.rand(tokens.shape) < .7
    function = dict(
        checkpoints=net,
        mask=lambda tokens: net(tokens, real) * real[..., None],
        loss=lambda tokens: net.loss(tokens)[None],
        chunks=lambda tokens: net.loss(tokens)[None])[kind]
    compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
    _compare(net, compiled, tokens, function)


@pytest.mark.parametrize('amp', [False, True])
def test_a_compiled_convolution_is_the_same(amp):
    position = ConditionalPosition(24)
    compiled = torch.compile(position, fullgraph=True, backend='aot_eager')
    x = torch.randn(2, 10, 13, 24, requires_grad=True)
    results = []
    for module in (position, compiled):
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            out = module(x)
        grads = torch.autograd.grad(out.float().square().sum(),
                                    [x, *position.parameters()])
        results.append((out, *grads))
    for got, expected in zip(*results):
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


# ------------------------------------------------------------ machine code
def _code(net: nn.Module, inputs: Tensor) -> str:
    """Compare, and return what was compiled, without caches."""
    from torch._inductor.utils import fresh_inductor_cache, run_and_get_code
    compiled = torch.compile(net, fullgraph=True)
    with fresh_inductor_cache():
        found = run_and_get_code(_compare, net, compiled, inputs, net)[1]
    return '\n'.join(found)


def _buffers(code: str) -> list:
    """Shapes and strides."""
    pairs = re.findall(r'= empty_strided_cpu\(\(([\d, ]+)\), \(([\d, ]+)\)',
                       code)
    return [[[int(n) for n in numbers.split(',') if n.strip()]
             for numbers in pair] for pair in pairs]


@needs_compiler
@pytest.mark.slow
def test_machine_code_of_a_backbone():
    """The same numbers; no map is laid out in an order of its own."""
    code = _code(*NETWORKS['backbone avg']())
    maps = [(shape, strides) for shape, strides in _buffers(code)
            if shape[:3] in ([2, 10, 13], [2, 5, 7]) and shape[3:] > [1]]
    assert maps
    for shape, strides in maps:
        assert strides == sorted(strides, reverse=True), (shape, strides)


@needs_compiler
@pytest.mark.slow
def test_machine_code_of_a_language_model():
    """The same numbers; rotary tables are not worked out for each head."""
    code = _code(*NETWORKS['language hierarchical']())
    kernels = re.findall(r"async_compile.cpp_pybinding\(.*?'''\)", code,
                         re.DOTALL)
    tables = [kernel for kernel in kernels if '.cos()' in kernel]
    assert tables
    for kernel in tables:  # loops over places and pairs of channels alone
        assert 'for(int64_t x1=' in kernel
        assert 'for(int64_t x2=' not in kernel
