"""ListOps: nested operators over digits, as Long Range Arena draws them.

An expression such as ``[MAX 2 9 [MIN 4 7 ] 0 ]`` has a digit for its value.
The rules are those of the benchmark's own generator (arXiv 2011.04006, after
arXiv 1804.06028):

- a node is an operator with probability 1/4 and else a digit; at the last
  level of the tree all nodes are digits, and the root is an operator;
- operators are MIN, MAX, MED (median, rounded down) and SM (sum modulo 10),
  all as likely; they have 2 to ``--max-args`` arguments, all as likely;
- an expression is kept if it has more than ``--min-length`` and fewer than
  ``--max-length`` tokens: digits, operators and closing brackets.

Differences: the seed decides every file, to the byte, on any machine (the
benchmark's generator has none); the round brackets that it writes around each
argument, and that its reader drops, are left out.
"""
import argparse
import hashlib
import random
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from common import ConversionError, report, run, staged

OPERATOR_PROBABILITY = .25
CLOSE = ']'
DIGITS = tuple('0123456789')
# Trees in a row that give nothing new, before giving up.
PATIENCE = 1000000


def median(values: List[int]) -> int:
    """The middle value, or the mean of the two in the middle, rounded down."""
    values = sorted(values)
    half = len(values) // 2
    if len(values) % 2:
        return values[half]
    return (values[half - 1] + values[half]) // 2


OPERATORS = (('[MIN', min), ('[MAX', max), ('[MED', median),
             ('[SM', lambda values: sum(values) % 10))


class _TooLong(Exception):
    """The tree has grown beyond what is kept."""


class Sampler:
    """Draws expressions.

    Only ``random.Random.random`` is used, whose numbers Python promises to
    keep for a seed.

    Args:
        seed (int): Of all draws.
        max_depth (int): Levels of a tree, the root's included.
        max_args (int): Arguments of an operator.
        min_length, max_length (int): Tokens; both are excluded.
    """

    def __init__(self, seed: int, max_depth: int, max_args: int,
                 min_length: int, max_length: int) -> None:
        self.random = random.Random(seed).random
        self.max_depth, self.max_args = max_depth, max_args
        self.min_length, self.max_length = min_length, max_length

    def draw(self) -> Optional[Tuple[str, int]]:
        """One tree: its text and value, or None where its length is wrong."""
        self.tokens: List[str] = []
        try:
            value = self._operator(1)
        except _TooLong:
            return None
        if not self.min_length < len(self.tokens) < self.max_length:
            return None
        return ' '.join(self.tokens), value

    def _operator(self, depth: int) -> int:
        """Append an operator at a level, and return its value."""
        draw, tokens = self.random, self.tokens
        # Stop early: most of the time goes into trees that are too long.
        if len(tokens) >= self.max_length:
            raise _TooLong
        name, function = OPERATORS[int(draw() * len(OPERATORS))]
        tokens.append(name)
        # At the last level all is digits.
        split = OPERATOR_PROBABILITY if depth + 1 < self.max_depth else 0.
        scale = 10 / (1 - split)
        values = []
        for _ in range(2 + int(draw() * (self.max_args - 1))):
            number = draw()
            if number < split:
                values.append(self._operator(depth + 1))
            else:
                # Rounding could give 10.
                digit = min(int((number - split) * scale), 9)
                tokens.append(DIGITS[digit])
                values.append(digit)
        tokens.append(CLOSE)
        return function(values)

    def __iter__(self) -> Iterator[Tuple[str, int]]:
        """Expressions and their values, none twice.

        Raises:
            ConversionError: Nothing new comes.
        """
        seen, vain = set(), 0
        while vain < PATIENCE:
            found = self.draw()
            # 16 bytes of each are enough to know it again.
            mark = found and hashlib.blake2b(
                found[0].encode(), digest_size=16).digest()
            if mark is None or mark in seen:
                vain += 1
                continue
            seen.add(mark)
            vain = 0
            yield found
        raise ConversionError(
            f'{PATIENCE} trees in a row gave no new expression of more than '
            f'{self.min_length} and fewer than {self.max_length} tokens with '
            f'depth {self.max_depth} and {self.max_args} arguments; '
            f'{len(seen)} were found')


def check(args: argparse.Namespace) -> None:
    """Refuse settings without an expression.

    Raises:
        ConversionError: Names the option.
    """
    for name, least in (('num_train',
                         1), ('num_val', 1), ('num_test', 1), ('max_depth', 2),
                        ('max_args', 2), ('min_length', 0), ('max_length', 5)):
        value = getattr(args, name)
        if value < least:
            raise ConversionError(f'--{name.replace("_", "-")} is {value}; '
                                  f'allowed is at least {least}')
    if args.max_length - args.min_length < 2:
        raise ConversionError(
            f'no length is above --min-length {args.min_length} and below '
            f'--max-length {args.max_length}')


def write(path: Path, samples: Iterator[Tuple[str, int]], number: int) -> None:
    """Write some of the samples, with the benchmark's header."""
    with open(path, 'w', encoding='ascii', newline='\n') as file:
        file.write('Source\tTarget\n')
        for _ in range(number):
            text, value = next(samples)
            file.write(f'{text}\t{value}\n')


def generate(args: argparse.Namespace) -> Dict[str, int]:
    """Write all splits.

    Args:
        args (argparse.Namespace): From :func:`parse_args`.

    Returns:
        dict[str, int]: Samples by split.

    Raises:
        ConversionError: The target exists, or a setting is wrong.
    """
    check(args)
    samples = iter(
        Sampler(args.seed, args.max_depth, args.max_args, args.min_length,
                args.max_length))
    numbers = dict(train=args.num_train, val=args.num_val, test=args.num_test)
    with staged(args.out, args.force) as staging:
        for split, number in numbers.items():
            write(staging / f'{split}.tsv', samples, number)
    return numbers


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line; the defaults are the published settings."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument('--out', default='data/listops', help='target folder')
    parser.add_argument(
        '--force', action='store_true', help='replace an existing target')
    parser.add_argument('--seed', type=int, default=0, help='of all draws')
    for name, default, what in (
        ('num-train', 96000, 'expressions to train on'),
        ('num-val', 2000, 'expressions to validate on'),
        ('num-test', 2000, 'expressions to test on'),
        ('min-length', 500, 'expressions have more tokens'),
        ('max-length', 2000, 'expressions have fewer tokens'),
        ('max-depth', 10, 'levels of a tree'),
        ('max-args', 10, 'arguments of an operator'),
    ):
        parser.add_argument(f'--{name}', type=int, default=default, help=what)
    return parser.parse_args(argv)


def main() -> None:
    args = parse_args()
    report(args.out, generate(args))


if __name__ == '__main__':
    run(main)
