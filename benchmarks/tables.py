"""Writes the measured tables into the pages, from benchmarks/results/.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # fail if a page is out of date

A page marks a place with ``<!-- results: NAME -->``; NAME is one of TABLES.
No number is typed by hand: what was not measured leaves its place empty. The
results of the experiments go into metafiles, too.
"""
import argparse
import re
import sys
from math import prod
from pathlib import Path
from typing import Callable, Dict, List, Optional

# Also where this file is imported by its path.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import experiments  # noqa: E402
import zoo  # noqa: E402
from markdown_table import table  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks/results'
PAGES = ('README.md', 'configs/lm/README.md', 'configs/lra/README.md',
         'demo/weights/README.md', 'docs/attention.md', 'docs/experiments.md',
         'docs/language_model.md', 'kernels/README.md',
         *(f'configs/{folder}/README.md' for folder in zoo.FOLDERS))
METAFILES = tuple(f'configs/{folder}/metafile.yml' for folder in zoo.FOLDERS)


def load(name: str) -> Optional[dict]:
    """A result file, or None where it was not measured.

    Raises:
        SystemExit: It is damaged.
    """
    path = RESULTS / f'{name}.json'
    return experiments.read_object(path) if path.exists() else None


def where(environment: dict) -> str:
    """One line about the machine and the software."""
    commit = (environment.get('commit') or {}).get('hash', 'unknown')[:10]
    return (f'{environment["cpu"]}, {environment["threads"]} threads, '
            f'torch {environment["packages"]["torch"]}, commit {commit}, '
            f'seed {environment["seed"]}')


def milliseconds(summary: dict) -> str:
    return f'{summary["median"] * 1e3:.0f}'


def speed() -> Optional[str]:
    """The op against SDPA over all tokens."""
    found = load('op_cpu')
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


def op_details() -> Optional[str]:
    """Scaling, memory and the near field against flex_attention."""
    found = load('op_cpu')
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


def backbones() -> Optional[str]:
    """FMA-T against Swin-T."""
    found = load('backbone_latency_cpu')
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


def shipped() -> Optional[str]:
    """Scores of the shipped weights."""
    found = load('street8')
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


def classification() -> Optional[str]:
    """Scores on small classification sets."""
    found = load('fashion_mnist')
    if not found:
        return None
    top1 = found['metrics']['accuracy/top1']
    return (
        'Classification, trained from scratch on a CPU:\n\n' +
        table(['config', 'test images', 'top-1, %'],
              [[f'`{Path(found["config"]).stem}`', '10,000', f'{top1:.2f}']]))


def where_gpu(environment: dict) -> str:
    """One line about the GPU and the software."""
    commit = (environment['commit'] or {}).get('hash', 'unknown')[:10]
    packages = environment['packages']
    return (f'{environment.get("device_name", environment["cpu"])}, torch '
            f'{packages["torch"]}, triton {packages.get("triton", "none")}, '
            f'commit {commit}, seed {environment["seed"]}; '
            '`kernels/benchmarks/gpu.sh`')


def number(value: Optional[float], unit: str = '') -> str:
    """Three digits, or a dash for what was not measured."""
    if value is None:
        return '–'
    return (f'{value:.0f}' if value >= 100 else f'{value:.3g}') + unit


def op_label(row: dict) -> str:
    size = ' × '.join(f'{side:,}' for side in row['shape'])
    batch = f', batch {row["batch"]}' if row['batch'] > 1 else ''
    return f'{size}{batch}, cell {row["cell_size"]}'


def op_tables(head: List[str], cells: Callable[[dict],
                                               List[str]]) -> Optional[tuple]:
    """A table for images and one for sequences, and the part behind them."""
    texts, measured = [], None
    found = load('op_gpu') or {}
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


def op_gpu() -> Optional[str]:
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

    found = op_tables(['FMA, ms', 'SDPA, ms', 'faster'] * 2, cells)
    return found and (
        'The operation against PyTorch\'s attention over all tokens '
        f'({found[1]["setting"]["dtype"]}): forward, then forward and '
        f'backward.\n\n{found[0]}')


def op_gpu_details() -> Optional[str]:
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


def backbones_gpu() -> Optional[str]:
    """FMA-T beside others on a GPU."""
    found = (load('backbones_gpu') or {}).get('models')
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


