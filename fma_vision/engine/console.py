"""A console that takes every name."""
import sys


def print_any_name() -> None:
    """Print characters that the console cannot show as escapes.

    Names of files may have any, and not printing one must not end a tool.
    Standard error does so by itself.
    """
    reconfigure = getattr(sys.stdout, 'reconfigure', None)
    if reconfigure is not None:  # a notebook's stream has none
        reconfigure(errors='backslashreplace')
