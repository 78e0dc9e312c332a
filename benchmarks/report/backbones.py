"""Tables of the backbones and of the weights for street scenes."""
from pathlib import Path
from typing import Optional

from .formats import milliseconds, number, table, where, where_gpu
from .reading import load


def backbones(results: Path) -> Optional[str]:
    """FMA-T against Swin-T."""
    found = load(results, 'backbone_latency_cpu')
    if not found:
        return None
    rows = []
    for r in found['results']:
        side = ' × '.join(map(str, r['shape']))
        rows.append([
            f'`{Path(r["config"]).stem}`, {side}',
            f'{r["parameters"] / 1e6:.1f}',
            milliseconds(r['latency_seconds']), f'{r["ratio_of_medians"]:.2f}',
            f'{r["peak_memory_bytes"] / 2**20:.0f}'
        ])
    return ('Backbones alone, one image, float32; the ratio is to '
            'mmpretrain\'s Swin-T:\n\n' +
            table(['config, pixels', 'params, M', 'ms', 'ratio', 'peak MiB'],
                  rows) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/benchmark.py`')


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


def shipped(results: Path) -> Optional[str]:
    """Scores of the shipped weights."""
    found = load(results, 'street8')
    if not found:
        return None
    rows = []
    for name, key in (('LabelMeFacade, 189 held-out photographs',
                       'labelmefacade'), ('CamVid, 101 validation frames',
                                          'camvid')):
        metrics = found['metrics']
        rows.append([name] + [
            f'{metrics[f"{key}/{metric}"]:.1f}'
            for metric in ('mIoU', 'aAcc', 'mAcc')
        ])
    return (
        'The shipped weights, trained from scratch on a CPU for about '
        'an hour:\n\n' +
        table(['validation set', 'mIoU', 'pixel accuracy', 'mean accuracy'],
              rows) + f'\n\n`python tools/test.py {found["config"]} '
        f'{found["checkpoint"]}`')


def classification(results: Path) -> Optional[str]:
    """Scores on small classification sets."""
    found = load(results, 'fashion_mnist')
    if not found:
        return None
    top1 = found['metrics']['accuracy/top1']
    return (
        'Classification, trained from scratch on a CPU:\n\n' +
        table(['config', 'test images', 'top-1, %'],
              [[f'`{Path(found["config"]).stem}`', '10,000', f'{top1:.2f}']]))