def kernel_resources() -> Optional[str]:
    """What the compiled kernels take, on one target."""
    found = load('triton_resources')
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


def op_1d() -> Optional[str]:
    """The causal 1D op and layer against SDPA, scaling and memory."""
    found = load('op1d_cpu')
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


def linear() -> Optional[str]:
    """The linear variant: growth of time and memory, and the plain form."""
    found = load('linear_cpu')
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


def streaming() -> Optional[str]:
    """Prefill and decoding of the language model."""
    found = load('lm_streaming_cpu')
    if not found:
        return None
    rows = [[
        f'`{Path(model["config"]).stem}`, {r["context"]:,}',
        number(r['prefill_seconds']), f'{r["prefill_tokens_per_second"]:,.0f}',
        number(r['prefill_peak_bytes'] / 2**20),
        f'{r["step_seconds"]["median"] * 1e3:.2f}',
        f'{r["state_bytes"] / 1024:,.0f}', f'{r["cache_bytes"] / 1024:,.0f}',
        f'{r["state_over_cache"] * 100:.2f}'
    ] for model in found['models'] for r in model['rows']]
    ours = found['models'][0]
    ratios = ours['ratios']
    last, first = ratios['contexts']
    twin = (' The twin copies its cache at every step.'
            if len(found['models']) > 1 else '')
    return (
        'Reading a text in chunks, then going on token by token '
        f'(`{Path(ours["config"]).stem}`, '
        f'{ours["parameters"] / 1e6:.1f} M parameters, float32, batch 1). '
        f'From {first:,} to {last:,} tokens, a step takes '
        f'{ratios["step_seconds"]:.2f} × as long and the state '
        f'{ratios["state_bytes"]:.2f} × the bytes; "cache" is what all keys '
        f'and values would take.{twin}\n\n' + table([
            'model, tokens', 'read, s', 'tokens/s', 'peak MiB', 'ms a step',
            'state, KiB', 'cache, KiB', 'of cache, %'
        ], rows) + f'\n\n{where(found["environment"])}; '
        '`python tools/analysis_tools/benchmark_lm.py`')


