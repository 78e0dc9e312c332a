"""Rows of a comparison as text and as a picture."""

from pathlib import Path
from typing import Any, Dict, List, Optional

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

from .subject import shape_text  # noqa: E402

MARKERS = 'osv^D*P<>Xdp'


def short(count: Optional[float], digits: int = 3) -> str:
    """A count with a unit, such as ``4.5 G``; a dash for None."""
    if count is None:
        return '-'
    for size, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if count >= size:
            return f'{count / size:.{digits}g}{unit}'
    return f'{count:.{digits}g}'


def _ms(seconds: float) -> str:
    value = seconds * 1e3
    return f'{value:.0f}' if value >= 1000 else f'{value:.3g}'


def ratio_text(row: Dict[str, Any]) -> str:
    """A row's ratio, with a star where FMA stands in for all tokens."""
    if 'ratio_of_medians' not in row:
        return '-'
    star = '*' if row['reference'].startswith('FMA') else ''
    return f'{row["ratio_of_medians"]:.3g}{star}'


def cost_table(rows: List[Dict[str, Any]]) -> str:
    """Rows of :func:`~.measure.compare_cost` as lines of text."""
    width = max(max(len(row['layer']) for row in rows), 5)
    lines = [
        f'{"layer":<{width}}{"tokens":>11}{"parameters":>12}{"MACs":>9}'
        f'{"median ms":>11}{"quartiles":>19}{"ratio":>8}{"peak MiB":>10}'
    ]
    for row in rows:
        start = (f'{row["layer"]:<{width}}{shape_text(row["shape"]):>11}'
                 f'{short(row.get("parameters")):>12}'
                 f'{short(row.get("macs")):>9}')
        if row['status'] != 'measured':
            lines.append(f'{start}  {row["status"]}: {row["reason"]}')
            continue
        seconds = row['seconds']
        low, high = _ms(seconds['quartile_1']), _ms(seconds['quartile_3'])
        lines.append(f'{start}{_ms(seconds["median"]):>11}'
                     f'{f"{low} to {high}":>19}'
                     f'{ratio_text(row):>8}'
                     f'{row["peak_memory_bytes"] / 2**20:>10.1f}')
    names = list(
        dict.fromkeys(row['reference'] for row in rows if 'reference' in row))
    if names:
        names = [f'{n} (*)' if n.startswith('FMA') else n for n in names]
        lines.append(f'ratio: median over that of {" or ".join(names)}')
    return '\n'.join(lines)


def accuracy_table(rows: List[Dict[str, Any]]) -> str:
    """Rows of :func:`~.training.compare_accuracy` as lines of text."""
    width = max(max(len(row['layer']) for row in rows), 5)
    lines = [f'{"layer":<{width}}{"parameters":>12}{"s":>8}  scores']
    for row in rows:
        start = f'{row["layer"]:<{width}}{short(row.get("parameters")):>12}'
        if row['status'] != 'trained':
            lines.append(f'{start}  {row["status"]}: {row["reason"]}')
            continue
        scores = ', '.join(f'{k} {v:.4g}' for k, v in row['metrics'].items())
        lines.append(f'{start}{row["train_seconds"]:>8.0f}  {scores}')
    return '\n'.join(lines)


def draw_cost(rows: List[Dict[str, Any]], title: str, path: Path) -> None:
    """Time and memory against tokens, a line of panels for each mode.

    Args:
        rows: From :func:`~.measure.compare_cost`.
        title: Of the picture.
        path: The PNG.
    """
    modes = list(dict.fromkeys(row['mode'] for row in rows))
    layers = list(dict.fromkeys(row['layer'] for row in rows))
    figure, axes = pyplot.subplots(
        len(modes), 2, figsize=(11, 4.6 * len(modes)), squeeze=False)
    for line, mode in zip(axes, modes):
        for number, layer in enumerate(layers):
            mine = [
                row for row in rows
                if row['status'] == 'measured' and (row['mode'],
                                                    row['layer']) == (mode,
                                                                      layer)
            ]
            tokens = [row['tokens'] for row in mine]
            style = dict(
                marker=MARKERS[number % len(MARKERS)],
                color=f'C{number % 10}',
                # Colours repeat after ten.
                linestyle='-' if number < 10 else '--',
                label=layer)
            line[0].plot(tokens, [r['seconds']['median'] * 1e3 for r in mine],
                         **style)
            line[1].plot(tokens,
                         [r['peak_memory_bytes'] / 2**20 for r in mine],
                         **style)
        for axis, what in zip(line, ('median time, ms', 'peak memory, MiB')):
            axis.set_xscale('log', base=2)
            axis.set_yscale('log')
            axis.set_xlabel('tokens')
            axis.set_ylabel(f'{what} ({mode})')
            axis.grid(alpha=.3)
            axis.spines[['top', 'right']].set_visible(False)
    axes[0, 1].legend(
        frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, .5))
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
