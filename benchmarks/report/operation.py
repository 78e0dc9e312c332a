"""Tables of the operation: time, memory, kernels."""
from math import prod
from pathlib import Path
from typing import Callable, Dict, List, Optional

from .formats import milliseconds, number, table, where, where_gpu
from .reading import load


def speed(results: Path) -> Optional[str]:
    """The op against SDPA over all tokens."""
    found = load(results, 'op_cpu')
    if not found or 'speed' not in found:
        return None
    rows = [[
        f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
        milliseconds(r['fma_seconds']),
        milliseconds(r['sdpa_seconds']), f'**{r["speedup"]:.1f} ×**',
        f'{r["speedup_by_flops"]:.0f} ×'
    ] for r in found['speed']['rows']]
    return (
        'The operation against PyTorch\'s attention over all tokens '
        '(float32, 3 heads × 32, batch 1, inference):\n\n' +
        table(['tokens', 'FMA, ms', 'SDPA, ms', 'faster', 'by FLOPs'], rows) +
        f'\n\n{where(found["speed"]["environment"])}; '
        '`python kernels/benchmarks/cpu.py`')


def op_details(results: Path) -> Optional[str]:
    """Scaling, memory and the near field against flex_attention."""
    found = load(results, 'op_cpu')
    if not found:
        return None
    parts = []
    if 'scaling' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["visited_pairs"] / 1e6:.1f}',
            milliseconds(r['fma_seconds']), f'{r["growth_over_pairs"]:.2f}'
        ] for r in found['scaling']['rows']]
        parts.append(
            'Time against the pairs that the definition visits; the last '
            'column is the growth of the one over that of the other, from '
            '64 × 64:\n\n' +
            table(['tokens', 'pairs a head, M', 'ms', 'growth'], rows))
    if 'memory' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["forward"]:.2f}', f'{r["training"]:.2f}'
        ] for r in found['memory']['rows']]
        parts.append(
            'Peak memory beyond the inputs, over the bytes of q + k + v:\n\n' +
            table(['tokens', 'inference', 'forward and backward'], rows))
    if 'near_field' in found:
        rows = [[
            f'{r["side"]} × {r["side"]}, cell {r["cell_size"]}',
            f'{r["nanoseconds_per_key"]["fma"]:.2f}',
            f'{r["nanoseconds_per_key"]["flex"]:.2f}',
            f'{r["fma_over_flex"]:.2f}'
        ] for r in found['near_field']['rows']]
        parts.append(
            'Nanoseconds per key visited and head: FMA with everything it '
            'does, compiled `flex_attention` on the near field alone, with '
            'tokens already in cell order:\n\n' +
            table(['tokens', 'FMA', 'flex', 'ratio'], rows))
    if not parts:
        return None
    first = next(iter(found.values()))
    return '\n\n'.join(parts) + f'\n\n{where(first["environment"])}'


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


