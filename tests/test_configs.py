"""Every config of a vision task builds; those of small real sets also run."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import copy
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.config import Config
from mmengine.registry import (DATASETS, METRICS, MODELS, TRANSFORMS,
                               DefaultScope)
from synthetic import small_config, write_all

from fma_vision.engine import UserError, load_config

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / 'configs'
CONFIGS = sorted(
    p for p in FOLDER.glob('*/*.py')
    if p.parts[-2] not in ('_base_', 'lm', 'lra'))
SMALL_SETS = ('camvid', 'cifar10', 'dubai_aerial', 'fashion_mnist',
              'labelmefacade', 'street', 'tiny_imagenet100')
SMALL = [p for p in CONFIGS if p.parts[-2] in SMALL_SETS]
# The attention layer that a part puts into a config.
ATTENTION = {
    'fma_linear': 'FMAttention2D',
    'fmmformer': 'FMMformerAttention2D',
    'full': 'FullAttention',
    'mano': 'MANOAttention',
    'window': 'WindowAttention'
}
PARTS = sorted((FOLDER / '_base_/attention').glob('*.py'))
# Sets whose metafiles are filled from the results.
PROTOCOL_SETS = ('camvid', 'cifar10', 'dubai_aerial', 'tiny_imagenet100')
# Other layers in other sets would run the same code again.
RUN = [(p, ()) for p in SMALL] + [(p, (part, ))
                                  for p in SMALL if '60e_cifar10' in p.name
                                  for part in PARTS]


def name_of(path: Path) -> str:
    return f'{path.parent.name}/{path.stem}'


def listed_parameters(path: Path) -> int:
    """What the metafile says of a config."""
    yaml = pytest.importorskip('yaml')
    content = yaml.safe_load((path.parent / 'metafile.yml').read_text())
    return next(model['Metadata']['Parameters'] for model in content['Models']
                if model['Name'] == path.stem)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Tiny files in the layouts of all small sets."""
    return write_all(tmp_path_factory.mktemp('data_root'))


@pytest.fixture(scope='module')
def train_tool(load_script):
    return load_script('tools/train.py')


def test_schedules_spare_what_must_not_decay() -> None:
    """Each recipe lists the names that our models give."""
    from fma_vision.models import FMALanguageModel, FMATransformer
    found = set()
    for path in sorted((FOLDER / '_base_' / 'schedules').glob('*.py')):
        optim = load_config(str(path)).get('optim_wrapper', {})
        model = FMALanguageModel if path.stem == 'schedule_lm' else \
            FMATransformer
        if optim['optimizer'].get('weight_decay') == 0:
            continue  # nothing decays
        keys = optim['paramwise_cfg']['custom_keys']
        for key in model.no_decay_keys:
            assert keys[key]['decay_mult'] == 0, (path.name, key)
        found.add(path.stem)
    assert {'schedule_lm', 'imagenet_bs1024_adamw_300e'} < found


def test_every_family_is_there() -> None:
    assert {p.parts[-2] for p in SMALL} == set(SMALL_SETS)
    for family in SMALL_SETS:
        names = [p.name for p in SMALL if p.parts[-2] == family]
        assert any(n.startswith('fma-nano') for n in names), family
    for family in {p.parent for p in CONFIGS}:
        assert (family / 'README.md').is_file(), family
        assert (family / 'metafile.yml').is_file(), family


def test_a_product_and_no_matrix() -> None:
    """What differs in one factor is an option, and not another file."""
    assert len(list(FOLDER.rglob('*.py'))) < 60
    assert {part.stem for part in PARTS} == set(ATTENTION)


@pytest.mark.parametrize('path', CONFIGS, ids=name_of)
def test_builds(path: Path, quick_init) -> None:
    """Model, pipelines, datasets and metrics build; nothing is read."""
    cfg = load_config(str(path))
    assert 'fma_vision.models' in cfg.custom_imports['imports']
    assert cfg.custom_imports['allow_failed_imports'] is False
    assert cfg.default_scope in ('mmseg', 'mmpretrain')
    model_cfg = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model_cfg)
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters > 1e6
        if path.parts[-2] in PROTOCOL_SETS:
            assert listed_parameters(path) == parameters
        num_classes = None
        for phase in ('train', 'val', 'test'):
            dataset = copy.deepcopy(cfg[f'{phase}_dataloader'].dataset)
            for part in dataset.get('datasets', [dataset]):
                for step in part.get('pipeline') or dataset.pipeline:
                    TRANSFORMS.build(copy.deepcopy(step))
                if 'TinyImageNet' in part.type:
                    continue  # its class names are in a file of the set
                part.lazy_init = True
                built = DATASETS.build(part)
                num_classes = len(built.metainfo['classes'])
        for evaluator in ('val_evaluator', 'test_evaluator'):
            items = cfg[evaluator]
            for item in items if isinstance(items, list) else [items]:
                METRICS.build(copy.deepcopy(item))
    if num_classes is not None:
        head = cfg.model.get('module', cfg.model)
        head = head.get('decode_head') or head.get('head')
        assert head.num_classes == num_classes


@pytest.mark.parametrize('path', SMALL, ids=name_of)
def test_nano_is_small(path: Path, quick_init) -> None:
    cfg = load_config(str(path))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
    assert sum(p.numel() for p in backbone.parameters()) <= 4e6


@pytest.mark.parametrize('part', PARTS, ids=lambda p: p.stem)
@pytest.mark.parametrize(
    'path', [p for p in SMALL if p.name.startswith('fma')], ids=name_of)
