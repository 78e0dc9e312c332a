"""Tables of attention layers, and of approximations of all tokens."""
from pathlib import Path
from typing import Optional

from .formats import load, number, short, table, where


def layers(results: Path) -> Optional[str]:
    """What attention layers cost."""
    found, parts = load(results, 'layers_cpu') or {}, []
    for kind, part in found.items():
        setting, rows = part['setting'], []
        full = {
            (tuple(r['shape']), r['mode']): r['seconds']['layer']['median']
            for r in part['rows']
            if r['layer'].startswith('Full') and 'seconds' in r
        }
        for r in part['rows']:
            size = ' × '.join(f'{side:,}' for side in r['shape'])
            cells = [
                f'`{r["layer"]}`, {size}, {r["mode"]}',
                short(r['parameters'])
            ]
            if 'reason' in r:
                rows.append([*cells, r['reason'], '', '', ''])
                continue
            seconds = r['seconds']['layer']['median']
            every = full.get((tuple(r['shape']), r['mode']))
            rows.append([
                *cells,
                short(r['macs']),
                number(seconds * 1e3),
                number(seconds / every if every else None),
                number(r['peak_memory_bytes'] / 2**20)
            ])
        parts.append(
            f'{kind.capitalize()}, {setting["dim"]} channels in '
            f'{setting["heads"]} heads, {setting["dtype"]}, batch 1; '
            'multiply-adds of the forward pass; time over that of all '
            'tokens:\n\n' + table([
                'layer, tokens', 'params', 'MACs', 'ms', 'of all tokens',
                'peak MiB'
            ], rows) + f'\n\n{where(part["environment"])}; '
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
        lines = [[
            f'{r["family"]}, {r["name"]}', f'{r["real"]["mean"]:.3f}',
            f'{r["real"]["worst"]:.3f}',
            number(r['seconds']['median'] * 1e3 if 'seconds' in r else None),
            number(r['peak_bytes'] / 2**20 if 'peak_bytes' in r else None)
        ] for r in rows]
        parts.append(
            f'{mode.capitalize()}:\n\n' +
            table(['method', 'error', 'worst head', 'ms', 'peak MiB'], lines))
    notes = {
        f'{r["family"]}: {r["note"]}.': None
        for rows in found['modes'].values()
        for r in rows if r['note']
    }
    missing = [f'{k} is missing: {x}.' for k, x in found['missing'].items()]
    return '\n\n'.join([
        *parts, ' '.join([*notes, *missing]),
        f'{where(found["environment"])}; `python benchmarks/approximation.py`'
    ])