def op_1d(results: Path) -> Optional[str]:
    """The causal 1D op and layer against SDPA, scaling and memory."""
    found = load(results, 'op1d_cpu')
    if not found:
        return None
    setting = next(iter(found.values()))['setting']
    parts = [
        f'Causal, {setting["heads"]} heads × {setting["head_dim"]}, cell '
        f'{setting["cell_size"]}, {setting["dtype"]}, batch '
        f'{setting["batch"]}, inference unless stated.'
    ]
    against = [[
        f'{label}, {r["length"]:,}',
        number(r['fma_seconds']['median'] * 1e3),
        number(r[other]['median'] * 1e3), f'**{r["speedup"]:.1f} ×**'
    ] for part, other in (('speed', 'sdpa_seconds'), ('layer', 'full_seconds'))
               for r in found.get(part, {}).get('rows', [])
               for label in [r.get('layer', 'operation')]]
    if against:
        parts.append(
            'The operation (rank 1, averages) against PyTorch\'s attention '
            'over all tokens, and the layer with projections and rotary '
            'positions against its twin on all tokens:\n\n' +
            table(['what, tokens', 'FMA, ms', 'all tokens, ms', 'faster'],
                  against))
    if 'scaling' in found:
        rows = [[
            f'{r["length"]:,}',
            number(r['fma_seconds']['median'] * 1e3),
            f'{r["fma_seconds"]["median"] / r["length"] * 1e6:.1f}',
            number(r['growth_per_doubling'])
        ] for r in found['scaling']['rows']]
        parts.append(
            'Time of the operation; the last column is its growth for twice '
            'the tokens:\n\n' +
            table(['tokens', 'ms', 'µs a token', 'growth'], rows))
    if 'memory' in found:
        rows = [[f'{r["length"]:,}'] + [
            number(r[key] / 1024 if r[key] else None)
            for key in ('qkv_bytes_per_token', 'forward_bytes_per_token',
                        'training_bytes_per_token')
        ] for r in found['memory']['rows']]
        parts.append(
            'Peak memory of the operation beyond its inputs, KiB a token, '
            'and that of query, key and value:\n\n' +
            table(['tokens', 'q + k + v', 'inference', 'forward and backward'],
                  rows))
    # Parts may have been measured apart.
    places = {where(part['environment']): None for part in found.values()}
    return ('\n\n'.join(parts) + '\n\n' + '; '.join(places) +
            '; `python kernels/benchmarks/cpu1d.py`')


def linear(results: Path) -> Optional[str]:
    """The linear variant: growth of time and memory, and the plain form."""
    found = load(results, 'linear_cpu')
    if not found:
        return None
    setting = next(iter(found.values()))['setting']
    parts = [
        f'{setting["heads"]} heads × {setting["head_dim"]}, rank '
        f'{setting["rank"]}, averages, {setting["dtype"]}, batch '
        f'{setting["batch"]}, inference unless stated.'
    ]

    def tokens(row: dict) -> str:
        return (' × '.join(f'{size:,}' for size in row['grid']) +
                f', cell {row["cell_size"]}')

    if 'scaling' in found:
        lines: Dict[str, List[str]] = {}
        for r in found['scaling']['rows']:
            lines.setdefault(tokens(r), []).extend([
                f'{r["seconds"]["median"] * 1e3:.1f}',
                number(r['growth']),
                number(r['peak_bytes'] / 2**20),
                number(r['peak_growth'])
            ])
        head = [
            f'{part}{column}' for part in ('far: ', 'pooling too: ', 'whole: ')
            for column in ('ms', '×', 'MiB', '×')
        ]
        parts.append(
            'Time and peak memory beyond the inputs, each followed by its '
            'growth over the row above, for twice the tokens in 1D and four '
            'times in 2D: the far field on summaries that are ready, the '
            'same with all pooling, then the whole operation. With PyTorch\'s '
            'switch `THP_MEM_ALLOC_ENABLE` for huge pages '
            f'{"on" if found["scaling"]["setting"]["huge_pages"] else "off"}.'
            '\n\n' +
            table(['tokens', *head], [[name, *cells]
                                      for name, cells in lines.items()]))
    if 'plain' in found:
        rows = [[
            f'{tokens(r)}, {r["mode"]}',
            milliseconds(r['pooled_seconds']),
            milliseconds(r['plain_seconds']), f'**{r["faster"]:.2f} ×**'
        ] for r in found['plain']['rows']]
        parts.append(
            'The whole operation against the plain form, which pools no '
            'queries; training is a forward and a backward pass:\n\n' +
            table(['tokens', 'pooled, ms', 'plain, ms', 'faster'], rows))
    # Parts may have been measured apart.
    places = {where(part['environment']): None for part in found.values()}
    return ('\n\n'.join(parts) + '\n\n' + '; '.join(places) +
            '; `python kernels/benchmarks/linear.py`')
