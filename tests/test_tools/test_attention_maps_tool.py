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
from fma_vision.engine.build import build_model, load_model_config

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/camvid/fma-nano_fpn_1xb4-400_camvid-240x320.py'
PARTS = ROOT / 'configs/_base_/attention'


@pytest.fixture(scope='module')
def tool(load_script):
    return load_script('tools/visualization/attention_maps.py')


@pytest.fixture(scope='module')
def call(tmp_path_factory):
    """Arguments for a model, by its attention layer."""
    root = tmp_path_factory.mktemp('maps')
    write_paired(root / 'data/camvid', 11)

    def arguments(kind: str):
        config, weights = (root / f'{kind}{x}' for x in ('.py', '.pth'))
        parts = [PARTS / f'{kind}.py'] if kind != 'fma' else []
        small_config(CONFIG, root, config, parts)
        model = build_model(load_model_config(str(config)))
        torch.save(dict(state_dict=model.state_dict()), weights)
        return [
            str(config),
            str(weights), '--device', 'cpu', '--work-dir',
            str(root / 'log')
        ]

    return arguments


@pytest.mark.parametrize('kind', ['fma', 'window'])
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
    names = [f'backbone.stages.{i}.blocks.0.attn' for i in (1, 0)]
    given += ['--layers', *names]
    _, maps = tool.measure(tool.parse_args(given))
    assert [found.name for found in maps] == names
    tool.main(given)
    assert '2 layers, 2 places' in capsys.readouterr().out
    with Image.open(out) as picture:
        assert min(picture.size) > 100


def test_image_is_the_one_asked_for(tool, call) -> None:
    given = call('fma')
    image, _ = tool.measure(tool.parse_args([*given, '--index', '1']))
    folder = Path(given[0]).parent / 'data/camvid/images/validation'
    with Image.open(sorted(folder.iterdir())[1]) as file:
        size = image.shape[1], image.shape[0]
        expected = np.asarray(file.convert('RGB').resize(size), float)

    def error(seen: np.ndarray) -> float:
        return float(np.abs(seen - expected).mean())

    assert error(image) < .7 * error(image[..., ::-1])


def test_places_and_heads(tool, call, monkeypatch) -> None:
    asked = []

    def maps(layer, x, queries):
        asked.append(list(queries))
        weights = torch.zeros(len(queries), 2, *x.shape[1:3])
        for i, (row, column) in enumerate(queries):
            weights[i, 1, row, column] = 1
        return weights

    monkeypatch.setattr(tool, 'attention_maps', maps)
    given = [*call('fma'), '--at', '0.75,0.25', '0,0.99']
    image, found = tool.measure(tool.parse_args([*given, '--head', '1']))
    height, width = image.shape[:2]
    for i, layer in enumerate(found):
        expected = [(int(height * .25) // layer.stride,
                     int(width * .75) // layer.stride),
                    (int(height * .99) // layer.stride, 0)]
        assert layer.tokens == expected == asked[i]
        for (row, column), share in zip(expected, layer.shares):
            assert share[row, column] == share.size == share.sum()
    _, mean = tool.measure(tool.parse_args(given))
    assert mean[0].shares.sum() == found[0].shares.sum() / 2
    with pytest.raises(UserError, match=r'--head must be in \[0, 2\), got 2'):
        tool.measure(tool.parse_args([*given, '--head', '2']))


def test_refusals(tool, call) -> None:
    given = call('fma')
    for more, match in [
        (['--index', '-1'], r'--index must be in \[0, \d+\), got -1'),
        (['--index', '999'], 'got 999'),
        (['--layers', 'head'], '--layers head is unknown; allowed: backbone.'),
        (['--out', str(Path(given[0]).parent)], '--out must be a file with'),
        (['--out', 'map.txt'], '--out must be a file .* got map.txt'),
        ([
            '--cfg-options', 'model.test_cfg.mode=slide',
            'model.test_cfg.crop_size=(32,32)', 'model.test_cfg.stride=(16,16)'
        ], 'ran .* times for one image'),
    ]:
        with pytest.raises(UserError, match=match):
            tool.main([*given, *more])
    with pytest.raises(UserError, match='no FMATransformer whose layers'):
        tool.main(call('mano'))
    for text in ('1', '0.5,1', 'a,b', '-0.1,0', 'nan,0'):
        with pytest.raises(SystemExit):
            tool.parse_args([*given, f'--at={text}'])
