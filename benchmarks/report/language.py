"""Tables of the language model."""
from pathlib import Path
from typing import Optional

from .formats import load, number, table, where


def streaming(results: Path) -> Optional[str]:
    """Prefill and decoding of the language model."""
    found = load(results, 'lm_streaming_cpu')
    if not found:
        return None
    rows = [[
        f'`{Path(model["config"]).stem}`, {r["context"]:,}',
        number(r['prefill_seconds']), f'{r["prefill_tokens_per_second"]:,.0f}',
        number(r['prefill_peak_bytes'] / 2**20),
        f'{r["step_seconds"]["median"] * 1e3:.2f}',
        f'{r["state_bytes"] / 1024:,.0f}', f'{r["cache_bytes"] / 1024:,.0f}',
        f'{r["state_over_cache"] * 100:.2f}'
    ] for model in found['models'] for r in model['rows']]
    ours = found['models'][0]
    ratios = ours['ratios']
    last, first = ratios['contexts']
    twin = (' The twin copies its cache at every step.'
            if len(found['models']) > 1 else '')
    return (
        'Reading a text in chunks, then going on token by token '
        f'(`{Path(ours["config"]).stem}`, '
        f'{ours["parameters"] / 1e6:.1f} M parameters, float32, batch 1). '
        f'From {first:,} to {last:,} tokens, a step takes '
        f'{ratios["step_seconds"]:.2f} × as long and the state '
        f'{ratios["state_bytes"]:.2f} × the bytes; "cache" is what all keys '
        f'and values would take.{twin}\n\n' + table([
            'model, tokens', 'read, s', 'tokens/s', 'peak MiB', 'ms a step',
            'state, KiB', 'cache, KiB', 'of cache, %'
        ], rows) + f'\n\n{where(found["environment"])}; '
        '`python tools/analysis_tools/benchmark_lm.py`')
