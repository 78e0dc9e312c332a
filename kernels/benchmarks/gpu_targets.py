"""What follows from the measured times, and what was to be reached."""
from typing import Any, Callable, Dict, List, NamedTuple, Optional

BACKWARD_FLOPS = 2.5  # of the forward pass's, by convention
MODES = ('forward', 'backward', 'training')
# Which count of a row is meant, where it is not the plain form's.
_COUNTS = dict(
    sdpa='full_flops', sdpa_cudnn='full_flops', pooled='pooled_flops')
WORK = dict(forward=1., backward=BACKWARD_FLOPS, training=1 + BACKWARD_FLOPS)


def seconds(row: Dict[str, Any], mode: str, name: str) -> Optional[float]:
    """A row's median; the backward pass is training less forward."""
    if mode == 'backward':
        both = [seconds(row, m, name) for m in ('training', 'forward')]
        if None in both or both[0] <= both[1]:
            return None
        return both[0] - both[1]
    time = row['times'][mode].get(name)
    return time['median'] if isinstance(time, dict) else None


def peak(row: Dict[str, Any], mode: str, name: str) -> Optional[int]:
    """Bytes beyond query, key, value and the output's gradient."""
    time = row['times'][mode].get(name)
    return time['peak_bytes'] if isinstance(time, dict) else None


def derive(row: Dict[str, Any], machine: Dict[str, float]) -> Dict[str, Any]:
    """Rates and ratios of a row of ``op1d`` or ``op2d``.

    Args:
        row: with ``times``, ``flops``, ``full_flops`` and ``least_bytes``.
        machine: ``matmul_flops`` and ``copy_bytes`` a second.

    Returns:
        By mode: ``tflops`` by name, over the pairs of the definition;
        ``share_of_sdpa`` of its TFLOP/s, through the kernel that is faster
        there, ``fastest_sdpa``; ``roofline``, the least seconds
        that the machine's rates allow over those taken; ``faster_than`` by
        name; and ``memory_over_sdpa``, of peaks beyond the inputs and with
        them. What was not measured is left out.
    """
    found: Dict[str, dict] = dict(
        tflops={},
        share_of_sdpa={},
        fastest_sdpa={},
        roofline={},
        faster_than={},
        memory_over_sdpa={})
    least = dict(row['least_bytes'])
    least['training'] = least['forward'] + least['backward']
    for mode in MODES:
        names = row['times']['forward']
        times = {name: seconds(row, mode, name) for name in names}
        times = {name: t for name, t in times.items() if t}
        work = {
            name: WORK[mode] * row[_COUNTS.get(name, 'flops')]
            for name in ('fma', 'pooled', 'flex', 'flex_kernel', 'sdpa',
                         'sdpa_cudnn') if name in times
        }
        rates = {name: work[name] / times[name] / 1e12 for name in work}
        found['tflops'][mode] = rates
        if 'fma' not in times:
            continue
        ours = times.pop('fma')
        found['faster_than'][mode] = {
            name: t / ours
            for name, t in times.items()
        }
        found['roofline'][mode] = max(
            work['fma'] / machine['matmul_flops'],
            least[mode] / machine['copy_bytes']) / ours
        full = [name for name in ('sdpa', 'sdpa_cudnn') if name in rates]
        if full:
            best = max(full, key=rates.__getitem__)
            found['share_of_sdpa'][mode] = rates['fma'] / rates[best]
            found['fastest_sdpa'][mode] = row.get('sdpa_kernels',
                                                  {}).get(best, best)
    for mode in ('forward', 'training'):
        a, b = (peak(row, mode, name) for name in ('fma', 'sdpa'))
        if a is not None and b:
            held = row['input_bytes']
            found['memory_over_sdpa'][mode] = dict(
                beyond_inputs=a / b, with_inputs=(a + held) / (b + held))
    return found


def _reason(row: dict) -> Optional[str]:
    return row.get('reason')


class Target(NamedTuple):
    """One thing to reach: rows it is judged at, their number, the bound.

    ``note`` is told beside a row's number. ``reason`` says why a row has
    none; with ``must_run``, one other than the time makes the target missed.
    """
    text: str
    part: str
    picks: Callable[[dict], bool]
    value: Callable[[dict], Optional[float]]
    bound: float
    at_most: bool = False
    note: Callable[[dict], str] = lambda r: ''
    reason: Callable[[dict], Optional[str]] = _reason
    must_run: bool = False


def _sdpa_share(mode: str) -> Callable:
    return lambda r: r['share_of_sdpa'].get(mode)


def _faster(mode: str, name: str) -> Callable:
    return lambda r: r['faster_than'].get(mode, {}).get(name)


def _faster_than_flex(mode: str) -> Callable:
    # The smaller of both times.
    return lambda r: min((r['faster_than'].get(mode, {})[name]
                          for name in ('flex', 'flex_kernel')
                          if name in r['faster_than'].get(mode, {})),
                         default=None)


def _flex_note(mode: str) -> Callable:

    def note(row: dict) -> str:
        faster = row['faster_than'][mode]
        if faster.get('flex_kernel') == _faster_than_flex(mode)(row):
            return 'its kernel alone'
        return 'its whole backend'

    return note


def _largest_reason(row: dict) -> Optional[str]:
    """Why 1 M causal tokens were not trained on, where they were not."""
    if row.get('shape', [2**20]) != [2**20]:
        return None
    if 'reason' in row:
        return row['reason']
    time = row['times']['training'].get('fma')
    return time if isinstance(time, str) else None


