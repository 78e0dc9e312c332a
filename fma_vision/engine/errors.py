"""Errors as one readable line."""


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's kind and text without line breaks, cut to a length.

    Args:
        error: The error.
        limit: Characters to keep.

    Returns:
        ``ValueError: the text``.
    """
    text = ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip(':')
    return text if len(text) <= limit else text[:limit - 3] + '...'
