"""Networks by torch.export, ONNX and torch.jit.trace: the same numbers."""

import io
import warnings
from typing import Any, Dict, Iterator, List

import pytest
import torch
from networks import NETWORKS, backbone, joined
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from fma_kernels import functional

BASELINES = ('full', 'window', 'neighborhood', 'fmmformer', 'mano',
             'long_short', 'fastformer', 'filter')
OWN = [name for name in NETWORKS if name.split()[-1] not in BASELINES]
CLOSE = dict(rtol=1e-4, atol=1e-4)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    with torch.no_grad():
        yield
    torch._dynamo.reset()


def _others(name: str, inputs: Tensor) -> List[Tensor]:
    """Inputs of other sizes: odd, with fewer and with more levels."""
    if name.startswith('backbone'):
        return [torch.randn(1, 3, *sides) for sides in ((97, 133), (36, 61))]
    longer = inputs.repeat(1, 5)[:1]
    lengths = (69, 9) if 'learned' in name else (69, 9, 333)
    return [longer[:, :length] for length in lengths]


def _free(name: str) -> tuple:
    """Sizes that the exporter leaves open."""
    if name.startswith('backbone'):
        return ({
            axis: torch.export.Dim(side, min=32, max=1024)
            for axis, side in ((2, 'height'), (3, 'width'))
        }, )
    limit = 70 if 'learned' in name else 4096
    return ({1: torch.export.Dim('length', min=2, max=limit)}, )


@pytest.mark.sampled
@pytest.mark.parametrize('name', OWN)
def test_export_with_free_sizes(name):
    net, inputs = NETWORKS[name]()
    net.eval()
    program = torch.export.export(
        net, (inputs[:1], ), dynamic_shapes=_free(name)).module()
    for x in (inputs[:1], *_others(name, inputs)):
        torch.testing.assert_close(joined(program(x)), joined(net(x)), **CLOSE)


@pytest.mark.parametrize('name', [
    pytest.param(
        name,
        marks=[pytest.mark.slow] *
        (name not in ('backbone relative', 'language hierarchical')))
    for name in OWN
])
def test_two_graphs_for_all_sizes(name):
    net, inputs = NETWORKS[name]()
    net.eval()
    counter = CompileCounter()
    compiled = torch.compile(
        net, fullgraph=True, backend=counter, dynamic=True)
    for x in (inputs[:1], *_others(name, inputs)):
        torch.testing.assert_close(
            joined(compiled(x)), joined(net(x)), **CLOSE)
    assert counter.frame_count <= 2


# -------------------------------------------------------------------- ONNX
def _onnx(net: nn.Module, inputs: Tensor, current: bool) -> Any:
    """The model by the current exporter or the one before."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxscript')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if current:
            return torch.onnx.export(
                net, (inputs, ), dynamo=True, verbose=False).model_proto
        file = io.BytesIO()
        torch.onnx.export(
            net, (inputs, ), file, dynamo=False, opset_version=17)
    return onnx.load_from_string(file.getvalue())


def _run(model: Any, inputs: Tensor) -> Tensor:
    runtime = pytest.importorskip('onnxruntime')
    session = runtime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name
    found = session.run(None, {name: inputs.numpy()})
    return joined([torch.from_numpy(x) for x in found])


# The current exporter takes long, and these differ little from others.
ALIKE = ('language shared', 'language untied', 'language bidirectional',
         'language avg', 'language conv', 'classifier')


@pytest.mark.parametrize('name,current', [
    *((name, False) for name in OWN),
    *(pytest.param(name, True, marks=pytest.mark.slow)
      for name in OWN if name not in ALIKE),
    ('language avg', True),
])
def test_onnx(name, current):
    net, inputs = NETWORKS[name]()
    net.eval()
    model = _onnx(net, inputs, current)
    torch.testing.assert_close(
        _run(model, inputs), joined(net(inputs)), **CLOSE)


def _sizes(model: Any) -> Dict[str, int]:
    """Elements of the largest weight or table, and of the largest result."""
    onnx = pytest.importorskip('onnx')
    inferred = onnx.shape_inference.infer_shapes(model).graph
    constants = [x.dims for x in inferred.initializer]
    constants += [
        a.t.dims for node in inferred.node for a in node.attribute
        if a.name == 'value'
    ]
    results = [[side.dim_value for side in x.type.tensor_type.shape.dim]
               for x in inferred.value_info]

    def largest(shapes: list) -> int:
        return max(torch.Size(shape).numel() for shape in shapes)

    return dict(constants=largest(constants), results=largest(results))


@pytest.mark.parametrize('current', [
    pytest.param(False, id='older'),
    pytest.param(True, id='current', marks=pytest.mark.slow)
])
def test_onnx_grows_with_the_tokens(current):
    """Four times as many: a tensor quadratic in them would grow 16-fold."""
    net, _ = backbone(dict(type='FMAttention2D', cell_size=4))
    few, many = (
        _sizes(
            _onnx(net.eval(), torch.randn(1, 3, 8 * side, 6 * side), current))
        for side in (32, 64))
    for kind, elements in few.items():
        assert many[kind] < 8 * elements, (kind, few, many)


# ------------------------------------------------------------------- trace
@pytest.mark.parametrize('name', [
    'backbone avg', 'backbone rotary', 'backbone conv', 'backbone linear',
    'language hierarchical'
])
def test_trace(name):
    """Right at the traced size, saved and read again; with one warning."""
    net, inputs = NETWORKS[name]()
    net.eval()
    functional._warn_of_trace.cache_clear()
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, torch.enable_grad():
        warnings.resetwarnings()
        warnings.simplefilter('always', UserWarning)
        traced = torch.jit.trace(net, inputs, check_trace=False)
        torch.jit.save(traced, file)
        torch.jit.trace(net, inputs, check_trace=False)
    said = [str(x.message) for x in caught if 'traced size' in str(x.message)]
    assert len(said) == 1
    file.seek(0)
    traced = torch.jit.load(file)
    torch.testing.assert_close(
        joined(traced(inputs)), joined(net(inputs)), **CLOSE)
    other = torch.randn_like(inputs) if inputs.ndim > 2 else inputs.flip(1)
    torch.testing.assert_close(
        joined(traced(other)), joined(net(other)), **CLOSE)


def test_a_trace_says_nothing_else(run_python):
    result = run_python('import torch, fma_vision\n'
                        "net = fma_vision.FMATransformer('nano').eval()\n"
                        'torch.jit.trace(net, torch.randn(1, 3, 96, 64))\n')
    assert not result.returncode, result.stderr
    assert result.stderr.count('UserWarning') == 1, result.stderr
    assert 'right at the traced size' in result.stderr
    assert 'TracerWarning' not in result.stderr
