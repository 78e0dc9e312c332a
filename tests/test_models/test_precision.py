"""bfloat16 and int8 on a CPU beside float32."""

import copy

import numpy as np
import pytest
import torch
from networks import NETWORKS, joined
from PIL import Image
from torch import Tensor, nn

FORMS = ('bfloat16', 'int8')
pytestmark = pytest.mark.filterwarnings(
    'ignore:torch.ao:DeprecationWarning',
    'ignore:torch.quantize_per:UserWarning')


def _autocast(form: str) -> torch.autocast:
    return torch.autocast('cpu', torch.bfloat16, enabled=form == 'bfloat16')


def _converted(net: nn.Module, form: str) -> nn.Module:
    if form != 'int8':
        return net
    quantised = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(net), {nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(m, nn.Linear) for m in quantised.modules())
    return quantised


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).norm() / expected.norm())


# Of 16 channels, not trained: rounding 8 bits of each operand weighs most
# where a gain follows.
@pytest.mark.parametrize('form, bound', [('bfloat16', .02), ('int8', .12)])
@pytest.mark.parametrize('name', NETWORKS)
def test_inference_stays_close(name, form, bound):
    net, inputs = NETWORKS[name]()
    net.eval()
    with torch.no_grad(), _autocast(form):
        got = joined(_converted(net, form)(inputs))
    with torch.no_grad():
        expected = joined(net(inputs))
    assert 0 < _error(got.float(), expected) < bound


@pytest.mark.parametrize('name', NETWORKS)
def test_gradients_in_bfloat16_stay_close(name):
    net, inputs = NETWORKS[name]()
    grads = []
    for form in ('float32', 'bfloat16'):
        net.zero_grad()
        with _autocast(form):
            out = joined(net(inputs))
        out.float().square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert 0 < _error(grads[1], grads[0]) < .06


# ------------------------------------------------------------ trained models
@pytest.mark.parametrize('form', FORMS)
def test_a_segmentor_sees_the_same(form, load_script):
    pytest.importorskip('mmseg')
    demo = load_script('demo/image_demo.py')
    predictor = demo.Predictor(demo.DEMO_CONFIG, demo.DEMO_CHECKPOINT, 'cpu')
    image = np.array(Image.open(demo.sample_photograph()).resize((320, 213)))
    expected = predictor(image)
    predictor.model = _converted(predictor.model, form)
    with _autocast(form):
        got = predictor(image)
    assert len(np.unique(expected)) > 2
    assert (got == expected).mean() > .97


@pytest.mark.parametrize('form', FORMS)
def test_a_language_model_reads_as_well(form, load_script):
    pytest.importorskip('mmengine')
    demo = load_script('demo/lm_demo.py')
    net, vocabulary = demo.load_model(
        str(demo.DEMO_CONFIG), str(demo.DEMO_CHECKPOINT), 'cpu')
    tokens = torch.as_tensor(vocabulary.encode(demo.DEMO_PROMPT))[None].long()
    with torch.no_grad():
        expected = net.eval().loss(tokens)
        with _autocast(form):
            loss = _converted(net, form).loss(tokens)
    torch.testing.assert_close(loss, expected, rtol=.01, atol=.01)
