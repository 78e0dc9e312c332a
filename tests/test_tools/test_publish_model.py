"""Published checkpoints: small, loadable, named by their hash, or absent."""

import hashlib

import numpy as np
import pytest
import torch
from evil import spoil
from torch import nn

mmengine = pytest.importorskip('mmengine')

from fma_vision.engine import UserError  # noqa: E402

CONFIG = '''
default_scope = 'mmpretrain'
work_dir = '/home/someone/run'
load_from = '/home/someone/start.pth'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='LeNet5',
        init_cfg=dict(
            checkpoint='/home/someone/begin.pth',
            prefix='backbone.',
            type='Pretrained')),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=4))
resume = False
'''


@pytest.fixture
def publish_model(load_script):
    return load_script('tools/model_converters/publish_model.py')


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def training_checkpoint(**changes) -> dict:
    """What a runner saves in mid-training, weights averaged or not."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = dict(
        meta=dict(
            dataset_meta=dict(
                classes=('sky', 'road'),
                palette=[(1, 2, 3), (4, 5, 6)],
                label_map=None,
                weights=np.array([1., 2.])),
            cfg=CONFIG,
            epoch=3,
            iter=120,
            experiment_name='run_on_my_machine',
            hook_msgs=dict(last_ckpt='/home/someone/run/iter_1.pth')),
        state_dict=model.state_dict(),
        message_hub=dict(log_scalars={}),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(last_step=1)])
    content.update(changes)
    return content


def save(content: dict, folder) -> str:
    path = folder / 'epoch_3.pth'
    torch.save(content, path)
    return str(path)


def run(tool, content: dict, folder, *options: str) -> dict:
    """Publishes a checkpoint and loads the single file that appears."""
    source = save(content, folder)
    tool.main([source, str(folder / 'out' / 'net.pth'), *options])
    written = list((folder / 'out').iterdir())
    assert len(written) == 1, written
    data = written[0].read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    assert written[0].name == f'net-{digest[:8]}.pth'
    # The strict loader: nothing in the file but tensors and plain types.
    return torch.load(written[0], weights_only=True)


def assert_nothing_written(folder) -> None:
    out = folder / 'out'
    assert not out.exists() or not list(out.iterdir())


def test_strips_what_training_needs(publish_model, tmp_path):
    content = training_checkpoint()
    found = run(publish_model, content, tmp_path)
    assert set(found) == {'meta', 'state_dict'}
    assert found['state_dict'].keys() == content['state_dict'].keys()
    for name, value in content['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value)
        assert found['state_dict'][name].dtype == value.dtype
    network().load_state_dict(found['state_dict'])


def test_keeps_what_a_demo_needs(publish_model, tmp_path):
    meta = run(publish_model, training_checkpoint(), tmp_path)['meta']
    assert meta['dataset_meta'] == dict(
        classes=['sky', 'road'],
        palette=[[1, 2, 3], [4, 5, 6]],
        label_map=None,
        weights=[1., 2.])
    assert (meta['epoch'], meta['iter']) == (3, 120)
    assert 'someone' not in str(meta)
    assert 'run_on_my_machine' not in str(meta)
    cfg = mmengine.Config.fromstring(meta['cfg'], '.py')
    assert cfg.model.head.num_classes == 3


def test_half_precision(publish_model, tmp_path):
    content = training_checkpoint()
    found = run(publish_model, content, tmp_path, '--fp16')['state_dict']
    assert found['0.weight'].dtype == torch.float16
    assert found['1.running_var'].dtype == torch.float32
    assert found['1.num_batches_tracked'].dtype == torch.int64
    torch.testing.assert_close(
        found['0.weight'].float(),
        content['state_dict']['0.weight'],
        rtol=1e-3,
        atol=1e-6)
    network().load_state_dict(found)


def averaged(tmp_path) -> dict:
    """A checkpoint as mmengine's EMAHook leaves it: average in front."""
    content = training_checkpoint()
    last = {
        f'module.{name}': value.clone()
        for name, value in content['state_dict'].items()
    }
    content['ema_state_dict'] = dict(last, steps=torch.tensor(7))
    content['state_dict']['0.weight'] = torch.full((4, 3, 3, 3), 0.5)
    return content


