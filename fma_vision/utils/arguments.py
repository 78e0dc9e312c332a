"""What the tools' command lines read alike."""

import argparse


def positive(text: str) -> int:
    """Reads a positive whole number.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'a positive whole number is allowed, got {text!r}')
    return int(text)
