"""Tables of the backbones."""
from pathlib import Path
from typing import Optional

from .formats import (fixed, label, load, mebibytes, ms, number, page, ratios,
                      rows_of, seconds, section)

HOW = '`python benchmarks/backbones.py`: float32 unless stated, random weights'


def backbones(results: Path) -> Optional[str]:
    """FMA-T's time, and over that of others."""
    found, parts = load(results, 'backbone_cpu'), ('inference', 'training')
    rows = rows_of(found, *parts)
    names = dict.fromkeys(x for row in rows for x in row['seconds'])

    def over(name: str):
        return lambda r: (f'**{1 / r["ratio"][name]:.2f}**'
                          if name in r['ratio'] else '–')

    return page(found, [
        section(
            'FMA-T, and its time over that of others (below 1: FMA-T is '
            'faster); backbones alone, training is a step of AdamW:', rows, {
                'FMA-T, ms': ms('FMA-T'),
                **{
                    f'/ {x}': over(x)
                    for x in names if x != 'FMA-T'
                }
            }, 'pixels')
    ], parts, HOW)


def details(results: Path) -> Optional[str]:
    """Memory, one large image, the compiler, precisions, a whole training."""
    found = load(results, 'backbone_cpu')
    memory = rows_of(found, 'memory', 'large')
    precision = rows_of(found, 'precision')
    timed = [r for r in precision if 'seconds' in r]
    scored = [r for r in precision if 'score' in r]
    camvid = rows_of(found, 'camvid')
    nets = list(camvid[0]['seconds']) if camvid else []
    return page(found, [
        section(
            'What the process grew by at the most, MiB, beyond weights and '
            'input (in training, gradients are in it):', memory, {
                x: lambda r, x=x: mebibytes(r['process'].get(x))
                for x in dict.fromkeys(y for r in memory for y in r['process'])
            }, 'pixels'),
        ratios('One image as a whole:', rows_of(found, 'large'), 'pixels'),
        ratios('Through `torch.compile`:', rows_of(found, 'compiled'),
               'pixels'),
        ratios(
            'FMA-T at each precision, bfloat16 by autocast, int8 by '
            '`quantize_dynamic`:', timed, 'pixels'),
        section(
            'Trained weights at each precision:', scored, {
                'images': fixed('images', 0),
                'metric': lambda r: r['metric'].split('/')[-1],
                **{
                    x: lambda r, x=x: f'{r["score"][x]:.2f}'
                    for x in (scored[0]['score'] if scored else ())
                }
            }, 'weights', lambda r: f'`{r["weights"]}`'),
        section(
            'Training on CamVid by `tools/train.py`, data included: FPN on '
            'FMA-nano and on its twin with shifted windows:', camvid, {
                **{
                    f'{x}, images/s':
                    lambda r, x=x: number(r['batch'] / seconds(r, x))
                    for x in nets
                }, 'FMA / Swin': lambda r: f'**{r["ratio"][nets[1]]:.2f}**'
            }, 'pixels')
    ], ('memory', 'large', 'compiled', 'precision', 'camvid'), HOW)


def profile(results: Path) -> Optional[str]:
    """Where FMA-T's time goes, before and after the C kernels."""
    found = load(results, 'backbone_cpu')
    rows = [
        dict(row, name=x) for x in ('torch', 'native')
        for row in rows_of(found, 'profile')
    ]
    return page(found, [
        section(
            'Where FMA-T\'s time goes, %, with attention on the PyTorch '
            'backend (before) and on the C kernels (after):', rows, {
                'ms': lambda r: ms(r['name'])(r),
                **{
                    x: lambda r, x=x: f'{100 * r["shares"][r["name"]][x]:.0f}'
                    for x in (rows[0]['shares']['torch'] if rows else ())
                }
            }, 'pixels', lambda r: f'{label(r)}, {r["name"]}')
    ], ('profile', ), HOW)


def gpu(results: Path) -> Optional[str]:
    """FMA-T beside others on a GPU."""
    found = load(results, 'backbone_gpu')
    rows = [r for r in found.get('gpu', {}).get('rows', []) if 'seconds' in r]
    names = dict.fromkeys(x for r in rows for x in r['seconds'])
    return page(found, [
        section(
            'Images a second, bfloat16 autocast; training is a step of AdamW:',
            rows, {
                x:
                lambda r, x=x: number(x in r['seconds'] and r['batch'] /
                                      seconds(r, x) or None)
                for x in names
            }, 'pixels'),
        section('Peak MiB beyond weights and images:', rows, {
            x: lambda r, x=x: mebibytes(r['peak_bytes'].get(x))
            for x in names
        }, 'pixels')
    ], ('gpu', ), '`python benchmarks/backbones.py --device cuda`')
