"""The written pages: code runs, links and named files exist."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest

import fma_vision  # noqa: F401  (keeps the host packages quiet)

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md',
                             'demo/weights/README.md', 'configs/README.md')
] + sorted((ROOT / 'docs').glob('*.md'))


def blocks(page, language):
    """The fenced blocks of a language."""
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(),
                      re.MULTILINE | re.DOTALL)


def python_blocks(config):
    """All Python blocks that are configs, or all that are programs."""
    return [
        pytest.param(text, id=f'{page.stem}-{number}') for page in PAGES
        for number, text in enumerate(blocks(page, 'python'))
        if text.startswith('_base_') == config
    ]


@pytest.mark.parametrize('code', python_blocks(config=False))
def test_programs_run(code, tmp_path, monkeypatch):
    """Each as in a process of its own, where no toolbox is the default."""
    for package in re.findall(r'^import (onnx\w*|fvcore)', code, re.M):
        pytest.importorskip(package)
    for name in re.findall(r'^from (mm\w+)', code, re.MULTILINE):
        pytest.importorskip(name)
        registry = pytest.importorskip('mmengine.registry')
        monkeypatch.setattr(registry.DefaultScope, '_instance_dict',
                            OrderedDict())
    for path in ROOT.iterdir():  # what a program writes is not left there
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, 'page', 'exec'), {})


@pytest.mark.parametrize('code', python_blocks(config=True))
def test_configs_build(code, tmp_path):
    """The bases are those of the toolboxes as installed."""
    mmseg = pytest.importorskip('mmseg')
    pytest.importorskip('mmpretrain')
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope
    swin = Path(mmseg.__file__).parent / '.mim' / 'configs' / 'swin'
    if not swin.is_dir():
        pytest.skip('mmsegmentation is installed without its configs')
    path = tmp_path / 'page.py'
    path.write_text(code.replace("_base_ = 'swin-", f"_base_ = '{swin}/swin-"))
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    assert type(model.backbone).__name__ == 'FMATransformer'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_links_resolve(page):
    links = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
    for link in links:
        if not link.startswith(('http://', 'https://', '#')):
            assert (page.parent / link.split('#')[0]).exists(), link


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_named_files_exist(page):
    """Scripts and configs that commands and prose point to."""
    named = re.findall(
        r'\b((?:configs|demo|tools|requirements|kernels|fma_vision)/'
        r'[\w./-]*\.(?:py|sh|pth|md|txt|yml))', page.read_text())
    for name in named:
        assert (ROOT / name).exists(), name


def test_model_index_lists_every_metafile():
    yaml = pytest.importorskip('yaml')
    listed = yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
    found = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / 'configs').glob('*/metafile.yml'))
    ]
    assert listed == found
