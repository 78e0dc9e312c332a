"""The generator of ListOps: right answers, the published rules, a seed."""

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
INNERMOST = re.compile(r'\[(MIN|MAX|MED|SM)((?: \d)+) \]')
# As small as a run can be and still have every operator at every level.
SMALL = ('--num-train', '300', '--num-val', '20', '--num-test', '20',
         '--min-length', '50', '--max-length', '200')
# Of the test split that these settings and seed 0 give.
DIGEST = 'a46c9c0437f4071197917fd9abdf17ae9f837c043bf293018cdd7f597b5a9ba8'


@pytest.fixture
def listops(monkeypatch, load_script):
    monkeypatch.syspath_prepend(str(FOLDER))
    return load_script('tools/dataset_converters/listops.py')


@pytest.fixture
def error(listops):
    from common import ConversionError
    return ConversionError


def generate(module, out: Path, *args: str) -> dict:
    """Lines of every split, each as text and value."""
    module.generate(module.parse_args(['--out', str(out), *SMALL, *args]))
    found = {}
    for split in ('train', 'val', 'test'):
        header, *lines = (out / f'{split}.tsv').read_text().splitlines()
        assert header == 'Source\tTarget'
        found[split] = [line.split('\t') for line in lines]
    return found


def rewrite(match: re.Match) -> str:
    """The value of an operator whose arguments are digits."""
    values = np.array(match[2].split(), int)
    if match[1] == 'MED':
        return str(int(np.median(values)))
    if match[1] == 'SM':
        return str(values.sum() % 10)
    return str(values.min() if match[1] == 'MIN' else values.max())


def value_of(text: str) -> str:
    """Work out an expression from its text alone, inside out."""
    while '[' in text:
        text, changes = INNERMOST.subn(rewrite, text)
        assert changes, text
    return text


def depth_of(text: str) -> int:
    """Levels of the tree, that of the digits included."""
    depth = deepest = 0
    for token in text.split():
        depth += token.startswith('[') - (token == ']')
        deepest = max(deepest, depth)
    return deepest + 1


def arguments_of(text: str) -> list:
    """Number of arguments of every operator."""
    stack, found = [0], []
    for token in text.split():
        if token == ']':
            found.append(stack.pop())
        else:
            stack[-1] += 1
            if token.startswith('['):
                stack.append(0)
    assert stack == [1]
    return found


def test_the_evaluator_itself() -> None:
    """By hand: what every other test leans on."""
    assert value_of('[MED 1 2 ]') == '1'
    assert value_of('[MED 9 0 4 ]') == '4'
    assert value_of('[SM 9 9 [MIN 3 4 ] ]') == '1'
    assert value_of('[MAX [MED 2 7 8 3 ] [SM 5 5 ] ]') == '5'
    assert depth_of('[MAX [MED 2 7 ] 1 ]') == 3
    assert sorted(arguments_of('[MAX [MED 2 7 ] 1 5 ]')) == [2, 3]


def test_answers_lengths_and_splits(listops, tmp_path: Path) -> None:
    found = generate(listops, tmp_path / 'a')
    assert {
        k: len(v)
        for k, v in found.items()
    } == dict(
        train=300, val=20, test=20)
    every = [pair for part in found.values() for pair in part]
    assert len({text for text, _ in every}) == len(every)
    for text, value in every:
        assert value_of(text) == value
        assert 50 < len(text.split()) < 200
        assert depth_of(text) <= 10
        assert all(2 <= n <= 10 for n in arguments_of(text))
    assert {value for _, value in every} == set('0123456789')


def test_published_settings_are_the_defaults(listops) -> None:
    args = listops.parse_args([])
    assert (args.num_train, args.num_val, args.num_test) == (96000, 2000, 2000)
    assert (args.min_length, args.max_length) == (500, 2000)
    assert (args.max_depth, args.max_args) == (10, 10)
    sampler = listops.Sampler(0, 10, 10, 500, 2000)
    lengths = []
    for text, value in sampler:
        assert value_of(text) == str(value)
        lengths.append(len(text.split()))
        if len(lengths) == 30:
            break
    assert 500 < min(lengths) and 1000 < max(lengths) < 2000


def test_probabilities(listops) -> None:
    """Operators, arguments and digits of trees that nothing cuts off."""
    sampler = listops.Sampler(1, 4, 10, 0, 10**9)
    counts, arguments, nodes = Counter(), Counter(), Counter()
    for _ in range(4000):
        text, _ = sampler.draw()
        depth = 0
        for token in text.split():
            if token == ']':
                depth -= 1
                continue
            counts[token] += 1
            nodes[depth, token.startswith('[')] += 1
            depth += token.startswith('[')
        arguments.update(arguments_of(text))

    def share(part, whole):
        return part / whole, 5 * (part * (1 - part / whole))**.5 / whole

    assert nodes[0, True] == 4000 and nodes[0, False] == 0
    for depth in (1, 2):
        total = nodes[depth, True] + nodes[depth, False]
        value, error = share(nodes[depth, True], total)
        assert abs(value - .25) < error, depth
    # The last of four levels holds digits alone.
    assert nodes[3, True] == 0 < nodes[3, False]
    for tokens in (('[MIN', '[MAX', '[MED', '[SM'), tuple('0123456789')):
        total = sum(counts[t] for t in tokens)
        for token in tokens:
            value, error = share(counts[token], total)
            assert abs(value - 1 / len(tokens)) < error, token
    for number in range(2, 11):
        value, error = share(arguments[number], sum(arguments.values()))
        assert abs(value - 1 / 9) < error, number


def test_seed_decides_every_byte(listops, tmp_path: Path) -> None:
    first = generate(listops, tmp_path / 'a')
    assert generate(listops, tmp_path / 'b') == first
    other = generate(listops, tmp_path / 'c', '--seed', '1')
    assert not {t for t, _ in first['train']} & {t for t, _ in other['train']}
    # The same on every machine and version of Python.
    digest = hashlib.sha256((tmp_path / 'a/test.tsv').read_bytes())
    assert digest.hexdigest() == DIGEST


@pytest.mark.parametrize('args, message', [
    (['--num-val', '0'], '--num-val is 0; allowed is at least 1'),
    (['--max-args', '1'], '--max-args is 1'),
    (['--max-depth', '1'], '--max-depth is 1'),
    (['--min-length', '199'], 'no length is above --min-length 199'),
])
def test_wrong_settings(args, message, listops, error, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        generate(listops, tmp_path / 'out', *args)
    assert list(tmp_path.iterdir()) == []


def test_nothing_new_is_an_error_and_leaves_nothing(listops, error,
                                                    tmp_path: Path,
                                                    monkeypatch) -> None:
    """Two digits under one operator: 400 expressions, and no more."""
    monkeypatch.setattr(listops, 'PATIENCE', 20000)
    with pytest.raises(error, match='20000 trees in a row .* 400 were found'):
        generate(listops, tmp_path / 'out', '--max-depth', '2', '--max-args',
                 '2', '--min-length', '0', '--num-train', '500')
    assert list(tmp_path.iterdir()) == []


def test_existing_target(tmp_path: Path) -> None:
    out = tmp_path / 'out'
    command = [
        sys.executable,
        str(FOLDER / 'listops.py'), '--out',
        str(out), *SMALL
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout.strip() == f'{out}: 300 train, 20 val, 20 test'
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode and 'Traceback' not in again.stderr
    assert 'exists; --force replaces it' in again.stderr
    subprocess.run([*command, '--force'], check=True, capture_output=True)