def language_models() -> Optional[str]:
    """Scores of trained language models."""
    found = load('books_lm')
    if not found:
        return None
    rows = [[
        f'`{Path(r["config"]).stem}`', f'{r["parameters"] / 1e6:.2f}',
        f'{r["iterations"]:,}', f'{r["tokens"] / 1e6:.1f}', f'{r["bpc"]:.3f}',
        f'{r["perplexity"]:.2f}'
    ] for r in found['rows']]
    return ('Trained from scratch, tested on all validation text:\n\n' +
            table([
                'config', 'params, M', 'iterations', 'characters seen, M',
                'validation bpc', 'perplexity'
            ], rows) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/collect_lm.py`')


def list_ops() -> Optional[str]:
    """Accuracies of sequence classifiers on ListOps."""
    found = load('listops')
    if not found:
        return None
    rows = [[
        f'`{Path(r["config"]).stem}`', f'{r["parameters"] / 1e6:.2f}',
        f'{r["iterations"]:,}', f'{r["samples"]:,}',
        str(r['seed']), f'{r["accuracy"]:.1f}'
    ] for r in found['rows']]
    places = {where(r['environment']): None for r in found['rows']}
    return ('ListOps, trained from scratch, tested on all 2,000 expressions '
            'after the last iteration:\n\n' + table([
                'config', 'params, M', 'iterations', 'expressions seen',
                'seed', 'test accuracy, %'
            ], rows) + '\n\nTested on ' + '; '.join(places) +
            '; `python tools/analysis_tools/collect_listops.py`')


def shipped_language_model() -> Optional[str]:
    """The score of the weights that demo/lm_demo.py uses."""
    found = load('books_lm_shipped')
    if not found:
        return None
    metrics = found['metrics']
    command = f'{found["config"]} {found["checkpoint"]}'
    return (f'On all validation text: **{metrics["bpc"]:.3f} bits per '
            f'character**, perplexity {metrics["perplexity"]:.2f}.\n\n'
            f'`python tools/test.py {command}`')


def approximation_rows(rows: List[dict]) -> str:
    """Errors, times and memory of attentions, as a table."""
    return table(
        [
            'method', 'error', 'worst head', 'cosine', 'needle error',
            'needle found', 'ms', 'peak MiB'
        ],
        [
            [
                f'{r["family"]}, {r["name"]}',
                f'{r["real"]["mean"]:.3f}',
                f'{r["real"]["worst"]:.3f}',
                f'{r["real"]["cosine"]:.3f}',
                f'{r["needle"]["mean"]:.3f}',
                # No minus before a zero.
                f'{round(r["needle"]["recovered"], 2) + 0.:.2f}',
                number(r['seconds']['median'] *
                       1e3 if 'seconds' in r else None),
                number(r['peak_bytes'] / 2**20 if 'peak_bytes' in r else None)
            ] for r in rows
        ])


def approximation_verdict(mode: str, found: Optional[dict]) -> str:
    """One sentence: FMA within the others' median time."""
    if not found:
        return ''
    text = (f'{mode.capitalize()}, the others\' median time (of the fastest '
            f'setting of each) is {found["budget_seconds"] * 1e3:,.0f} ms, '
            f'their least error {found["nearest_other_error"]:.3f} '
            f'({found["nearest_other"]}, '
            f'{found["nearest_other_seconds"] * 1e3:,.0f} ms); ')
    if found['chosen'] is None:
        return text + 'no form of FMA is as fast.'
    return text + (f'FMA within that time: **{found["chosen_error"]:.3f}** '
                   f'({found["chosen"]}, '
                   f'{found["chosen_seconds"] * 1e3:,.0f} ms).')


def approximation_setting(found: dict) -> str:
    """What was measured, in a few sentences."""
    setting, model = found['setting'], found['model']
    packages = ', '.join(
        f'{name} {version}'
        for name, version in found['environment']['compared'].items()
        if version)
    blocks = ' and '.join(map(str, model['layers']))
    return (
        f'{setting["length"]:,} tokens, {setting["heads"]} heads × '
        f'{setting["head_dim"]}, {setting["dtype"]}, batch 1: queries, keys '
        f'and values of blocks {blocks} of '
        f'`{Path(model["config"]).stem}` after {model["iterations"]} '
        f'iterations, on a text that it codes at '
        f'{setting["report"]["bpc"]:.2f} bits per character. Errors are '
        'Frobenius norms relative to softmax attention in float64, means '
        f'over the heads; times are of the attention alone, taken in turns: '
        f'read them as ratios. {packages}.')


def approximation() -> Optional[str]:
    """Errors and times of approximations of full attention."""
    found = load('approximation_cpu')
    if not found:
        return None
    parts = [approximation_setting(found)]
    for mode, part in found['modes'].items():
        notes = {
            f'{r["family"]}: {r["note"]}': None
            for r in part['rows'] if r['note']
        }
        sentences = [
            approximation_verdict(mode, part.get('verdict')),
            *(f'{note}.' for note in notes)
        ]
        parts += [
            f'{mode.capitalize()}:',
            approximation_rows(part['rows']),
            ' '.join(filter(None, sentences))
        ]
    parts += [
        f'{family} is missing: {reason}.'
        for family, reason in found['missing'].items()
    ]
    return ('\n\n'.join(filter(None, parts)) +
            f'\n\n{where(found["environment"])}; `python '
            'tools/analysis_tools/compare_approximation.py`')


def approximation_short() -> Optional[str]:
    """The nearest setting of each family."""
    found = load('approximation_cpu')
    if not found:
        return None
    parts = [approximation_setting(found)]
    for mode, part in found['modes'].items():
        verdict = part.get('verdict', {})
        chosen: Dict[str, dict] = {}
        for row in part['rows']:
            family = row['family']
            if family == 'FMA' and verdict:
                if row['name'] == verdict['chosen']:
                    chosen[family] = row
            elif family not in chosen or row['real']['mean'] < chosen[family][
                    'real']['mean']:
                chosen[family] = row
        parts += [
            f'{mode.capitalize()}, the nearest setting of each:',
            approximation_rows(list(chosen.values()))
        ]
    return ('\n\n'.join(parts) + f'\n\n{where(found["environment"])}; '
            '`python tools/analysis_tools/compare_approximation.py`; all '
            'settings: [docs/attention.md](docs/attention.md)')


# Of the layers that the README shows.
ATTENTION = ('FMA', 'FMA-linear', 'FullAttention', 'FullAttention1D',
             'NeighborhoodAttention', 'FMMformerAttention2D',
             'FMMformerAttention1D')


