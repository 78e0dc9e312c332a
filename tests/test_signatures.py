"""Internal functions take few arguments; what goes together is one object."""
import ast
from pathlib import Path
from typing import Iterator

import pytest

FOLDERS = 'kernels/fma_kernels', 'fma_vision', 'tools', 'benchmarks'
# Beside tensors.
MOST = 6
# Public: their arguments are what users choose from.
PUBLIC = {'fma1d', 'fma2d', 'stream'}
# Host toolboxes and timm build these from configs, or call them by name.
BUILT = '__init__'


def is_kernel(node: ast.FunctionDef) -> bool:
    """Triton takes flat signatures."""
    return any('jit' in ast.unparse(x) for x in node.decorator_list)


def too_long(source: str) -> Iterator[str]:
    """Functions with more arguments, but constructors and public ones."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or is_kernel(node):
            continue
        if node.name == BUILT or node.name in PUBLIC:
            continue
        given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        counted = [
            x.arg for x in given if x.arg not in ('self', 'cls', 'ctx')
            and 'Tensor' not in ast.unparse(x.annotation or ast.Constant(''))
        ]
        if len(counted) > MOST:
            yield f'{node.name}({", ".join(counted)})'


@pytest.mark.parametrize('folder', FOLDERS)
def test_at_most_six_arguments(folder: str, repo_root: Path) -> None:
    found = [
        f'{path.relative_to(repo_root)}: {function}'
        for path in sorted((repo_root / folder).rglob('*.py'))
        for function in too_long(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize('source, found', [
    ('def f(a, b, c, d, e, f, x: Tensor, y: Optional[Tensor]): ...', False),
    ('def f(a, b, c, d, e, f, *, g=1): ...', True),
    ('class A:\n def f(self, a, b, c, d, e, f): ...', False),
    ('class A:\n def f(self, a, b, c, d, e, f, g): ...', True),
    ('def __init__(self, a, b, c, d, e, f, g): ...', False),
    ('@triton.jit\ndef f(a, b, c, d, e, f, g): ...', False),
])
def test_what_is_found(source: str, found: bool) -> None:
    assert bool(list(too_long(source))) == found
