"""What the package needs, and what it finds by itself."""

import importlib.util

import pytest

BLOCK_OPENMMLAB = '''
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('mmengine', 'mmcv', 'mmseg', 'mmpretrain',
                                  'mmdet', 'mim'):
            raise ModuleNotFoundError(f'{name} is blocked', name=name)

sys.meta_path.insert(0, Blocker())
'''

needs_hosts = pytest.mark.skipif(
    any(
        importlib.util.find_spec(m) is None
        for m in ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')),
    reason='mmengine, mmcv, mmseg and mmpretrain are needed')


def _check(result) -> str:
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_works_with_torch_and_timm_only(run_python, tmp_path):
    out = _check(
        run_python(BLOCK_OPENMMLAB + f'''
import timm
import torch
import fma_vision
from fma_vision import FMATransformer, registry
from fma_vision.layers import FMAttention1D, FMAttention2D

assert not registry.HAS_MMENGINE
assert FMAttention2D(16, 2)(torch.randn(1, 9, 14, 16)).shape == (1, 9, 14, 16)
assert FMAttention1D(16, 2, causal=True)(torch.randn(1, 50, 16)).ndim == 3
model = FMATransformer('nano', out_indices=(0, 3))
model(torch.randn(1, 3, 50, 70))[1].sum().backward()
net = timm.create_model('fma_tiny', features_only=True)
assert len(net(torch.randn(1, 3, 64, 64))) == 4

# `init_cfg` is honoured as far as it can be.
path = {str(tmp_path / 'weights.pth')!r}
torch.save(dict(state_dict=dict(('backbone.' + k, v)
           for k, v in model.state_dict().items())), path)
for prefix in ('backbone', 'backbone.'):
    other = FMATransformer('nano', out_indices=(0, 3), init_cfg=dict(
        type='Pretrained', checkpoint=path, prefix=prefix))
    other.init_weights()
    assert all(torch.equal(a, b) for a, b in
               zip(other.parameters(), model.parameters()))
for cfg, message in [
        (dict(type='TruncNormal'), 'needs MMEngine'),
        (dict(type='Pretrained', checkpoint=path, prefix='neck.'),
         'holds no parameter')]:
    try:
        FMATransformer('nano', init_cfg=cfg).init_weights()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError('must be refused')
try:
    fma_vision.build_attention(dict(type='Nothing'), 16, 2)
except ValueError as error:
    assert 'unknown' in str(error)
try:
    registry.MODELS.build(dict(type='FMATransformer'))
except ImportError as error:
    assert 'fma_vision[openmmlab]' in str(error)
else:
    raise AssertionError('must be refused')
assert not set(sys.modules).intersection(('mmengine', 'mmcv', 'mmseg'))
print('done')
'''))
    assert out == 'done\n'


@pytest.mark.slow
@needs_hosts
def test_hosts_find_the_backbone_without_custom_imports(run_python):
    out = _check(
        run_python('''
import sys
from mmengine.registry import MODELS, DefaultScope
import mmpretrain.registry, mmseg.registry

assert not any(m.startswith('fma_vision') for m in sys.modules)
cfg = dict(type='fma_vision.FMATransformer', arch='nano',
           attn=dict(type='fma_vision.FMAttention2D', cell_size=2))
for registry in (mmseg.registry.MODELS, mmpretrain.registry.MODELS, MODELS):
    model = registry.build(dict(cfg))
    assert model.stages[0].blocks[0].attn.cell_size == 2
from mmengine.model import BaseModule
assert isinstance(model, BaseModule)
print('done')
'''))
    assert out.endswith('done\n')


@pytest.mark.slow
@needs_hosts
def test_console_stays_clean(run_python):
    result = run_python('''
import fma_vision
import mmcv.cnn, mmpretrain.datasets, mmpretrain.models
import mmseg.datasets, mmseg.models
from mmengine.logging import print_log
print_log('other messages still show')
''')
    assert result.returncode == 0, result.stderr
    assert result.stdout == 'other messages still show\n'
    assert result.stderr == ''


@needs_hosts
def test_children_have_our_scope():
    from mmengine import registry as root

    from fma_vision import registry
    for name in ('MODELS', 'DATASETS', 'TRANSFORMS', 'METRICS'):
        child = getattr(registry, name)
        assert child.scope == 'fma_vision'
        assert getattr(root, name).children['fma_vision'] is child
    assert root.MODELS.get('fma_vision.FMATransformer').__name__ == (
        'FMATransformer')
    assert root.MODELS.get('fma_vision.WindowAttention').__name__ == (
        'WindowAttention')