def where_run(environment: dict) -> str:
    """:func:`where`, with the GPU where one was used."""
    place = where(environment)
    name = environment.get('device_name')
    return f'{name}, {place}' if name else place


def short(count: Optional[float]) -> str:
    """Three digits and a unit."""
    for size, unit in ((1e12, ' T'), (1e9, ' G'), (1e6, ' M'), (1e3, ' k')):
        if count and count >= size:
            return f'{count / size:.3g}{unit}'
    return number(count)


def attention_setting(found: dict) -> str:
    """What the layers of a comparison share, as a sentence."""
    setting, kind = found['setting'], 'Maps'
    if setting['ndim'] == 1:
        kind = 'Causal sequences' if setting['causal'] else 'Sequences'
    return (f'{kind}, {setting["dim"]} channels in {setting["heads"]} heads, '
            f'{setting["dtype"]}, batch {setting["batch"]}')


def tokens_of(row: dict) -> str:
    return ' × '.join(f'{side:,}' for side in row['shape'])


def attention_short() -> Optional[str]:
    """Some attention layers at the two largest sizes, on a CPU."""
    parts, places = [], {}
    for name in ('attention_2d_cpu', 'attention_1d_cpu'):
        found = load(name)
        rows = [
            r for r in (found or {}).get('rows', [])
            if r['mode'] == 'inference' and r['layer'] in ATTENTION
        ]
        if not rows:
            continue
        sizes = list(dict.fromkeys(tokens_of(r) for r in rows))[-2:]
        lines: Dict[str, List[str]] = {}
        for r in rows:
            if tokens_of(r) in sizes:
                seconds = r.get('seconds')
                memory = r.get('peak_memory_bytes') if seconds else None
                lines.setdefault(r['layer'], [f'`{r["layer"]}`']).extend([
                    number(seconds['median'] *
                           1e3) if seconds else r['reason'].split(':')[0],
                    number(memory / 2**20 if memory else None)
                ])
        head = ['layer'] + [f'{s}, {u}' for s in sizes for u in ('ms', 'MiB')]
        parts.append(f'{attention_setting(found)}:\n\n' +
                     table(head, list(lines.values())))
        places[where_run(found['environment'])] = None
    if not parts:
        return None
    return ('One attention layer with its projections, inference: median '
            'time and peak memory.\n\n' + '\n\n'.join(parts) + '\n\n' +
            '; '.join(places) +
            '; `python tools/analysis_tools/compare_attention.py`')


def ratio_to(row: dict) -> str:
    """A ratio, named where it is not to attention over all tokens."""
    ratio = number(row.get('ratio_of_medians'))
    name = row.get('reference', '')
    return f'{ratio} (`{name}`)' if name.startswith('FMA') else ratio


def attention_cost(found: dict, picture: str) -> str:
    """All rows of one comparison, a table for each mode."""
    parts = [f'{attention_setting(found)}.']
    for mode in dict.fromkeys(r['mode'] for r in found['rows']):
        rows = []
        for r in found['rows']:
            if r['mode'] != mode:
                continue
            cells = [
                f'`{r["layer"]}`, {tokens_of(r)}',
                short(r.get('parameters')),
                short(r.get('macs'))
            ]
            if r['status'] == 'measured':
                seconds = r['seconds']
                low, high = (
                    number(seconds[f'quartile_{i}'] * 1e3) for i in (1, 3))
                cells += [
                    number(seconds['median'] * 1e3), f'{low} to {high}',
                    ratio_to(r),
                    number(r['peak_memory_bytes'] / 2**20)
                ]
            else:
                # A bar would begin a column.
                reason = r['reason'].replace('|', '/')
                cells += [f'{r["status"]}: {reason}', '', '', '']
            rows.append(cells)
        named = ' or '.join(
            dict.fromkeys(f'`{r["reference"]}`' for r in found['rows']
                          if r['mode'] == mode and 'reference' in r))
        step = dict(
            inference='Inference', training='Forward and backward')[mode]
        note = f'; the ratio is to {named}' if named else ''
        parts.append(f'{step}{note}; multiply-adds of the forward pass:\n\n' +
                     table([
                         'layer, tokens', 'params', 'MACs', 'ms', 'quartiles',
                         'ratio', 'peak MiB'
                     ], rows))
    if (RESULTS / picture).exists():
        parts.append(f'![Time and memory against tokens](../benchmarks/results'
                     f'/{picture})')
    parts.append(f'{where_run(found["environment"])}; '
                 '`python tools/analysis_tools/compare_attention.py`')
    return '\n\n'.join(parts)


