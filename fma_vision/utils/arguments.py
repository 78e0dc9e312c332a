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