@pytest.mark.parametrize('options', [(), ('--ema', )])
def test_publishes_the_average(publish_model, tmp_path, options):
    content = averaged(tmp_path)
    found = run(publish_model, content, tmp_path, *options)
    assert (found['state_dict']['0.weight'] == 0.5).all()
    assert 'steps' not in found['state_dict']


def test_publishes_the_last_step_on_request(publish_model, tmp_path):
    content = averaged(tmp_path)
    found = run(publish_model, content, tmp_path, '--raw')['state_dict']
    assert torch.equal(found['0.weight'],
                       content['ema_state_dict']['module.0.weight'])
    assert found.keys() == content['state_dict'].keys()


def test_agrees_with_the_hook_that_averages(publish_model):
    """The swap that the tool relies on is what mmengine does."""
    from mmengine.hooks import EMAHook
    from mmengine.model import ExponentialMovingAverage
    model = network()
    hook = EMAHook()
    hook.ema_model = ExponentialMovingAverage(model, momentum=0.5)
    hook.src_model = model
    with torch.no_grad():
        model[0].weight.fill_(3.)
    hook.ema_model.update_parameters(model)
    with torch.no_grad():
        model[0].weight.fill_(1.)
    hook.ema_model.update_parameters(model)
    content = dict(state_dict=model.state_dict())
    hook.before_save_checkpoint(None, content)
    chosen = publish_model.select_weights(content, ema=True)
    assert (chosen['0.weight'] == 2.).all()
    assert (publish_model.select_weights(content,
                                         raw=True)['0.weight'] == 1.).all()


def test_unwraps_names(publish_model, tmp_path):
    state = {
        f'module._orig_mod.{name}': value
        for name, value in network().state_dict().items()
    }
    found = run(publish_model, training_checkpoint(state_dict=state), tmp_path)
    network().load_state_dict(found['state_dict'])


def test_stores_no_more_than_the_weights(publish_model, tmp_path):
    """A slice must not drag the storage it was cut from along."""
    state = dict(weight=torch.randn(1000, 1000)[:2])
    run(publish_model, dict(state_dict=state), tmp_path)
    written = next((tmp_path / 'out').iterdir())
    assert written.stat().st_size < 50_000


def test_same_weights_same_name(publish_model, tmp_path):
    content = training_checkpoint()
    run(publish_model, content, tmp_path)
    # A second run replaces the file by itself.
    run(publish_model, content, tmp_path)


@pytest.mark.parametrize('change,options,message', [
    (dict(), ('--ema', ), 'ema_state_dict'),
    (dict(), ('--raw', ), 'ema_state_dict'),
    (dict(state_dict=dict(a=torch.tensor([1., float('nan')]))),
     (), 'weight a .* not finite'),
    (dict(state_dict=dict(a=torch.tensor([1e5]))),
     ('--fp16', ), 'weight a .* beyond 65504'),
    (dict(state_dict=None), (), 'no state_dict'),
])
def test_refuses_and_writes_nothing(publish_model, tmp_path, change, options,
                                    message):
    source = save(training_checkpoint(**change), tmp_path)
    with pytest.raises(UserError, match=message):
        publish_model.main(
            [source, str(tmp_path / 'out' / 'net.pth'), *options])
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize('content,message', [
    (None, 'no checkpoint file'),
    (b'', 'cannot be read'),
    (b'not a checkpoint', 'cannot be read'),
])
def test_unreadable_files(publish_model, tmp_path, content, message):
    source = tmp_path / 'broken.pth'
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=message):
        publish_model.main([str(source), str(tmp_path / 'out' / 'net.pth')])
    assert_nothing_written(tmp_path)


