"""Curves of trainings: kept as JSON, drawn as PNG."""

from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import matplotlib

from fma_vision.utils.files import write_json
from fma_vision.utils.results import read_json

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

# More would not be seen.
POINTS = 100
Points = List[Tuple[float, float]]


def thin(points: Points) -> Points:
    """Means of neighbours, so that at most ``POINTS`` are left."""
    size = -(-len(points) // POINTS) or 1
    parts = [points[i:i + size] for i in range(0, len(points), size)]
    return [(round(sum(x for x, _ in part) / len(part),
                   3), round(sum(y for _, y in part) / len(part), 4))
            for part in parts]


def curve_of(lines: Sequence[Dict[str, Any]], epochs: Any,
             key: str) -> Dict[str, Any]:
    """What a training's log says over time.

    Args:
        lines: As :func:`fma_vision.utils.results.read_log` returns them.
        epochs: How many the training has, None if it counts iterations.
        key: Name of the metric in the log.

    Returns:
        ``unit`` of the time, points of ``loss`` and of ``metric``, and the
        name of the latter as ``score``.
    """
    training = [line for line in lines if 'loss' in line]
    scale = epochs / training[-1]['step'] if epochs and training else 1
    return dict(
        unit='epochs' if epochs else 'iterations',
        score=key,
        loss=thin([(line['step'] * scale, line['loss']) for line in training]),
        # Steps of validation are epochs already.
        metric=[(line['step'], line[key]) for line in lines if key in line])


def update(folder: Path, pictures: Path,
           curves: Dict[Tuple[str, str], Dict[str, Dict[str, Any]]]) -> None:
    """Add curves to those that are kept, and draw them.

    Args:
        folder: Of the JSON files.
        pictures: Of the PNG files.
        curves: By protocol and data set, then by the run's name and seed.
    """
    for (protocol, dataset), found in curves.items():
        path = folder / f'{protocol}_{dataset}.json'
        kept = read_json(path) if path.is_file() else {}
        kept.update(found)
        write_json(path, kept)
        draw(kept, pictures / f'experiments_{protocol}_{dataset}.png')


def draw(curves: Dict[str, Dict[str, Any]], path: Path) -> None:
    """Loss, and the metric where it was measured in training.

    Args:
        curves: From :func:`curve_of`, by name.
        path: The picture.
    """
    parts = ['loss'] + ['metric'] * any(c['metric'] for c in curves.values())
    scores = {c['score'] for c in curves.values() if c.get('score')}
    # Seeds of a run share a line in the legend.
    runs = sorted({_run_of(name) for name in curves})
    styles = {
        run:
        dict(
            color=pyplot.get_cmap('tab10')(i % 10),
            linestyle=('-', '--', ':')[i // 10 % 3])
        for i, run in enumerate(runs)
    }
    figure, axes = pyplot.subplots(
        1,
        len(parts),
        figsize=(6 * len(parts) + 2, 4.5),
        squeeze=False,
        layout='constrained')
    for axis, part in zip(axes[0], parts):
        for name, curve in curves.items():
            if curve[part]:
                axis.plot(
                    *zip(*curve[part]), linewidth=1, **styles[_run_of(name)])
        axis.set_xlabel(next(iter(curves.values()))['unit'])
        axis.set_ylabel('training loss' if part ==
                        'loss' else ' '.join(['validation', *sorted(scores)]))
        axis.grid(alpha=.3)
        axis.spines[['top', 'right']].set_visible(False)
    lines = [pyplot.Line2D([], [], **styles[run]) for run in runs]
    figure.legend(
        lines,
        runs,
        loc='outside right center',
        frameon=False,
        fontsize='small')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _run_of(name: str) -> str:
    """The name of a curve without its seed."""
    return name.partition(', seed ')[0]