def _memory(mode: str) -> Callable:
    return lambda r: r['memory_over_sdpa'].get(mode, {}).get('beyond_inputs')


def _targets() -> List[Target]:
    found = []
    for part, coarse, fine in (('op2d', 8, 4), ('op1d', 128, 64)):
        for mode, bound in (('forward', 0.6), ('backward', 0.5)):
            found.append(
                Target(
                    f'{part} {mode}, cell {coarse}: TFLOP/s over those of '
                    'the faster SDPA',
                    part,
                    lambda r, c=coarse: r['cell_size'] == c,
                    _sdpa_share(mode),
                    bound,
                    note=lambda r, m=mode: r.get('fastest_sdpa', {}).get(m)))
        for mode in ('forward', 'backward'):
            found.append(
                Target(
                    f'{part} {mode}, cell {fine}: share of the roofline',
                    part,
                    lambda r, c=fine: r['cell_size'] == c,
                    lambda r, m=mode: r['roofline'].get(m),
                    0.5))
        for mode in ('forward', 'training'):
            found.append(
                Target(
                    f'{part} {mode}: faster than flex_attention (the faster '
                    'of its kernel alone and the whole backend, whose '
                    'reordering of tokens and pooling flatter FMA)',
                    part,
                    lambda r: True,
                    _faster_than_flex(mode),
                    1.5,
                    note=_flex_note(mode)))
            found.append(
                Target(f'{part} {mode}: peak memory over that of SDPA', part,
                       lambda r: True, _memory(mode), 1.3, True))
    for cell, bound in ((8, 40), (4, 80)):
        for mode in ('forward', 'training'):
            found.append(
                Target(
                    f'op2d {mode}, 256 x 256, cell {cell}: faster than SDPA',
                    'op2d',
                    lambda r, c=cell: r['cell_size'] == c and r['shape'] ==
                    [256, 256],
                    _faster(mode, 'sdpa'),
                    bound))
    found.append(
        Target(
            'op1d training, 1 M causal tokens, 16 x 64: runs (1 = yes)',
            'op1d',
            lambda r: r['shape'] == [2**20] and r['causal'],
            lambda r: 1. if seconds(r, 'training', 'fma') else None,
            1,
            reason=_largest_reason,
            must_run=True))
    for side, bound in ((512, 1.15), (2048, 1.)):
        found.append(
            Target(
                f'FMA-T training step at {side} x {side}: time over Swin-T',
                'models',
                lambda r, s=side: r['model'] == 'FMA-T' and r['mode'] ==
                'training' and r['shape'] == [s, s],
                lambda r: r.get('ratio_to_swin'),
                bound,
                True))
    return found


TARGETS = _targets()


def judge(target: Target, parts: Dict[str, dict]) -> str:
    """One line: reached, missed by how much, or not measured and why."""
    rows = parts.get(target.part, {}).get('rows', [])
    values, reasons = {}, []
    for row in rows:
        if reason := target.reason(row):
            # A part that broke off (no shape) may have come past the row.
            here = 'shape' in row or not values
            if (target.must_run and here
                    and not reason.startswith('left out')):
                return f'missed: {reason}: {target.text}'
            reasons.append(reason)
        elif 'reason' not in row and target.picks(row):
            value = target.value(row)
            if value is not None:
                size = ' x '.join(map(str, row['shape']))
                label = f'{size}, batch {row["batch"]}'
                if 'cell_size' in row:
                    label += f', cell {row["cell_size"]}'
                note = target.note(row)
                values[f'{label}, {note}' if note else label] = value
    if not values:
        why = f' ({reasons[0]})' if reasons else ''
        return f'not measured{why}: {target.text}'
    sign = -1 if target.at_most else 1
    worst = min(values.values(), key=lambda v: sign * v)
    good = sum(sign * v >= sign * target.bound for v in values.values())
    if good == len(values):
        verdict = 'reached'
    else:
        off = abs(worst / target.bound - 1)
        verdict = (f'missed at {len(values) - good} of {len(values)}, by up '
                   f'to {off:.0%}')
    relation = '<=' if target.at_most else '>='
    detail = '; '.join(f'{v:.3g} ({label})' for label, v in values.items())
    return f'{verdict}: {target.text} {relation} {target.bound:g}: {detail}'


def summary(parts: Dict[str, dict]) -> List[str]:
    """A line for each part and its checks, and one for each target."""
    lines = []
    for name, part in parts.items():
        commit = (part['environment']['commit'] or {}).get('hash', 'unknown')
        end = '' if part['finished'] else ', NOT FINISHED'
        lines.append(f'{name}: {len(part["rows"])} rows in '
                     f'{part["seconds"]:.0f} s, {part["environment"]["date"]},'
                     f' commit {commit[:10]}{end}')
    for name in ('check', 'sanitize'):
        rows = parts.get(name, {}).get('rows', [])
        if not rows:
            lines.append(f'{name}: not run')
            continue
        bad = [r for r in rows if r.get('reason') or r.get('status', 0) != 0]
        text = f'{name}: {len(rows) - len(bad)} of {len(rows)} passed'
        lines.append('; '.join([text] +
                               [r.get('reason') or r['summary'] for r in bad]))
    return lines + [judge(target, parts) for target in TARGETS]
