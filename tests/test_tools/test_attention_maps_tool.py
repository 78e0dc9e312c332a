"""The tool that draws where tokens look, on a small config."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip('mmseg')

from synthetic import small_config, write_paired

from fma_vision.engine import UserError
from fma_vision.utils.configs import build_model, load_model_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/camvid/{}-nano_fpn_1xb4-400_camvid-240x320.py'


@pytest.fixture(scope='module')
def tool(load_script):
    return load_script('tools/visualization/attention_maps.py')


@pytest.fixture(scope='module')
def call(tmp_path_factory):
    """Arguments for a model, by the beginning of its config's name."""
    root = tmp_path_factory.mktemp('maps')
    write_paired(root / 'data/camvid', 11)

    def arguments(kind: str):
        config, weights = (root / f'{kind}{x}' for x in ('.py', '.pth'))
        small_config(Path(str(CONFIG).format(kind)), root, config)
        model = build_model(load_model_config(str(config)))
        torch.save(dict(state_dict=model.state_dict()), weights)
        return [
            str(config),
            str(weights), '--device', 'cpu', '--work-dir',
            str(root / 'log')
        ]

    return arguments


@pytest.mark.parametrize('kind', ['fma', 'swin'])
def test_picture(tool, call, kind, tmp_path, capsys) -> None:
    out = tmp_path / 'new/maps.png'
    given = [*call(kind), '--at', '0.2,0.9', '0.99,0', '--out', str(out)]
    image, maps = tool.measure(tool.parse_args(given))
    assert image.dtype == np.uint8 and image.shape[2] == 3
    assert [m.stride for m in maps] == [4, 8, 16, 32]
    for found in maps:
        # Multiples of an even share; the map covers the image.
        assert found.shares.mean((1, 2)) == pytest.approx(1, abs=1e-4)
        sides = [side * found.stride for side in found.shares.shape[1:]]
        assert all(0 <= a - b < found.stride
                   for a, b in zip(sides, image.shape))
    tool.main([
        *given, '--layers', 'backbone.stages.1.blocks.0.attn',
        'backbone.stages.0.blocks.0.attn'
    ])
    assert '2 layers, 2 places' in capsys.readouterr().out
    with Image.open(out) as picture:
        assert min(picture.size) > 100


def test_colours_are_those_of_the_file(tool, call) -> None:
    image, _ = tool.measure(tool.parse_args(call('fma')))
    root = Path(call('fma')[0]).parent
    source = sorted((root / 'data/camvid').rglob('*.jpg'))
    pictures = [np.asarray(Image.open(path).convert('RGB')) for path in source]
    assert any(
        np.abs(image.mean((0, 1)) - p.mean((0, 1))).max() < 2
        for p in pictures)


def test_refusals(tool, call) -> None:
    given = call('fma')
    for more, match in [
        (['--index', '-1'], r'--index must be in \[0, \d+\), got -1'),
        (['--index', '999'], 'got 999'),
        (['--layers', 'head'], '--layers head is unknown; allowed: backbone.'),
    ]:
        with pytest.raises(UserError, match=match):
            tool.main([*given, *more])
    with pytest.raises(UserError, match='no attention from token to token'):
        tool.main(call('mano'))
    for text in ('1', '0.5,1', 'a,b', '-0.1,0', 'nan,0'):
        with pytest.raises(SystemExit):
            tool.parse_args([*given, f'--at={text}'])
