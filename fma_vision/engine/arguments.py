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


def add_config_options(parser: argparse.ArgumentParser,
                       more: str = '') -> None:
    """Add ``--base`` and ``--cfg-options``.

    Args:
        parser: Of the tool.
        more: Follows in the help.
    """
    from mmengine.config import DictAction
    parser.add_argument(
        '--base',
        action='append',
        default=[],
        metavar='FILE',
        help='merge a part into the config, such as configs/_base_/attention/'
        'full.py; may be given several times')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help=f'change the config{more}')


class _Shape(argparse.Action):
    """Keeps one number or two."""

    def __call__(self, parser, namespace, values, option_string=None):
        if len(values) > 2:
            raise argparse.ArgumentError(
                self, f'one or two numbers are allowed, got {values}')
        setattr(namespace, self.dest, values)


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add ``--shape``, as :func:`~.build.input_shape` takes it."""
    parser.add_argument(
        '--shape',
        action=_Shape,
        type=positive,
        nargs='+',
        metavar=('H', 'W'),
        help='image height and width, or one number for both; tokens of a '
        'text; default: what the config trains at')


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    parser.add_argument(
        '--device', choices=['cpu', 'cuda'], help='default: the best there is')


def add_check_data(parser: argparse.ArgumentParser) -> None:
    """Add ``--check-data``."""
    from .labels import CHOICES
    parser.add_argument(
        '--check-data',
        choices=CHOICES,
        default=CHOICES[0],
        help='look into images and labels before the first batch: a sample '
        'over each set of a few seconds (default), every file, or none')


def add_runner_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of tools that run a config's model on its data."""
    parser.add_argument('--work-dir', help='folder for the log')
    add_device(parser)
    add_config_options(parser)
