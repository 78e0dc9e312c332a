"""The tool that prints shares of the softmax, on a small config."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from synthetic import small_config, write_class_folders

from fma_vision.datasets.classification import CIFAR10_CLASSES
from fma_vision.engine import UserError
from fma_vision.engine.build import build_model, load_model_config

ROOT = Path(__file__).parents[2]


def test_tool(load_script, tmp_path, capsys) -> None:
    tool = load_script('tools/analysis_tools/softmax_shares.py')
    write_class_folders(tmp_path / 'data/cifar10', CIFAR10_CLASSES, 32,
                        dict(train=1, test=1))
    arguments = []
    window = ROOT / 'configs/_base_/attention/window.py'
    for kind, parts in (('fma', []), ('swin', [window])):
        config, weights = (
            tmp_path / f'{kind}{suffix}' for suffix in ('.py', '.pth'))
        small_config(
            ROOT / 'configs/cifar10/fma-nano-p2_1xb64-300_cifar10-32px.py',
            tmp_path, config, parts)
        model = build_model(load_model_config(str(config)))
        torch.save(dict(state_dict=model.state_dict()), weights)
        arguments.append([
            str(config),
            str(weights), '--batches', '2', '--device', 'cpu', '--work-dir',
            str(tmp_path / kind)
        ])
    out = tmp_path / 'shares.json'
    tool.main([*arguments[0], '--out', str(out)])
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert len(record['shares']) == 10  # blocks of three stages
    for name, rows in record['shares'].items():
        assert name in printed and set(rows) == {'learned', 'even'}
        for values in rows.values():
            assert sum(values) == pytest.approx(1, abs=1e-4)
    # Of 16 x 16 tokens in cells of 4, the 3 x 3 cells around, cut at borders.
    first = record['shares']['backbone.stages.0.blocks.0.attn']
    assert first['even'][0] == pytest.approx(100 / 256, abs=1e-4)
    with pytest.raises(UserError, match='no FMAttention layer'):
        tool.main(arguments[1])
