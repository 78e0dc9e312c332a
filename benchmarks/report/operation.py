"""Tables of the operation: time, memory, kernels."""
from math import prod
from pathlib import Path
from statistics import median
from typing import Callable, List, Optional

from .formats import load, number, table, where, where_gpu


def cpu_rows(found: dict, *parts: str) -> List[dict]:
    """Rows of the parts that were measured."""
    return [
        row for part in parts if part in found for row in found[part]['rows']
    ]


def cpu_label(row: dict) -> str:
    size = ' × '.join(f'{side:,}' for side in row['grid'])
    causal = ', causal' if row['causal'] else ''
    return f'{size}{causal}, cell {row["cell_size"]}, {row["mode"]}'


def cpu_table(title: str, head: List[str], rows: List[dict],
              cells: Callable[[dict], List[str]]) -> Optional[str]:
    """A titled table, or None where nothing was measured."""
    lines = [[cpu_label(row), *cells(row)] for row in rows]
    return f'{title}\n\n{table(["tokens", *head], lines)}' if rows else None


# How the numbers were made.
OPS = ('`python benchmarks/ops.py`: float32 unless stated, rank 1, averages, '
       'batch 1')


def cpu_page(found: dict,
             sections: List[Optional[str]],
             *parts: str,
             how: str = OPS) -> Optional[str]:
    """Sections, and the places where their parts were measured."""
    sections = [x for x in sections if x]
    if not sections:
        return None
    used = [found[part] for part in parts if part in found]
    spread = [(x['quartile_3'] - x['quartile_1']) / x['median']
              for part in used for row in part['rows']
              for x in row.get('seconds', {}).values()]
    place = '; '.join({where(part['environment']): None for part in used})
    between = (f', the middle half of the samples {median(spread):.0%} wide '
               f'as a rule, {max(spread):.0%} at most' if spread else '')
    return '\n\n'.join([*sections, f'{place}; {how}, medians{between}'])


def ms(row: dict, name: str) -> str:
    return number(row['seconds'][name]['median'] * 1e3)


def against_all(rows: List[dict]) -> Optional[str]:
    """The op against SDPA."""
    return cpu_table(
        'The operation against PyTorch\'s attention over all tokens (images '
        '3 heads × 32, sequences 8 × 64; training is a forward and a '
        'backward pass):', ['FMA, ms', 'SDPA, ms', 'faster', 'by FLOPs'], rows,
        lambda r: [
            ms(r, 'fma'),
            ms(r, 'sdpa'), f'**{number(r["ratio"]["sdpa"], " ×")}**',
            f'{r["all_pairs"] / r["pairs"]:.0f} ×'
        ])


def per_pair(rows: List[dict]) -> Optional[str]:
    return cpu_table(
        'Time per pair that the definition visits, and over the median of '
        'the sizes:', ['ms', 'ns a pair and head', 'GFLOP/s', 'of median'],
        rows, lambda r: [
            ms(r, 'fma'), f'{r["nanoseconds_per_pair"]:.3f}',
            number(r['flops'] / r['seconds']['fma']['median'] / 1e9),
            f'{r["over_median"]:.2f}'
        ])


def peaks(rows: List[dict]) -> Optional[str]:
    return cpu_table(
        'Peak memory beyond the inputs, output included, over the bytes of '
        'q + k + v: what PyTorch handed out, and what the process grew by, '
        'scratch of the C kernels included:', ['tensors', 'process'], rows,
        lambda r: [f'{r["tensors"]:.2f}',
                   number(r['process'])])


def ratios(title: str, rows: List[dict]) -> Optional[str]:
    """Times by name, and those after the first over the first."""
    names = list(rows[0]['seconds']) if rows else []
    return cpu_table(
        title,
        [f'{name}, ms'
         for name in names] + [f'{name} / {names[0]}' for name in names[1:]],
        rows, lambda r: [ms(r, x) for x in names
                         ] + [f'{r["ratio"][x]:.2f}' for x in names[1:]])


def speed(results: Path) -> Optional[str]:
    """The op against SDPA over all tokens."""
    found = load(results, 'op_cpu') or {}
    parts = 'speed2d', 'speed1d'
    return cpu_page(found, [against_all(cpu_rows(found, *parts))], *parts)


def op_details(results: Path) -> Optional[str]:
    """What a page about the kernels shows beside."""
    found = load(results, 'op_cpu') or {}
    backends = [
        dict(row, seconds={k: row['seconds'][k]
                           for k in ('fma', 'torch')})
        for row in cpu_rows(found, 'speed2d') if 'torch' in row['seconds']
    ]
    threads = cpu_rows(found, 'threads')
    layers = [row for row in threads if 'excess' in row]
    plain = [r for r in cpu_rows(found, 'memory') if not r['pool_queries']]
    return cpu_page(found, [
        ratios('The PyTorch backend beside:', backends),
        per_pair(cpu_rows(found, 'scaling')),
        peaks(plain),
        ratios('Instruction sets of one machine:', cpu_rows(found, 'isa')),
        ratios('Half precision:', cpu_rows(found, 'dtypes')),
        ratios('Threads:', [r for r in threads if 'excess' not in r]),
        cpu_table(
            'The op between two linear layers, over the sum of the op and '
            'the layers, each alone:', ['whole, ms', 'over the sum'], layers,
            lambda r: [ms(r, 'whole'), f'{r["excess"]:.2f}'])
    ], 'speed2d', 'scaling', 'memory', 'isa', 'dtypes', 'threads')


