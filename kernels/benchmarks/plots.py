"""Pictures of what gpu.py measured: time, rates, memory, images a second.

    python kernels/benchmarks/plots.py [--results DIR] [--out DIR]

Needs matplotlib only, so it runs where the JSON has been copied to.
"""
import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import matplotlib

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

RESULTS = Path(__file__).resolve().parents[2] / 'benchmarks/results'
LABELS = dict(
    sdpa='SDPA, all tokens',
    sdpa_cudnn='SDPA through cuDNN',
    window='windows of 8 x 8',
    flex='flex_attention, same pattern',
    natten='NATTEN, near field only',
    pooled='FMA, pooled queries',
    fma='FMA')
MARKERS = dict(
    fma='o',
    pooled='*',
    flex='x',
    sdpa='s',
    sdpa_cudnn='d',
    window='^',
    natten='v')
Value = Callable[[Dict[str, Any], str, str], Optional[float]]


def load(folder: Path, name: str) -> Dict[str, Any]:
    path = folder / f'{name}.json'
    return json.loads(path.read_text()) if path.exists() else {}


def per_image(row: Dict[str, Any], mode: str, name: str) -> Optional[float]:
    """Milliseconds of one image or sequence."""
    time = row['times'][mode].get(name)
    return (time['median'] * 1e3 /
            row['batch'] if isinstance(time, dict) else None)


def megabytes(row: Dict[str, Any], mode: str, name: str) -> Optional[float]:
    """Peak beyond the inputs of one image or sequence."""
    time = row['times'][mode].get(name)
    return (time['peak_bytes'] / 2**20 /
            row['batch'] if isinstance(time, dict) else None)


def tflops(row: Dict[str, Any], mode: str, name: str) -> Optional[float]:
    return row['tflops'].get(mode, {}).get(name)


def op_lines(axis: Any, rows: List[Dict[str, Any]], mode: str,
             value: Value) -> None:
    """One line for each competitor, and for each cell where it has one."""
    cells = sorted({row['cell_size'] for row in rows}, reverse=True)
    for name, label in LABELS.items():
        own = cells if name in ('fma', 'pooled', 'flex',
                                'natten') else cells[:1]
        for number, cell in enumerate(own):
            points = {}
            for row in rows:
                tokens = _tokens(row)
                found = value(row, mode, name)
                # Of several batches at a size, the largest fills the device.
                if row['cell_size'] == cell and found is not None:
                    points[tokens] = found
            if points:
                axis.plot(
                    list(points),
                    list(points.values()),
                    marker=MARKERS[name],
                    color=f'C{list(LABELS).index(name)}',
                    linestyle='-' if number == 0 else '--',
                    label=label + (f', cell {cell}' if own is cells else ''))
    axis.set_xscale('log', base=2)
    axis.set_xlabel('tokens')
    axis.grid(alpha=.3)


def _tokens(row: Dict[str, Any]) -> int:
    tokens = 1
    for size in row['shape']:
        tokens *= size
    return tokens


def draw_op(part: Dict[str, Any], title: str, path: Path) -> None:
    """Time, rate and memory, forward and forward with backward."""
    rows = [row for row in part['rows'] if 'reason' not in row]
    rows.sort(key=lambda row: (_tokens(row), row['batch']))
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 8.5))
    for line, mode in zip(axes, ('forward', 'training')):
        for axis, value, label in zip(line, (per_image, tflops, megabytes),
                                      ('ms each', 'TFLOP/s', 'MiB each')):
            op_lines(axis, rows, mode, value)
            axis.set_ylabel(label)
            if value is not tflops:
                axis.set_yscale('log')
        line[0].set_title('forward' if mode ==
                          'forward' else 'forward and backward')
        line[1].set_title('over the pairs of the definition')
        line[2].set_title('peak memory beyond the inputs')
    axes[0, 0].legend(fontsize=7)
    finish(figure, title, part, path)


def draw_models(part: Dict[str, Any], path: Path) -> None:
    """Images a second and memory over the size of the image."""
    rows = [row for row in part['rows'] if 'reason' not in row]
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 8.5), sharex=True)
    for line, mode in zip(axes, ('inference', 'training')):
        for name in dict.fromkeys(row['model'] for row in rows):
            mine = [
                r for r in rows if r['model'] == name and r['mode'] == mode
            ]
            mine.sort(key=lambda r: r['shape'])
            sides = [r['shape'][0] for r in mine]
            line[0].loglog(
                sides, [r['images_per_second'] for r in mine],
                'o-',
                label=name)
            line[1].loglog(
                sides,
                [r['peak_memory_bytes'] / 2**20 / r['batch'] for r in mine],
                'o-',
                label=name)
        line[0].set_title(mode)
        line[0].set_ylabel('images/s')
        line[1].set_ylabel('MiB an image')
    axes[0, 0].legend()
    for axis in axes[1]:
        axis.set_xlabel('side of the image, pixels')
    finish(figure, 'Backbones', part, path)


def finish(figure: Any, title: str, part: Dict[str, Any], path: Path) -> None:
    """Says where it was measured, and writes the picture."""
    where = part['environment']
    machine = where.get('device_name') or where['cpu']
    commit = (where['commit'] or {}).get('hash', 'unknown')[:10]
    figure.suptitle(f'{title}: {part["setting"]["dtype"]}, {machine}, torch '
                    f'{where["packages"]["torch"]}, commit {commit}')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
    print(f'wrote {path}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument(
        '--out', type=Path, help='folder of the PNGs (RESULTS/plots)')
    args = parser.parse_args()
    out = args.out or args.results / 'plots'
    op = load(args.results, 'op_gpu')
    for part, title in (('op2d', 'Images'), ('op1d', 'Causal sequences')):
        if any('reason' not in r for r in op.get(part, {}).get('rows', [])):
            draw_op(op[part], title, out / f'{part}_gpu.png')
    models = load(args.results, 'backbones_gpu').get('models', {})
    if any('reason' not in row for row in models.get('rows', [])):
        draw_models(models, out / 'backbones_gpu.png')


if __name__ == '__main__':
    main()