def test_truncated_file(publish_model, tmp_path):
    source = save(training_checkpoint(), tmp_path)
    data = open(source, 'rb').read()
    with open(source, 'wb') as file:
        file.write(data[:len(data) // 2])
    with pytest.raises(UserError, match='cannot be read'):
        publish_model.main([source, str(tmp_path / 'out' / 'net.pth')])
    assert_nothing_written(tmp_path)


def test_never_runs_code(publish_model, tmp_path):
    proof = tmp_path / 'proof'
    source = spoil(
        save(training_checkpoint(), tmp_path), tmp_path / 'evil.pth', proof)
    with pytest.raises(UserError, match='holds code besides weights') as info:
        publish_model.main([source, str(tmp_path / 'out' / 'net.pth')])
    assert '\n' not in str(info.value)
    assert not proof.exists()
    assert_nothing_written(tmp_path)


def test_an_interrupted_write_leaves_nothing(publish_model, tmp_path,
                                             monkeypatch):

    def fail(source, target):
        raise OSError('disk full')

    from fma_vision.engine import files
    monkeypatch.setattr(files.os, 'replace', fail)
    source = save(training_checkpoint(), tmp_path)
    with pytest.raises(OSError, match='disk full'):
        publish_model.main([source, str(tmp_path / 'out' / 'net.pth')])
    assert_nothing_written(tmp_path)


def test_out_must_be_a_checkpoint_name(publish_model, capsys):
    with pytest.raises(SystemExit):
        publish_model.parse_args(['in.pth', 'folder/out'])
    assert '.pth' in capsys.readouterr().err


class TestWithConfig:
    """``--config`` proves that the pair belongs together."""

    @pytest.fixture
    def config(self, tmp_path) -> str:
        pytest.importorskip('mmpretrain')
        path = tmp_path / 'nano.py'
        path.write_text(
            "default_scope = 'mmpretrain'\n"
            "custom_imports = dict(imports=['fma_vision.models'],"
            'allow_failed_imports=False)\n'
            "model = dict(type='ImageClassifier', backbone=dict("
            "type='fma_vision.FMATransformer', arch=dict(embed_dims=8, "
            'depths=[1, 1], num_heads=[1, 2])), neck=dict('
            "type='GlobalAveragePooling'), head=dict(type='LinearClsHead', "
            'num_classes=3, in_channels=16))\n')
        return str(path)

    def test_matching_weights_are_published(self, publish_model, tmp_path,
                                            config):
        cfg = publish_model.load_model_config(config)
        model = publish_model.build_model(cfg)
        found = run(publish_model, dict(state_dict=model.state_dict()),
                    tmp_path, '--config', config, '--fp16')
        other = publish_model.build_model(cfg)
        other.load_state_dict(found['state_dict'])
        torch.testing.assert_close(
            other.head.fc.weight, model.head.fc.weight, rtol=1e-3, atol=1e-6)

    @pytest.mark.parametrize('spoil,message', [
        (lambda state: state.pop('head.fc.bias'),
         'the checkpoint has no head.fc.bias'),
        (lambda state: state.update(extra=torch.zeros(1)),
         'the model has no extra'),
        (lambda state: state.update({'head.fc.bias': torch.zeros(4)}),
         r'head.fc.bias has shape \(4,\), the model needs \(3,\)'),
    ])
    def test_others_are_refused(self, publish_model, tmp_path, config, spoil,
                                message):
        cfg = publish_model.load_model_config(config)
        state = publish_model.build_model(cfg).state_dict()
        spoil(state)
        source = save(dict(state_dict=state), tmp_path)
        with pytest.raises(UserError, match=message):
            publish_model.main([
                source,
                str(tmp_path / 'out' / 'net.pth'), '--config', config
            ])
        assert_nothing_written(tmp_path)
