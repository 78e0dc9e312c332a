"""Tables of layers: their cost, their rivals, and the language model's."""
from pathlib import Path
from typing import Callable, Optional

from .formats import (Cell, fixed, load, ms, number, page, rows_of, seconds,
                      section, short, where)


def layers(results: Path) -> Optional[str]:
    """What attention layers cost."""
    parts = []
    for kind, part in load(results, 'layers_cpu').items():
        rows = part['rows']
        setting = {**part['setting'], **rows[0]}
        full = {
            (*r['shape'], r['mode']): seconds(r, 'layer')
            for r in rows if r['layer'].startswith('Full') and 'seconds' in r
        }

        def measured(cell: Callable[[dict], str]) -> Cell:
            return lambda r: '' if 'reason' in r else cell(r)

        def of_all(row: dict, full: dict = full) -> str:
            every = full.get((*row['shape'], row['mode']))
            return number(every and seconds(row, 'layer') / every)

        parts.append(
            section(
                f'{kind.capitalize()}, {setting["dim"]} channels in '
                f'{setting["heads"]} heads, float32, batch 1; multiply-adds '
                'of the forward pass; time over that of all tokens:', rows, {
                    'params':
                    lambda r: short(r['parameters']),
                    'MACs':
                    lambda r: r.get('reason') or short(r['macs']),
                    'ms':
                    measured(ms('layer')),
                    'of all tokens':
                    measured(of_all),
                    'peak MiB':
                    measured(lambda r: number(r['peak_memory_bytes'] / 2**20))
                }, 'layer, tokens') + f'\n\n{where(part["environment"])}; '
            '`python benchmarks/layers.py`')
    return '\n\n'.join(parts) or None


def approximation(results: Path) -> Optional[str]:
    """Errors and times of approximations of full attention."""
    found = load(results, 'approximation_cpu')
    if not found:
        return None
    setting, model = found['setting'], found['model']
    packages = found['environment']['compared'].items()
    parts = [
        f'{setting["length"]:,} tokens, {setting["heads"]} heads × '
        f'{setting["head_dim"]}, float32, batch 1: queries, keys and values '
        f'of the two middle blocks of `{Path(model["config"]).stem}` after '
        f'{model["iterations"]} iterations, on a text that it codes at '
        f'{setting["bpc"]:.2f} bits per character. Errors are Frobenius norms '
        'relative to softmax attention in float64, means over the heads; '
        'times are of the attention alone, taken in turns: read them as '
        f'ratios. {", ".join(" ".join(pair) for pair in packages)}.'
    ]
    for mode, rows in found['modes'].items():
        parts.append(
            section(
                f'{mode.capitalize()}:', rows, {
                    'error': lambda r: f'{r["real"]["mean"]:.3f}',
                    'worst head': lambda r: f'{r["real"]["worst"]:.3f}',
                    'ms': lambda r: number(r['seconds']['median'] * 1e3),
                    'peak MiB': lambda r: number(r['peak_bytes'] / 2**20)
                }, 'method', lambda r: f'{r["family"]}, {r["name"]}'))
    notes = dict.fromkeys(f'{r["family"]}: {r["note"]}.'
                          for rows in found['modes'].values() for r in rows
                          if r['note'])
    missing = [f'{k} is missing: {x}.' for k, x in found['missing'].items()]
    return '\n\n'.join([
        *parts, ' '.join([*notes, *missing]),
        f'{where(found["environment"])}; `python benchmarks/approximation.py`'
    ])


# --------------------------------------------------------- language model
def streaming(results: Path) -> Optional[str]:
    """Prefill and decoding of the language model."""
    found = load(results, 'language_model_cpu')
    rows = rows_of(found, 'streaming')
    if not rows:
        return None
    return page(found, [
        section(
            f'Four blocks of 256 channels ({rows[0]["parameters"] / 1e6:.1f} '
            'M parameters), float32, batch 1: reading a text in chunks, then '
            'writing token by token, means of 64 steps. "shipped" are the '
            'weights of the demo (hierarchical summaries, rank 4), "averages" '
            'the same at rank 1, "full attention" keeps all keys and values, '
            '100% of the cache.', rows, {
                'tokens read': fixed('context', 0),
                'read, tokens/s': fixed('tokens_per_second', 0),
                'peak MiB': lambda r: number(r['prefill_peak_bytes'] / 2**20),
                'ms a step': lambda r: f'{seconds(r, "step") * 1e3:.2f}',
                'state, KiB': lambda r: f'{r["state_bytes"] / 1024:,.0f}',
                'of cache, %': lambda r: f'{r["state_over_cache"] * 100:.2f}'
            }, 'model', lambda r: r['model'])
    ], ['streaming'], '`python benchmarks/language_model.py`')


def precisions(results: Path) -> Optional[str]:
    """The shipped language model in float32, bfloat16 and int8."""
    found = load(results, 'language_model_cpu')
    rows = rows_of(found, 'precision')
    if not rows:
        return None
    whole, steps = rows
    bits = whole['bits_per_character']
    return page(found, [
        section(
            'The shipped language model, bits a character on 128 windows of '
            'validation text:', list(bits), {
                'bits a character': lambda name: f'{bits[name]:.4f}',
                '4,096 tokens, ms':
                lambda name: f'{seconds(whole, name) * 1e3:,.0f}',
                'ms a step':
                lambda name: f'{seconds(steps, name) / 64 * 1e3:.2f}'
            }, 'precision', lambda name: name)
    ], ['precision'],
                '`python benchmarks/language_model.py --parts precision`')
