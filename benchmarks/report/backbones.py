"""Tables of the backbones."""
from pathlib import Path
from typing import List, Optional

from .formats import load, number, table, where_gpu
from .operation import cpu_label, cpu_page, cpu_rows, cpu_table, ms, ratios

HOW = '`python benchmarks/backbones.py`: float32 unless stated, random weights'


def mebibytes(value: Optional[float]) -> str:
    return '–' if value is None else f'{value / 2**20:,.0f}'


def backbones(results: Path) -> Optional[str]:
    """FMA-T's time, and over that of others."""
    found = load(results, 'backbone_cpu') or {}
    rows = cpu_rows(found, 'inference', 'training')
    names = list(dict.fromkeys(x for row in rows for x in row['seconds']))

    def cells(row: dict) -> List[str]:
        over = [row['ratio'].get(name) for name in names[1:]]
        return [
            ms(row, names[0]),
            *('–' if x is None else f'**{1 / x:.2f}**' for x in over)
        ]

    return cpu_page(
        found, [
            cpu_table(
                'FMA-T, and its time over that of others (below 1: FMA-T is '
                'faster); backbones alone, training is a step of AdamW:',
                ['FMA-T, ms', *(f'/ {name}'
                                for name in names[1:])], rows, cells)
        ],
        'inference',
        'training',
        how=HOW)


def peaks(found: dict) -> Optional[str]:
    """What the process grew by, for each model."""
    rows = cpu_rows(found, 'memory', 'large')
    names = list(dict.fromkeys(x for row in rows for x in row['process']))
    return cpu_table(
        'What the process grew by at the most, MiB, beyond weights and input '
        '(in training, gradients are in it):', names, rows,
        lambda r: [mebibytes(r['process'].get(name)) for name in names])


def scores(found: dict) -> Optional[str]:
    """Trained weights at each precision."""
    rows = [r for r in cpu_rows(found, 'precision') if 'score' in r]
    if not rows:
        return None
    names = list(rows[0]['score'])
    return 'Trained weights at each precision:\n\n' + table(
        ['weights', 'images', 'metric', *names], [[
            f'`{r["weights"]}`', f'{r["images"]:,}',
            r['metric'].split('/')[-1], *(f'{r["score"][name]:.2f}'
                                          for name in names)
        ] for r in rows])


def throughput(rows: List[dict]) -> Optional[str]:
    """Images a second of a whole training."""
    names = list(rows[0]['seconds']) if rows else []
    return cpu_table(
        'Training on CamVid by `tools/train.py`, data included: FPN on '
        'FMA-nano and on its twin with shifted windows:',
        [f'{name}, images/s' for name in names] + ['FMA / Swin'], rows,
        lambda r: [
            *(number(r['batch'] / r['seconds'][x]['median'])
              for x in names), f'**{r["ratio"][names[1]]:.2f}**'
        ])


def details(results: Path) -> Optional[str]:
    """Memory, one large image, the compiler, precisions, a whole training."""
    found = load(results, 'backbone_cpu') or {}
    precision = [r for r in cpu_rows(found, 'precision') if 'seconds' in r]
    return cpu_page(
        found, [
            peaks(found),
            ratios('One image as a whole:', cpu_rows(found, 'large')),
            ratios('Through `torch.compile`:', cpu_rows(found, 'compiled')),
            ratios(
                'FMA-T at each precision, bfloat16 by autocast, int8 by '
                '`quantize_dynamic`:', precision),
            scores(found),
            throughput(cpu_rows(found, 'camvid'))
        ],
        'memory',
        'large',
        'compiled',
        'precision',
        'camvid',
        how=HOW)


def profile(results: Path) -> Optional[str]:
    """Where FMA-T's time goes, before and after the C kernels."""
    found = load(results, 'backbone_cpu') or {}
    rows = cpu_rows(found, 'profile')
    if not rows:
        return None
    columns = [(row, name) for name in ('torch', 'native') for row in rows]
    columns.sort(key=lambda x: rows.index(x[0]))
    head = [f'{cpu_label(row)}: {name}' for row, name in columns]
    lines = [['all, ms', *(ms(row, name) for row, name in columns)]]
    for kind in rows[0]['shares']['native']:
        lines.append([
            f'{kind}, %',
            *(f'{row["shares"][name][kind]:.0%}'[:-1] for row, name in columns)
        ])
    return cpu_page(
        found, [
            'Where FMA-T\'s time goes, with attention on the PyTorch backend '
            '(before) and on the C kernels (after):\n\n' +
            table(['self CPU time', *head], lines)
        ],
        'profile',
        how=HOW)


def backbones_gpu(results: Path) -> Optional[str]:
    """FMA-T beside others on a GPU."""
    found = (load(results, 'backbones_gpu') or {}).get('models')
    if not found:
        return None
    rows = []
    for r in found['rows']:
        size = ' × '.join(map(str, r['shape']))
        for model, seconds in r['seconds'].items():
            rows.append([
                f'{model}, {size}, batch {r["batch"]}, {r["mode"]}',
                number(r['batch'] / seconds['median']),
                number(r['peak_bytes'][model] / 2**20),
                number(r['ratio'][model] if 'Swin-T' in r['seconds'] else None)
            ])
    return ('Backbones alone, bfloat16 autocast:\n\n' + table(
        ['model, pixels', 'images/s', 'peak MiB', 'time / Swin-T'], rows) +
            f'\n\n{where_gpu(found["environment"])}')
