"""Tables of the language model."""
from pathlib import Path
from typing import Optional

from .formats import load, number, table, where


def streaming(results: Path) -> Optional[str]:
    """Prefill and decoding of the language model."""
    found = load(results, 'language_model_cpu')
    if not found or 'streaming' not in found:
        return None
    part = found['streaming']
    *rows, floor = part['rows']
    lines = [[
        r['model'], f'{r["context"]:,}', f'{r["tokens_per_second"]:,.0f}',
        number(r['prefill_peak_bytes'] / 2**20),
        f'{r["seconds"]["step"]["median"] * 1e3:.2f}',
        f'{r["state_bytes"] / 1024:,.0f}', f'{r["state_over_cache"] * 100:.2f}'
    ] for r in rows]
    millions = rows[0]['parameters'] / 1e6
    return (
        f'Four blocks of 256 channels ({millions:.1f} M parameters), float32, '
        'batch 1: reading a text in chunks, then writing token by token, '
        'means of 64 steps. "shipped" are the weights of the demo '
        '(hierarchical summaries, rank 4), "averages" the same at rank 1, '
        '"full attention" keeps all keys and values, 100% of the cache. The '
        'linear layers of a step take '
        f'{floor["seconds"]["step"]["median"] * 1e3:.2f} ms alone.\n\n' +
        table([
            'model', 'tokens read', 'read, tokens/s', 'peak MiB', 'ms a step',
            'state, KiB', 'of cache, %'
        ], lines) + f'\n\n{where(part["environment"])}; '
        '`python benchmarks/language_model.py`')


def precisions(results: Path) -> Optional[str]:
    """The shipped language model in float32, bfloat16 and int8."""
    found = load(results, 'language_model_cpu')
    if not found or 'precision' not in found:
        return None
    part = found['precision']
    whole, steps = part['rows']
    lines = [[
        name, f'{whole["bits_per_character"][name]:.4f}',
        f'{whole["seconds"][name]["median"] * 1e3:,.0f}',
        f'{steps["seconds"][name]["median"] / 64 * 1e3:.2f}'
    ] for name in whole['seconds']]
    return (
        'The shipped language model, bits a character on 128 windows of '
        'validation text:\n\n' + table(
            ['precision', 'bits a character', '4,096 tokens, ms', 'ms a step'],
            lines) + f'\n\n{where(part["environment"])}; '
        '`python benchmarks/language_model.py --parts precision`')
