"""Tables of the backbones."""
from pathlib import Path
from typing import Dict, Optional

from .formats import load, milliseconds, number, table, where, where_gpu


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
    lines: Dict[tuple, dict] = {}
    for r in found['rows']:
        if 'model' in r:
            key = (r['shape'][0], r['batch'], r['model'])
            lines.setdefault(key, {})[r['mode']] = r
    rows = []
    for (side, batch, model), modes in sorted(lines.items()):
        cells = [f'{model}, {side} × {side}, batch {batch}']
        for mode in ('inference', 'training'):
            r = modes.get(mode, {})
            memory = r.get('peak_memory_bytes')
            cells += [
                number(r.get('images_per_second')),
                number(memory / 2**20 if memory else None),
                number(r.get('ratio_to_swin'))
            ]
        rows.append(cells)
    if not any('images_per_second' in r for r in found['rows']):
        return None
    head = ['images/s', 'peak MiB', 'time / Swin-T']
    return (f'Backbones alone, {found["setting"]["dtype"]} autocast; '
            'inference, then a training step:\n\n' +
            table(['model, pixels', *head, *head], rows) +
            f'\n\n{where_gpu(found["environment"])}')
