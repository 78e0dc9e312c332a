"""Tables of the 1D models: streaming, books, ListOps."""
from pathlib import Path
from typing import Any, Dict, Optional

from .formats import number, table, where
from .reading import load


def _name(row: Dict[str, Any]) -> str:
    """The config of a row, and what was merged into it, if anything."""
    files = (row['config'], *row.get('base', []))
    return ' + '.join(f'`{Path(file).stem}`' for file in files)


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


def language_models(results: Path) -> Optional[str]:
    """Scores of trained language models."""
    found = load(results, 'books_lm')
    if not found:
        return None
    rows = [[
        _name(r), f'{r["parameters"] / 1e6:.2f}', f'{r["iterations"]:,}',
        f'{r["tokens"] / 1e6:.1f}', f'{r["bpc"]:.3f}', f'{r["perplexity"]:.2f}'
    ] for r in found['rows']]
    return ('Trained from scratch, tested on all validation text:\n\n' +
            table([
                'config', 'params, M', 'iterations', 'characters seen, M',
                'validation bpc', 'perplexity'
            ], rows) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/collect_lm.py`')


def list_ops(results: Path) -> Optional[str]:
    """Accuracies of sequence classifiers on ListOps."""
    found = load(results, 'listops')
    if not found:
        return None
    rows = [[
        _name(r), f'{r["parameters"] / 1e6:.2f}', f'{r["iterations"]:,}',
        f'{r["samples"]:,}',
        str(r['seed']), f'{r["accuracy"]:.1f}'
    ] for r in found['rows']]
    places = {where(r['environment']): None for r in found['rows']}
    return ('ListOps, trained from scratch, tested on all 2,000 expressions '
            'after the last iteration:\n\n' + table([
                'config', 'params, M', 'iterations', 'expressions seen',
                'seed', 'test accuracy, %'
            ], rows) + '\n\nTested on ' + '; '.join(places) +
            '; `python tools/analysis_tools/collect_listops.py`')


def shipped_language_model(results: Path) -> Optional[str]:
    """The score of the weights that demo/lm_demo.py uses."""
    found = load(results, 'books_lm_shipped')
    if not found:
        return None
    metrics = found['metrics']
    command = f'{found["config"]} {found["checkpoint"]}'
    return (f'On all validation text: **{metrics["bpc"]:.3f} bits per '
            f'character**, perplexity {metrics["perplexity"]:.2f}.\n\n'
            f'`python tools/test.py {command}`')
