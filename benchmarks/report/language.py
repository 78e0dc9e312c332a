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