def attention_details() -> Optional[str]:
    """All that was measured of attention layers."""
    parts = [
        attention_cost(found, f'{path.stem}.png') for path in sorted(
            RESULTS.glob('attention_[12]d_*.json'), reverse=True)
        for found in [load(path.stem)] if found['rows']
    ]
    return '\n\n'.join(parts) or None


def attention_accuracy() -> Optional[str]:
    """Scores of one model with several attention layers."""
    parts = []
    for path in sorted(RESULTS.glob('attention_accuracy_*.json')):
        found = load(path.stem)
        done = [r for r in found['rows'] if r['status'] == 'trained']
        if not done:
            continue
        names = list(done[0]['metrics'])
        rows = []
        for r in found['rows']:
            if r['status'] == 'trained':
                scores = [number(r['metrics'].get(name)) for name in names]
            else:
                scores = [r['reason'].replace('|', '/')] + [''] * (
                    len(names) - 1)
            rows.append([f'`{r["layer"]}`',
                         short(r.get('parameters'))] + scores)
        first = done[0]
        parts.append(
            f'`{Path(found["config"]).stem}`, {first["iterations"]:,} '
            f'iterations on {first["train_samples"]:,} samples, the last '
            f'weights on {first["test_samples"]:,} others; same seed, data '
            'and order:\n\n' + table(['layer', 'params', *names], rows) +
            f'\n\n{where_run(first["environment"])}; '
            '`python tools/analysis_tools/compare_attention.py --train`')
    return '\n\n'.join(parts) or None


TABLES: Dict[str, Callable[[], Optional[str]]] = {
    'operation, CPU': speed,
    'operation, details': op_details,
    'backbones': backbones,
    'shipped weights': shipped,
    'small classification': classification,
    'operation, GPU': op_gpu,
    'operation, GPU details': op_gpu_details,
    'backbones, GPU': backbones_gpu,
    'kernel resources': kernel_resources,
    'op 1D, CPU': op_1d,
    'linear variant, CPU': linear,
    'language model streaming': streaming,
    'language model': language_models,
    'ListOps': list_ops,
    'shipped language model': shipped_language_model,
    'approximation': approximation,
    'approximation, short': approximation_short,
    'attention layers': attention_short,
    'attention layers, details': attention_details,
    'attention layers, accuracy': attention_accuracy,
    'zoo': lambda: zoo.zoo(RESULTS),
    'targets': lambda: experiments.targets(RESULTS),
    'softmax shares': lambda: experiments.shares(RESULTS),
    'ablations': lambda: experiments.ablations(RESULTS),
    'resolutions': lambda: experiments.resolutions(RESULTS),
    **{
        f'experiments, {name}':
        lambda name=name: experiments.comparison(RESULTS, name)
        for name in experiments.DATASETS
    },
    **{
        f'models, {folder}': lambda folder=folder: zoo.models(RESULTS, folder)
        for folder in zoo.FOLDERS
    },
}


def fill(text: str, name: str) -> str:
    """Replaces what stands between the marks of one page."""

    def replace(match: 're.Match') -> str:
        if match[1] not in TABLES:
            raise SystemExit(f'{name}: no table is called {match[1]!r}; '
                             f'allowed: {sorted(TABLES)}')
        body = TABLES[match[1]]()
        middle = f'\n{body}\n' if body else '\n'
        return (f'<!-- results: {match[1]} -->{middle}'
                f'<!-- /results: {match[1]} -->')

    return re.sub(
        r'<!-- results: (.+?) -->\n.*?<!-- /results: \1 -->',
        replace,
        text,
        flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args()
    for name in PAGES + METAFILES:
        path = ROOT / name
        text = path.read_text()
        if name in METAFILES:
            filled = zoo.fill_metafile(text, RESULTS)
        else:
            filled = fill(text, name)
        if filled == text:
            continue
        if args.check:
            sys.exit(f'{name} is out of date: run python '
                     'benchmarks/tables.py')
        path.write_text(filled)
        print(f'{name} updated')


if __name__ == '__main__':
    main()