def test_part_changes_attention_only(path: Path, part: Path,
                                     quick_init) -> None:
    twin = load_config(str(path), bases=[str(part)])
    fma = load_config(str(path))
    attention = fma.model.backbone.pop('attn')
    other = twin.model.backbone.pop('attn')
    assert attention.type == 'FMAttention2D'
    assert not attention.get('pool_queries')
    assert other.type == ATTENTION[part.stem]
    assert '_delete_' not in other
    if part.stem == 'fma_linear':
        assert other == dict(attention, pool_queries=True)
    assert twin._cfg_dict.to_dict() == fma._cfg_dict.to_dict()
    sizes = []
    for attn in (attention, other):
        with DefaultScope.overwrite_default_scope(twin.default_scope):
            backbone = MODELS.build(dict(twin.model.backbone, attn=attn))
        sizes.append(sum(p.numel() for p in backbone.parameters()))
    # The protocol allows 5 %.
    assert math.isclose(*sizes, rel_tol=0.02)


@pytest.mark.parametrize(
    'path, plain, part',
    [('imagenet/fma-linear-tiny_16xb64_in1k-224px',
      'imagenet/fma-tiny_16xb64_in1k-224px', 'fma_linear'),
     ('ade20k/fma-linear-tiny_upernet_8xb2-amp-160k_ade20k-512x512',
      'ade20k/fma-tiny_upernet_8xb2-amp-160k_ade20k-512x512', 'fma_linear'),
     ('camvid/swin-nano_fpn_1xb4-400_camvid-240x320',
      'camvid/fma-nano_fpn_1xb4-400_camvid-240x320', 'window'),
     ('lm/full-lm-nano_1xb2-3k_books-1k', 'lm/fma-lm-nano_1xb2-3k_books-1k',
      'full')])
def test_parts_in_files(path: str, plain: str, part: str) -> None:
    """A config that names a part is what the option makes, in any tool."""
    part = str(FOLDER / f'_base_/attention/{part}.py')
    there = Config.fromfile(str(FOLDER / f'{path}.py'))._cfg_dict
    there.pop('attention')
    made = load_config(str(FOLDER / f'{plain}.py'), bases=[part])
    assert there.to_dict() == made._cfg_dict.to_dict()


def test_parts_follow_each_other_and_options_come_last(tmp_path) -> None:
    """The second layer takes the first one's place."""
    wide = tmp_path / 'wide.py'
    wide.write_text('attention = dict(backbone=dict(window_size=9))\n'
                    'randomness = dict(seed=5)')
    path = next(p for p in SMALL if p.parts[-2] == 'camvid')
    parts = [
        str(FOLDER / f'_base_/attention/{x}.py') for x in ('full', 'mano')
    ]
    cfg = load_config(
        str(path), {'model.backbone.attn.attn_drop': .5},
        [*parts, str(wide)])
    assert cfg.model.backbone.attn == dict(
        type='MANOAttention', window_size=9, attn_drop=.5)
    assert cfg.randomness.seed == 5
    # Inside the wrapper of test-time augmentation, too.
    wrapped = tmp_path / 'wrapped.py'
    wrapped.write_text(
        "model = dict(type='SegTTAModel', module=dict(backbone=dict("
        "attn=dict(type='FMAttention2D', cell_size=4))))")
    cfg = load_config(str(wrapped), bases=parts[:1])
    assert cfg.model.module.backbone.attn == dict(type='FullAttention')


def test_wrong_parts_are_one_line(tmp_path) -> None:
    text = str(FOLDER / 'lm/fma-lm_1xb32-20k_books-1k.py')
    window = str(FOLDER / '_base_/attention/window.py')
    other = tmp_path / 'other.py'
    other.write_text('log_level = dict(a=1)')
    for part, message in (
        (window, 'window.py has attention for backbone of a model, and the '
         'config has no attn there'),
        (str(tmp_path / 'none.py'), 'no --base file .*none.py'),
        (str(other), 'other.py does not fit the config'),
    ):
        with pytest.raises(UserError, match=message):
            load_config(text, bases=[part])


@pytest.mark.slow
@pytest.mark.parametrize(
    'path, parts',
    RUN,
    ids=lambda x: name_of(x) if isinstance(x, Path) else x and x[0].stem)
def test_two_iterations(path: Path, parts: tuple, data: Path, train_tool,
                        tmp_path: Path) -> None:
    """Two steps, a validation and a checkpoint through tools/train.py."""
    config = small_config(path, data, tmp_path / path.name, parts)
    args = train_tool.parse_args(
        [str(config), '--work-dir',
         str(tmp_path / 'work'), '--device', 'cpu'])
    runner = train_tool.train(args)
    assert runner.iter == 2
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 2 and all(math.isfinite(x) for x in losses)
    moved = runner.message_hub.get_scalar('train/grad_norm').data[0]
    assert all(math.isfinite(x) and x > 0 for x in moved)
    scalars = set(runner.message_hub.log_scalars)
    wanted = {
        'mmpretrain': ['val/accuracy/top1'],
        'mmseg': ['val/mIoU']
    }[runner.cfg.default_scope]
    if path.parts[-2] == 'street':
        wanted = ['val/labelmefacade/mIoU', 'val/camvid/mIoU']
    assert scalars.issuperset(wanted)
    assert list((tmp_path / 'work').glob('best_*.pth'))
