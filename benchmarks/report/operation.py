"""Tables of the operation: time, memory, kernels."""
from pathlib import Path
from typing import List, Optional

from .formats import (fixed, load, ms, number, page, ratios, rows_of, seconds,
                      section)

# How the numbers were made.
HOW = ('`python benchmarks/ops.py`: float32 unless stated, rank 1, averages, '
       'batch 1')
HOW_GPU = '`benchmarks/gpu.sh`: bfloat16, rank 1, averages'
# What is timed beside FMA on a GPU.
RIVALS = 'flex', 'flex_kernel', 'pooled', 'windows', 'natten'


def against_all(rows: List[dict], sequences: str = '8 × 64') -> Optional[str]:
    """The op against SDPA."""
    return section(
        'The operation against PyTorch\'s attention over all tokens (images '
        f'3 heads × 32, sequences {sequences}; training is a forward and a '
        'backward pass):', rows, {
            'FMA, ms': ms('fma'),
            'SDPA, ms': ms('sdpa'),
            'faster': lambda r: f'**{number(r["ratio"].get("sdpa"), " ×")}**',
            'by FLOPs': lambda r: f'{r["all_pairs"] / r["pairs"]:.0f} ×'
        })


def peaks(rows: List[dict]) -> Optional[str]:
    return section(
        'Peak memory beyond the inputs, output included, over the bytes of '
        'q + k + v: what PyTorch handed out, and what the process grew by, '
        'scratch of the C kernels included:', rows, {
            'tensors': fixed('tensors'),
            'process': lambda r: number(r['process'])
        })


def speed(results: Path) -> Optional[str]:
    """The op against SDPA over all tokens."""
    found, parts = load(results, 'op_cpu'), ('speed2d', 'speed1d')
    return page(found, [against_all(rows_of(found, *parts))], parts, HOW)


def details(results: Path) -> Optional[str]:
    """What a page about the kernels shows beside."""
    found = load(results, 'op_cpu')
    backends = [
        dict(row, seconds={k: row['seconds'][k]
                           for k in ('fma', 'torch')})
        for row in rows_of(found, 'speed2d') if 'torch' in row['seconds']
    ]
    plain = [r for r in rows_of(found, 'memory') if not r['pool_queries']]
    return page(found, [
        ratios('The PyTorch backend beside:', backends),
        peaks(plain),
        ratios('Instruction sets of one machine:', rows_of(found, 'isa')),
        ratios('Half precision:', rows_of(found, 'dtypes'))
    ], ('speed2d', 'memory', 'isa', 'dtypes'), HOW)


def linear(results: Path) -> Optional[str]:
    """The linear variant against the plain form, its growth and memory."""
    found = load(results, 'op_cpu')

    def growth(name: str):
        return lambda r: number(r.get('growth', {}).get(name))

    against = section(
        'Pooled queries against the plain form, 2 heads × 32, and the growth '
        'of their time for four times the tokens:', rows_of(found, 'pooled'), {
            'pooled, ms': ms('pooled'),
            'plain, ms': ms('plain'),
            'faster': lambda r: f'**{r["ratio"]["plain"]:.2f} ×**',
            'growth': growth('pooled'),
            'plain\'s growth': growth('plain')
        })
    memory = [r for r in rows_of(found, 'memory') if r['pool_queries']]
    return page(found, [against, peaks(memory)], ('pooled', 'memory'), HOW)


def gpu(results: Path) -> Optional[str]:
    """The op on a GPU: against SDPA, rates, memory and other rivals."""
    found, parts = load(results, 'op_gpu'), ('op2d', 'op1d')
    rows = rows_of(found, *parts)
    if not rows or not rows_of(found, 'machine'):
        return None
    rates = rows_of(found, 'machine')[0]['rates']

    def work(row: dict) -> float:
        # A backward pass has five products for the two of a forward pass.
        passes = row['batch'] * (3.5 if row['mode'] == 'training' else 1)
        return passes * row['flops']

    def share(row: dict) -> Optional[float]:
        full = [seconds(row, x) for x in ('sdpa', 'sdpa_cudnn')]
        full = min(filter(None, full), default=None)
        # Rates by pairs: time over all tokens is for more of them.
        return full and (full * row['pairs'] / row['all_pairs'] /
                         seconds(row, 'fma'))

    def roofline(row: dict) -> float:
        least = row['least_bytes'] / rates['bytes']
        return max(work(row) / rates['flops'], least) / seconds(row, 'fma')

    def memory(row: dict) -> Optional[float]:
        peak = row['peak_bytes']
        return peak['fma'] / peak['sdpa'] if 'sdpa' in peak else None

    return page(found, [
        against_all(rows, '16 × 64'),
        section(
            'Rates over the pairs of the definition (training is counted as '
            '3.5 forward passes), over those of the faster SDPA, and the '
            'least time by the machine\'s own rates over the time taken; the '
            'times of others over that of FMA: flex_attention on the same '
            'pattern with all around it and its kernel alone, pooled queries, '
            'and near tokens alone; peak memory beyond the inputs over that '
            'of SDPA. In the same run the machine multiplied matrices at '
            f'{number(rates["flops"] / 1e12)} TFLOP/s and copied '
            f'{number(rates["bytes"] / 1e12)} TB/s.', rows, {
                'TFLOP/s':
                lambda r: number(work(r) / seconds(r, 'fma') / 1e12),
                'of SDPA\'s': lambda r: number(share(r)),
                'of the roofline': lambda r: number(roofline(r)),
                **{
                    f'{x.replace("_", " ")} / FMA':
                    lambda r, x=x: number(r['ratio'].get(x))
                    for x in RIVALS
                }, 'memory / SDPA': lambda r: number(memory(r))
            })
    ], parts, HOW_GPU)
