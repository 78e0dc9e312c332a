"""Tables of the operation: time, memory, kernels."""
from pathlib import Path
from statistics import median
from typing import Callable, List, Optional

from .formats import load, number, table, where, where_gpu

# What is timed beside FMA on a GPU.
RIVALS = 'flex', 'flex_kernel', 'pooled', 'windows', 'natten'


def cpu_rows(found: dict, *parts: str) -> List[dict]:
    """Rows of the parts that were measured."""
    return [
        row for part in parts if part in found for row in found[part]['rows']
        if 'reason' not in row
    ]


def cpu_label(row: dict) -> str:
    """What a row is about: tokens of the op, or pixels of a backbone."""
    if 'pixels' in row:
        side = ' × '.join(map(str, row['pixels']))
        batch = f', batch {row["batch"]}' if row['batch'] > 1 else ''
        return f'{side}{batch}, {row["mode"]}'
    size = ' × '.join(f'{side:,}' for side in row['grid'])
    causal = ', causal' if row['causal'] else ''
    batch = f', batch {row["batch"]}' if row.get('batch', 1) > 1 else ''
    return f'{size}{causal}{batch}, cell {row["cell_size"]}, {row["mode"]}'


def cpu_table(title: str, head: List[str], rows: List[dict],
              cells: Callable[[dict], List[str]]) -> Optional[str]:
    """A titled table, or None where nothing was measured."""
    if not rows:
        return None
    what = 'pixels' if 'pixels' in rows[0] else 'tokens'
    lines = [[cpu_label(row), *cells(row)] for row in rows]
    return f'{title}\n\n{table([what, *head], lines)}'


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


def median_of(row: dict, name: str) -> Optional[float]:
    """Seconds, or None for what did not run."""
    return row['seconds'].get(name, {}).get('median')


def ms(row: dict, name: str) -> str:
    seconds = median_of(row, name)
    return number(seconds and seconds * 1e3)


def against_all(rows: List[dict], sequences: str = '8 × 64') -> Optional[str]:
    """The op against SDPA."""
    return cpu_table(
        'The operation against PyTorch\'s attention over all tokens (images '
        f'3 heads × 32, sequences {sequences}; training is a forward and a '
        'backward pass):', ['FMA, ms', 'SDPA, ms', 'faster', 'by FLOPs'], rows,
        lambda r: [
            ms(r, 'fma'),
            ms(r, 'sdpa'), f'**{number(r["ratio"].get("sdpa"), " ×")}**',
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


def gpu_page(found: dict, section: Optional[str]) -> Optional[str]:
    """A section, and where it was measured."""
    place = next((where_gpu(found[part]['environment'])
                  for part in ('op2d', 'op1d') if part in found), None)
    return section and (f'{section}\n\n{place}: bfloat16, rank 1, averages, '
                        'medians')


def op_gpu(results: Path) -> Optional[str]:
    """The op against SDPA on a GPU."""
    found = load(results, 'op_gpu') or {}
    rows = cpu_rows(found, 'op2d', 'op1d')
    return gpu_page(found, against_all(rows, '16 × 64'))


def op_gpu_details(results: Path) -> Optional[str]:
    """Rates, memory and the other competitors on a GPU."""
    found = load(results, 'op_gpu') or {}
    if not cpu_rows(found, 'machine'):
        return None
    rates = found['machine']['rows'][0]['rates']

    def cells(row: dict) -> List[str]:
        # A backward pass has five products for the two of a forward pass.
        passes = row['batch'] * (3.5 if row['mode'] == 'training' else 1)
        work = passes * row['flops']
        ours = median_of(row, 'fma')
        full = [
            median_of(row, name) for name in ('sdpa', 'sdpa_cudnn')
            if name in row['seconds']
        ]
        # Rates by pairs: time over all tokens is for more of them.
        share = min(full) * row['pairs'] / row['all_pairs'] / ours if full \
            else None
        least = max(work / rates['flops'], row['least_bytes'] / rates['bytes'])
        peaks = row['peak_bytes']
        memory = peaks['fma'] / peaks['sdpa'] if 'sdpa' in peaks else None
        return [
            number(x)
            for x in (work / ours / 1e12, share, least / ours,
                      *(row['ratio'].get(name) for name in RIVALS), memory)
        ]

    head = ['TFLOP/s', 'of SDPA\'s', 'of the roofline']
    head += [f'{name.replace("_", " ")} / FMA' for name in RIVALS]
    return gpu_page(
        found,
        cpu_table(
            'Rates over the pairs of the definition (training is counted as '
            '3.5 forward passes), over those of the faster SDPA, and the '
            'least time by the machine\'s own rates over the time taken; the '
            'times of others over that of FMA: flex_attention on the same '
            'pattern with all around it and its kernel alone, pooled queries, '
            'and near tokens alone; peak memory beyond the inputs over that '
            'of SDPA. In the same run the machine multiplied matrices at '
            f'{number(rates["flops"] / 1e12)} TFLOP/s and copied '
            f'{number(rates["bytes"] / 1e12)} TB/s.', [*head, 'memory / SDPA'],
            cpu_rows(found, 'op2d', 'op1d'), cells))


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
            'benchmarks/resources.py --json '
            'benchmarks/results/triton_resources.json`')
