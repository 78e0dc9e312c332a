"""Tables as Markdown."""
from typing import List


def table(head: List[str], rows: List[List[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers."""
    lines = [head, ['---'] + ['--:'] * (len(head) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)
