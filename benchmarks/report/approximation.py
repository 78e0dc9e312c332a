"""Tables of approximations of attention over all tokens."""
from pathlib import Path
from typing import Dict, List, Optional

from .formats import number, table, where
from .reading import load


def approximation_rows(rows: List[dict]) -> str:
    """Errors, times and memory of attentions, as a table."""
    return table(
        [
            'method', 'error', 'worst head', 'cosine', 'needle error',
            'needle found', 'ms', 'peak MiB'
        ],
        [
            [
                f'{r["family"]}, {r["name"]}',
                f'{r["real"]["mean"]:.3f}',
                f'{r["real"]["worst"]:.3f}',
                f'{r["real"]["cosine"]:.3f}',
                f'{r["needle"]["mean"]:.3f}',
                # No minus before a zero.
                f'{round(r["needle"]["recovered"], 2) + 0.:.2f}',
                number(r['seconds']['median'] *
                       1e3 if 'seconds' in r else None),
                number(r['peak_bytes'] / 2**20 if 'peak_bytes' in r else None)
            ] for r in rows
        ])


def approximation_verdict(mode: str, found: Optional[dict]) -> str:
    """One sentence: FMA within the others' median time."""
    if not found:
        return ''
    text = (f'{mode.capitalize()}, the others\' median time (of the fastest '
            f'setting of each) is {found["budget_seconds"] * 1e3:,.0f} ms, '
            f'their least error {found["nearest_other_error"]:.3f} '
            f'({found["nearest_other"]}, '
            f'{found["nearest_other_seconds"] * 1e3:,.0f} ms); ')
    if found['chosen'] is None:
        return text + 'no form of FMA is as fast.'
    return text + (f'FMA within that time: **{found["chosen_error"]:.3f}** '
                   f'({found["chosen"]}, '
                   f'{found["chosen_seconds"] * 1e3:,.0f} ms).')


def approximation_setting(found: dict) -> str:
    """What was measured, in a few sentences."""
    setting, model = found['setting'], found['model']
    packages = ', '.join(
        f'{name} {version}'
        for name, version in found['environment']['compared'].items()
        if version)
    blocks = ' and '.join(map(str, model['layers']))
    return (
        f'{setting["length"]:,} tokens, {setting["heads"]} heads × '
        f'{setting["head_dim"]}, {setting["dtype"]}, batch 1: queries, keys '
        f'and values of blocks {blocks} of '
        f'`{Path(model["config"]).stem}` after {model["iterations"]} '
        f'iterations, on a text that it codes at '
        f'{setting["report"]["bpc"]:.2f} bits per character. Errors are '
        'Frobenius norms relative to softmax attention in float64, means '
        f'over the heads; times are of the attention alone, taken in turns: '
        f'read them as ratios. {packages}.')


def approximation(results: Path) -> Optional[str]:
    """Errors and times of approximations of full attention."""
    found = load(results, 'approximation_cpu')
    if not found:
        return None
    parts = [approximation_setting(found)]
    for mode, part in found['modes'].items():
        notes = {
            f'{r["family"]}: {r["note"]}': None
            for r in part['rows'] if r['note']
        }
        sentences = [
            approximation_verdict(mode, part.get('verdict')),
            *(f'{note}.' for note in notes)
        ]
        parts += [
            f'{mode.capitalize()}:',
            approximation_rows(part['rows']),
            ' '.join(filter(None, sentences))
        ]
    parts += [
        f'{family} is missing: {reason}.'
        for family, reason in found['missing'].items()
    ]
    return ('\n\n'.join(filter(None, parts)) +
            f'\n\n{where(found["environment"])}; `python '
            'tools/analysis_tools/compare_approximation.py`')


def approximation_short(results: Path) -> Optional[str]:
    """The nearest setting of each family."""
    found = load(results, 'approximation_cpu')
    if not found:
        return None
    parts = [approximation_setting(found)]
    for mode, part in found['modes'].items():
        verdict = part.get('verdict', {})
        chosen: Dict[str, dict] = {}
        for row in part['rows']:
            family = row['family']
            if family == 'FMA' and verdict:
                if row['name'] == verdict['chosen']:
                    chosen[family] = row
            elif family not in chosen or row['real']['mean'] < chosen[family][
                    'real']['mean']:
                chosen[family] = row
        parts += [
            f'{mode.capitalize()}, the nearest setting of each:',
            approximation_rows(list(chosen.values()))
        ]
    return ('\n\n'.join(parts) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/compare_approximation.py`; all '
            'settings: [docs/attention.md](docs/attention.md)')