def linear(results: Path) -> Optional[str]:
    """The linear variant against the plain form, its growth and memory."""
    found = load(results, 'op_cpu') or {}
    against = cpu_table(
        'Pooled queries against the plain form, 2 heads × 32, and the growth '
        'of their time for four times the tokens:',
        ['pooled, ms', 'plain, ms', 'faster', 'growth', 'plain\'s growth'],
        cpu_rows(found, 'pooled'), lambda r: [
            ms(r, 'pooled'),
            ms(r, 'plain'), f'**{r["ratio"]["plain"]:.2f} ×**', *(number(
                r.get('growth', {}).get(name)) for name in ('pooled', 'plain'))
        ])
    memory = [r for r in cpu_rows(found, 'memory') if r['pool_queries']]
    return cpu_page(found, [against, peaks(memory)], 'pooled', 'memory')


def op_label(row: dict) -> str:
    size = ' × '.join(f'{side:,}' for side in row['shape'])
    batch = f', batch {row["batch"]}' if row['batch'] > 1 else ''
    return f'{size}{batch}, cell {row["cell_size"]}'


def op_tables(results: Path, head: List[str],
              cells: Callable[[dict], List[str]]) -> Optional[tuple]:
    """A table for images and one for sequences, and the part behind them."""
    texts, measured = [], None
    found = load(results, 'op_gpu') or {}
    for name, title in (('op2d', 'Images'), ('op1d', 'Causal sequences')):
        part = found.get(name, {})
        rows = [r for r in part.get('rows', []) if 'reason' not in r]
        rows.sort(
            key=lambda r: (prod(r['shape']), r['batch'], -r['cell_size']))
        if rows:
            measured = measured or part
            texts.append(f'{title}, {rows[0]["heads"]} heads × '
                         f'{rows[0]["head_dim"]}:\n\n' +
                         table(['tokens', *head], [[op_label(r), *cells(r)]
                                                   for r in rows]))
    if not measured:
        return None
    texts.append(where_gpu(measured['environment']))
    return '\n\n'.join(texts), measured


def op_gpu(results: Path) -> Optional[str]:
    """The op against SDPA on a GPU, forward and in training."""

    def cells(row: dict) -> List[str]:
        found = []
        for mode in ('forward', 'training'):
            for name in ('fma', 'sdpa'):
                time = row['times'][mode].get(name)
                found.append(
                    number(time['median'] *
                           1e3 if isinstance(time, dict) else None))
            faster = row['faster_than'].get(mode, {}).get('sdpa')
            found.append(f'**{number(faster, " ×")}**')
        return found

    found = op_tables(results, ['FMA, ms', 'SDPA, ms', 'faster'] * 2, cells)
    return found and (
        'The operation against PyTorch\'s attention over all tokens '
        f'({found[1]["setting"]["dtype"]}): forward, then forward and '
        f'backward.\n\n{found[0]}')


def op_gpu_details(results: Path) -> Optional[str]:
    """Rates, memory and the other competitors on a GPU."""

    def cells(row: dict) -> List[str]:
        found = []
        for mode in ('forward', 'backward'):
            found += [
                row['tflops'].get(mode, {}).get('fma'),
                row['share_of_sdpa'].get(mode), row['roofline'].get(mode)
            ]
        faster, memory = row['faster_than'], row['memory_over_sdpa']
        # Of flex_attention with all around it, and of its kernel alone.
        rivals = [
            faster.get('training', {}).get(name)
            for name in ('flex', 'flex_kernel')
        ]
        found += [
            min((x for x in rivals if x), default=None),
            faster.get('forward', {}).get('window'),
            memory.get('training', {}).get('beyond_inputs')
        ]
        return [number(value) for value in found]

    rates = ['TFLOP/s', 'of SDPA\'s', 'of the roofline']
    found = op_tables(
        results,
        [*rates, *rates, 'flex / FMA', 'windows / FMA', 'memory / SDPA'],
        cells)
    if found is None:
        return None
    machine = found[1]['setting']['machine']
    return ('Rates over the pairs of the definition, forward, then backward '
            '(counted as 2.5 times the forward pass); time of flex_attention '
            'on the same pattern in training, and of attention inside windows '
            'of 8 × 8 tokens forward, over that of FMA; peak memory in '
            'training, beyond the inputs, over that of SDPA. In the same run '
            'the machine multiplied matrices at '
            f'{number(machine["matmul_flops"] / 1e12)} TFLOP/s and copied '
            f'{number(machine["copy_bytes"] / 1e12)} TB/s.\n\n{found[0]}')


def kernel_resources(results: Path) -> Optional[str]:
    """What the compiled kernels take, on one target."""
    found = load(results, 'triton_resources')
    if not found:
        return None
    rows = [
        [
            f'{r["kernel"]}, {r["case"]}, dim {r["head_dim"]}', r['blocks'],
            str(r['warps']),
            str(r['registers']), f'{r["shared"] / 1024:.0f}'
        ] for r in found['rows']
        if r['target'] == 'sm_90' and r['dtype'] == 'bf16' and r['case'] in (
            '2D cell 8', '1D cell 128') and r['blocks'].startswith('M')
    ]
    packages = found['environment']['packages']
    return ('What the kernels take on sm_90, bfloat16, compiled without a GPU '
            f'({len(found["rows"])} kernels for sm_80, sm_90 and sm_100: none '
            'spills a register, all fit):\n\n' +
            table(['kernel', 'blocks', 'warps', 'registers', 'shared, KiB'],
                  rows) + f'\n\nTriton {packages["triton"]}; `python '
            'kernels/benchmarks/resources.py --json '
            'benchmarks/results/triton_resources.json`')
