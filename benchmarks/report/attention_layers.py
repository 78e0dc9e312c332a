"""Tables of attention layers side by side."""
from pathlib import Path
from typing import Dict, List, Optional

from .formats import number, short, table, where_run
from .reading import load

# Of the layers that the README shows.
ATTENTION = ('FMA', 'FMA-linear', 'FullAttention', 'FullAttention1D',
             'NeighborhoodAttention', 'FMMformerAttention2D',
             'FMMformerAttention1D')


def attention_setting(found: dict) -> str:
    """What the layers of a comparison share, as a sentence."""
    setting, kind = found['setting'], 'Maps'
    if setting['ndim'] == 1:
        kind = 'Causal sequences' if setting['causal'] else 'Sequences'
    return (f'{kind}, {setting["dim"]} channels in {setting["heads"]} heads, '
            f'{setting["dtype"]}, batch {setting["batch"]}')


def tokens_of(row: dict) -> str:
    return ' × '.join(f'{side:,}' for side in row['shape'])


def attention_short(results: Path) -> Optional[str]:
    """Some attention layers at the two largest sizes, on a CPU."""
    parts, places = [], {}
    for name in ('attention_2d_cpu', 'attention_1d_cpu'):
        found = load(results, name)
        rows = [
            r for r in (found or {}).get('rows', [])
            if r['mode'] == 'inference' and r['layer'] in ATTENTION
        ]
        if not rows:
            continue
        sizes = list(dict.fromkeys(tokens_of(r) for r in rows))[-2:]
        lines: Dict[str, List[str]] = {}
        for r in rows:
            if tokens_of(r) in sizes:
                seconds = r.get('seconds')
                memory = r.get('peak_memory_bytes') if seconds else None
                lines.setdefault(r['layer'], [f'`{r["layer"]}`']).extend([
                    number(seconds['median'] *
                           1e3) if seconds else r['reason'].split(':')[0],
                    number(memory / 2**20 if memory else None)
                ])
        head = ['layer'] + [f'{s}, {u}' for s in sizes for u in ('ms', 'MiB')]
        parts.append(f'{attention_setting(found)}:\n\n' +
                     table(head, list(lines.values())))
        places[where_run(found['environment'])] = None
    if not parts:
        return None
    return ('One attention layer with its projections, inference: median '
            'time and peak memory.\n\n' + '\n\n'.join(parts) + '\n\n' +
            '; '.join(places) +
            '; `python tools/analysis_tools/compare_attention.py`')


def ratio_to(row: dict) -> str:
    """A ratio, named where it is not to attention over all tokens."""
    ratio = number(row.get('ratio_of_medians'))
    name = row.get('reference', '')
    return f'{ratio} (`{name}`)' if name.startswith('FMA') else ratio


def attention_cost(results: Path, found: dict, picture: str) -> str:
    """All rows of one comparison, a table for each mode."""
    parts = [f'{attention_setting(found)}.']
    for mode in dict.fromkeys(r['mode'] for r in found['rows']):
        rows = []
        for r in found['rows']:
            if r['mode'] != mode:
                continue
            cells = [
                f'`{r["layer"]}`, {tokens_of(r)}',
                short(r.get('parameters')),
                short(r.get('macs'))
            ]
            if r['status'] == 'measured':
                seconds = r['seconds']
                low, high = (
                    number(seconds[f'quartile_{i}'] * 1e3) for i in (1, 3))
                cells += [
                    number(seconds['median'] * 1e3), f'{low} to {high}',
                    ratio_to(r),
                    number(r['peak_memory_bytes'] / 2**20)
                ]
            else:
                # A bar would begin a column.
                reason = r['reason'].replace('|', '/')
                cells += [f'{r["status"]}: {reason}', '', '', '']
            rows.append(cells)
        named = ' or '.join(
            dict.fromkeys(f'`{r["reference"]}`' for r in found['rows']
                          if r['mode'] == mode and 'reference' in r))
        step = dict(
            inference='Inference', training='Forward and backward')[mode]
        note = f'; the ratio is to {named}' if named else ''
        parts.append(f'{step}{note}; multiply-adds of the forward pass:\n\n' +
                     table([
                         'layer, tokens', 'params', 'MACs', 'ms', 'quartiles',
                         'ratio', 'peak MiB'
                     ], rows))
    if (results / picture).exists():
        parts.append(f'![Time and memory against tokens](../benchmarks/results'
                     f'/{picture})')
    parts.append(f'{where_run(found["environment"])}; '
                 '`python tools/analysis_tools/compare_attention.py`')
    return '\n\n'.join(parts)


def attention_details(results: Path) -> Optional[str]:
    """All that was measured of attention layers."""
    parts = [
        attention_cost(results, found, f'{path.stem}.png') for path in sorted(
            results.glob('attention_[12]d_*.json'), reverse=True)
        for found in [load(results, path.stem)] if found['rows']
    ]
    return '\n\n'.join(parts) or None


def attention_accuracy(results: Path) -> Optional[str]:
    """Scores of one model with several attention layers."""
    parts = []
    for path in sorted(results.glob('attention_accuracy_*.json')):
        found = load(results, path.stem)
        done = [r for r in found['rows'] if r['status'] == 'trained']
        if not done:
            continue
        names = list(done[0]['metrics'])
        rows = []
        for r in found['rows']:
            if r['status'] == 'trained':
                scores = [number(r['metrics'].get(name)) for name in names]
            else:
                scores = [r['reason'].replace('|', '/')] + [''] * (
                    len(names) - 1)
            rows.append([f'`{r["layer"]}`',
                         short(r.get('parameters'))] + scores)
        first = done[0]
        parts.append(
            f'`{Path(found["config"]).stem}`, {first["iterations"]:,} '
            f'iterations on {first["train_samples"]:,} samples, the last '
            f'weights on {first["test_samples"]:,} others; same seed, data '
            'and order:\n\n' + table(['layer', 'params', *names], rows) +
            f'\n\n{where_run(first["environment"])}; '
            '`python tools/analysis_tools/compare_attention.py --train`')
    return '\n\n'.join(parts) or None
