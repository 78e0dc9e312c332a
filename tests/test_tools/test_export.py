"""Models in one file for other runtimes: right, or not written."""

import pytest
import torch

pytest.importorskip('mmengine')

from fma_vision.engine import UserError, build  # noqa: E402

HEAD = '''
default_scope = '{scope}'
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
backbone = dict(
    type='fma_vision.FMATransformer', out_indices={indices},
    arch=dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2]))
'''
CLASSIFIER = HEAD.format(
    scope='mmpretrain', indices=(1, )) + '''
model = dict(
    type='ImageClassifier', backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
'''
SEGMENTOR = HEAD.format(
    scope='mmseg', indices=(0, 1)) + '''
norm = dict(type='SyncBN', requires_grad=True)
part = dict(channels=8, num_classes=3, norm_cfg=norm, align_corners=False)
model = dict(
    type='EncoderDecoder', backbone=backbone,
    data_preprocessor=dict(type='SegDataPreProcessor'),
    neck=dict(type='FPN', in_channels=[8, 16], out_channels=8, num_outs=2),
    decode_head=dict(
        type='FPNHead', in_channels=[8, 8], in_index=[0, 1],
        feature_strides=[4, 8], **part),
    auxiliary_head=dict(
        type='FCNHead', in_channels=8, in_index=1, num_convs=1, **part),
    train_cfg=dict(), test_cfg=dict(mode='slide', crop_size=(32, 32),
                                    stride=(16, 16)))
'''
LANGUAGE = '''
default_scope = 'fma_vision'
custom_imports = dict(
    imports=['fma_vision.models'], allow_failed_imports=False)
model = dict(
    type='LanguageModelTask',
    net=dict(type='FMALanguageModel', vocab_size=17, embed_dims=16, depth=1,
             num_heads=2, cell_size=4, positions='learned', max_length=80))
'''
CONFIGS = {
    'classifier': (CLASSIFIER, ['80', '96']),
    'segmentor': (SEGMENTOR, ['80', '96']),
    'language': (LANGUAGE, ['70'])
}


@pytest.fixture
def tool(load_script):
    return load_script('tools/deployment/export.py')


@pytest.fixture
def pair(tmp_path):
    """Writes a config and weights that fit."""

    def write(text: str) -> list:
        config = tmp_path / 'net.py'
        config.write_text(text)
        torch.manual_seed(0)
        model = build.build_model(build.load_model_config(str(config)))
        checkpoint = tmp_path / 'weights.pth'
        torch.save(dict(state_dict=model.state_dict()), checkpoint)
        return [str(config), str(checkpoint)]

    return write


@pytest.mark.parametrize('kind', CONFIGS)
@pytest.mark.parametrize('form', ['onnx', 'pt2'])
def test_writes_and_checks(tool, pair, tmp_path, capsys, kind, form):
    if form == 'onnx':
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(package)
    if kind == 'segmentor':
        pytest.importorskip('mmseg')
    text, shape = CONFIGS[kind]
    out = tmp_path / 'made' / f'net.{form}'
    arguments = [*pair(text), '--format', form, '--shape', *shape]
    tool.main([*arguments, '--out', str(out)])
    said = capsys.readouterr().out
    assert said.count('largest difference') == (2 if form == 'pt2' else 1)
    # The file alone gives what the model gives.
    model, inputs = tool.read_model(tool.parse_args(arguments))
    with torch.no_grad():
        found = tool.FORMATS[form][1](out.read_bytes())(inputs[0])
        torch.testing.assert_close(
            found, model(inputs[0]), rtol=1e-4, atol=1e-4)
    if kind == 'segmentor':
        assert found.shape == (1, 3, 80, 96)


def test_a_wrong_file_is_not_written(tool, pair, tmp_path, monkeypatch):
    monkeypatch.setitem(
        tool.FORMATS, 'pt2',
        (lambda model, x: b'', lambda data: lambda x: x[0, 0, 0, :1]))
    out = tmp_path / 'net.pt2'
    with pytest.raises(UserError, match='differs by .* nothing is written'):
        tool.main([
            *pair(CLASSIFIER), '--format', 'pt2', '--shape', '64', '--out',
            str(out)
        ])
    assert not out.exists()


def test_errors_are_one_line(tool, pair, tmp_path, monkeypatch):
    config, checkpoint = pair(CLASSIFIER)
    with pytest.raises(UserError, match='no checkpoint file'):
        tool.main([config, str(tmp_path / 'none.pth')])
    state = torch.load(checkpoint)['state_dict']
    del state['head.fc.bias']
    torch.save(state, checkpoint)
    with pytest.raises(UserError, match='1 missing .first: head.fc.bias'):
        tool.main([config, checkpoint])
    config, checkpoint = pair(CLASSIFIER)

    def refuse(model, x):
        raise RuntimeError('no such\noperator')

    monkeypatch.setitem(tool.FORMATS, 'onnx', (refuse, None))
    with pytest.raises(
            UserError,
            match='does not export at .1, 3, 64, 64.: '
            'RuntimeError: no such operator'):
        tool.main([config, checkpoint, '--shape', '64'])


def test_texts_have_one_length(tool, pair):
    with pytest.raises(UserError, match='one number'):
        tool.main([*pair(LANGUAGE), '--shape', '8', '9'])


def test_free_sizes_have_a_least(tool, pair):
    with pytest.raises(UserError, match='from 64 on, got --shape 37 113'):
        tool.main(
            [*pair(CLASSIFIER), '--format', 'pt2', '--shape', '37', '113'])
    with pytest.raises(UserError, match='from 2 on, got --shape 1'):
        tool.main([*pair(LANGUAGE), '--format', 'pt2', '--shape', '1'])
