"""What the tools' command lines read alike."""

import argparse
import math


def positive(text: str) -> int:
    """Reads a positive whole number.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'a positive whole number is allowed, got {text!r}')
    return int(text)


def positive_number(text: str) -> float:
    """Reads a positive number, also one with a fraction.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(
            f'a positive number is allowed, got {text!r}')
    return value


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of tools that run a config's model on its data."""
    from mmengine.config import DictAction
    parser.add_argument('--work-dir', help='folder for the log')
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: the best there is')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change the config')
