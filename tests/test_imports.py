"""Imports point one way: no folder knows of those that build on it."""
import ast
import sys
from pathlib import Path
from typing import Iterator

import pytest

# What the files of a folder may import, beside that folder itself.
BELOW = {
    'kernels/fma_kernels': set(),
    'fma_vision': {'fma_kernels'},
    'tools': {'fma_kernels', 'fma_vision'},
    'demo': {'fma_kernels', 'fma_vision'},
    'benchmarks': {'fma_kernels', 'fma_vision', 'tools', 'demo'},
}


def name_of(folder: str) -> str:
    """As Python knows it."""
    return Path(folder).name


def imported(source: str) -> Iterator[str]:
    """The modules that a file asks for, wherever in it, by their full names.

    Relative imports are left out: they cannot leave a package.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            function = ast.unparse(node.func).split('.')[-1]
            name = getattr(node.args[0], 'value', None)
            if function in ('import_module', '__import__') and isinstance(
                    name, str):
                yield name


def modules(folder: Path) -> set[str]:
    """What ``import`` finds in a folder of scripts, put on ``sys.path``."""
    files = folder.rglob('*.py')
    return {name for file in files for name in (file.stem, file.parent.name)}


def upward(folder: str, root: Path) -> list[str]:
    """The imports of a folder's files that it must not have."""
    own = modules(root / folder)
    above = [x for x in BELOW if name_of(x) not in BELOW[folder]]
    forbidden = set(map(name_of, above)) | {'tests'}
    forbidden |= set().union(*(modules(root / x) for x in above))
    forbidden -= own | set(sys.stdlib_module_names)
    return [
        f'{file.relative_to(root)}: {module}'
        for file in sorted((root / folder).rglob('*.py'))
        for module in imported(file.read_text())
        if module.split('.')[0] in forbidden
    ]


@pytest.mark.parametrize('folder', BELOW)
def test_no_import_upward(folder: str, repo_root: Path) -> None:
    assert list((repo_root / folder).rglob('*.py'))
    assert upward(folder, repo_root) == []


@pytest.mark.parametrize('folder, line, found', [
    ('kernels/fma_kernels', 'import torch, fma_vision.layers as x',
     'fma_vision.layers'),
    ('kernels/fma_kernels', 'def f():\n    from tools import train', 'tools'),
    ('fma_vision', 'from demo.image_demo import main', 'demo.image_demo'),
    ('fma_vision', "importlib.import_module('benchmarks.ops')",
     'benchmarks.ops'),
    ('tools', 'try:\n    from timing import measure\nexcept E:\n    pass',
     'timing'),
    ('demo', 'import tools.train', 'tools.train'),
    ('tools', 'import demo', 'demo'),
    ('fma_vision', 'from . import tools', None),
    ('fma_vision', 'from fma_kernels.ops import demo', None),
    ('benchmarks', 'from timing import x\nimport tools.train, demo', None),
    ('tools', 'import train, profile, fma_kernels', None),
])
def test_what_is_found(folder, line, found, tmp_path) -> None:
    for path in ('tools/train.py', 'benchmarks/timing.py',
                 'benchmarks/report/profile.py', f'{folder}/a/it.py'):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text('')
    (tmp_path / folder / 'a/it.py').write_text(line)
    expected = [f'{folder}/a/it.py: {found}'] if found else []
    assert upward(folder, tmp_path) == expected
