"""The op against what a user would take instead: time, memory, rates.

All that is compared at one size runs in turns in one process. Rates count
the pairs of the definition (``Hierarchy``), never padded ones, and the
backward pass as 2.5 times the forward pass.
"""
from argparse import Namespace
from typing import Any, Dict, List, Tuple

import torch
from gpu_check import check, picked_heads, reference
from gpu_common import (DTYPES, Case, Recorder, attempt, inputs, machine_rates,
                        time_in_turns)
from gpu_ops import (Op, attention, flex_kernel, fma_forms, fma_options,
                     inference, natten, sdpa, sdpa_choice, sdpa_cudnn,
                     training, windows)
from gpu_targets import derive
from torch import Tensor

from fma_kernels import Hierarchy

# Stage 1 of FMA-T (images of 224 to 2048 pixels a side), then a language
# model's layer. Batches fill the device, except where one image is meant.
# flex_attention takes seconds to compile a pattern, so few sizes have it, and
# those come last.
FULL_2D = [
    Case((56, 56), (8, 4), 3, 32, 64, flex=False),
    Case((512, 512), (8, 4), 3, 32, 1, flex=False),
    Case((256, 256), (8, 4), 3, 32, 4, flex=False),
    Case((256, 256), (8, 4), 3, 32, 1),
    Case((128, 128), (8, 4), 3, 32, 16),
]
FULL_1D = [
    Case((2**power, ), (128, 64), 16, 64, max(1, 2**(16 - power)), True, power
         in (14, 16)) for power in (12, 18, 20, 16, 14)
]
TINY_2D = [
    Case((24, 24), (8, 4), 2, 32, 2),
    Case((40, 40), (8, 4), 2, 32, 1, flex=False)
]
NOTES = dict(
    flex='the whole backend, its reordering of tokens and pooling included: '
    'the ratio to it flatters FMA',
    flex_kernel='the compiled flex_attention alone, on tokens in its order',
    pooled='pool_queries=True: another function of the same inputs')
TINY_1D = [Case((600, ), (128, 64), 2, 64, 2, True)]


def least_bytes(hierarchy: Hierarchy, case: Case, itemsize: int) -> dict:
    """Bytes that no implementation can do without moving.

    Forward: query, key, value in, output and lse out, summaries out and in.
    Backward: query, key, value, output, its gradient and lse in, three
    gradients out; summaries in, their gradients out and in.
    """
    channels = case.batch * case.heads * case.head_dim * itemsize
    token = case.tokens * channels
    summary = 2 * hierarchy.num_summaries * channels  # of keys and values
    lse = case.batch * case.tokens * case.heads * 4
    return dict(
        forward=4 * token + lse + 2 * summary,
        backward=8 * token + lse + 3 * summary)


def competitors(case: Case, args: Namespace) -> Dict[str, Op]:
    """What runs at a size, by name; FMA and its twins by name and cell."""
    ops: Dict[str, Op] = {}
    for cell in case.cells:
        for name, form in fma_forms(case, args.backend).items():
            ops[f'{name}-{cell}'] = (lambda *x, options=fma_options(
                case, cell, **form): attention(*x, **options))
    ops['sdpa'] = sdpa(case)
    if case.full_flops < 1e15:  # beyond, seconds a call for a side note
        ops['sdpa_cudnn'] = sdpa_cudnn(case)
    if len(case.shape) == 2:
        ops['window'] = windows(case)
    return ops


class Size:
    """All that is measured at one size.

    Args:
        case: the size.
        args: the command line.
        pace: seconds a FLOP by mode and name at the size before; updated.
    """

    def __init__(self, case: Case, args: Namespace, pace: dict) -> None:
        self.case, self.args, self.pace = case, args, pace
        self.tensors = inputs(case, args, 4)
        self.grad = self.tensors.pop()
        self.hierarchies = {
            cell: Hierarchy(case.shape, cell, causal=case.causal)
            for cell in case.cells
        }
        self.errors: Dict[str, dict] = {}
        self.reasons: Dict[str, str] = {}
        self.forms = fma_forms(case, args.backend)
        self.ops = competitors(case, args)
        for cell in case.cells:
            op, reason = attempt(lambda c=cell: natten(case, c), args.device)
            if reason:
                self.reasons[f'natten-{cell}'] = reason
            else:
                self.ops[f'natten-{cell}'] = op
        self.check()
        # Query, key, value and gradient of what takes them otherwise.
        self.ordered: Dict[str, Tuple[List[Tensor], Tensor]] = {}
        for cell in case.cells:
            if f'flex-{cell}' in self.ops:
                self.add_flex_kernel(cell)

    def check(self) -> None:
        """What is not right is not timed."""
        for cell in self.case.cells:
            for name, form in self.forms.items():
                key = f'{name}-{cell}'
                reason = None
                if name == 'flex' and not self.case.flex:
                    reason = 'left out at this size: it takes long to compile'
                if name != 'flex':  # which computes what the first does
                    expected = self.expected(
                        cell, pool_queries=name == 'pooled')
                options = fma_options(self.case, cell, **form)
                if reason is None:
                    self.errors[key], reason = attempt(
                        lambda o=options: check(self.tensors, self.grad, o,
                                                self.args, expected),
                        self.args.device)
                if reason:
                    self.reasons[key] = reason
                    del self.ops[key]

    def expected(self, cell: int, **form: Any) -> Dict[str, Tensor]:
        """What a form must give, in float64."""
        return reference(self.tensors, self.grad, picked_heads(self.grad),
                         fma_options(self.case, cell, 'torch', **form))

    def add_flex_kernel(self, cell: int) -> None:
        name = f'flex_kernel-{cell}'
        found, reason = attempt(
            lambda: flex_kernel(self.case, cell, self.tensors),
            self.args.device)
        if reason:
            self.reasons[name] = reason
            return
        self.ops[name], ordered = found
        self.ordered[name] = ordered, torch.randn_like(ordered[0])

    def flops(self, name: str) -> float:
        """Of a forward pass; what is not counted grows with the tokens."""
        kind, _, cell = name.partition('-')
        if kind in ('fma', 'flex', 'flex_kernel', 'pooled'):
            return self.hierarchies[int(cell)].flops(
                self.case.heads,
                self.case.head_dim,
                self.case.batch,
                pool_queries=kind == 'pooled')
        if kind.startswith('sdpa'):
            return self.case.full_flops
        return self.case.tokens * self.case.batch

    def measure(self, mode: str) -> Dict[str, Any]:
        """Times all in turns: seconds, or the reason why there are none."""
        calls = {}
        for name, op in self.ops.items():
            tensors, grad = self.ordered.get(name, (self.tensors, self.grad))
            calls[name] = (
                inference(op, tensors) if mode == 'forward' else training(
                    op, tensors, grad))
        expected = {
            name: self.pace.get((mode, name), 0) * self.flops(name)
            for name in calls
        }
        found = time_in_turns(calls, self.args, expected)
        for name, result in found.items():
            if isinstance(result, dict):
                self.pace[mode, name] = result['median'] / self.flops(name)
        for name, reason in self.reasons.items():
            found[name] = reason
        return found

    def row(self, cell: int, found: Dict[str, dict]) -> Dict[str, Any]:
        """What belongs to one cell size, under names without it."""
        hierarchy = self.hierarchies[cell]

        def mine(values: Dict[str, Any]) -> Dict[str, Any]:
            return {
                name.partition('-')[0]: value
                for name, value in values.items()
                if name.partition('-')[2] in ('', str(cell))
            }

        return dict(
            self.case.describe(),
            cell_size=cell,
            visited_pairs=hierarchy.visited_pairs,
            flops=self.flops(f'fma-{cell}'),
            pooled_flops=None
            if self.case.causal else self.flops(f'pooled-{cell}'),
            full_flops=self.case.full_flops,
            least_bytes=least_bytes(hierarchy, self.case,
                                    self.tensors[0].element_size()),
            input_bytes=3 * self.tensors[0].nbytes,
            errors=mine(self.errors),
            notes=NOTES,
            sdpa_kernels=dict(
                sdpa=sdpa_choice(self.args.device, DTYPES[self.args.dtype]),
                sdpa_cudnn='CUDNN_ATTENTION'),
            times={
                mode: mine(times)
                for mode, times in found.items()
            })


def part(recorder: Recorder, args: Namespace, name: str) -> bool:
    """Measures every size; returns whether FMA was right at each."""
    cases = dict(
        op2d=TINY_2D if args.tiny else FULL_2D,
        op1d=TINY_1D if args.tiny else FULL_1D)[name]
    side, numel = (256, 2**20) if args.tiny else (8192, 2**30)
    machine = machine_rates(args, side, numel)
    recorder.set(machine=machine)
    pace: dict = {}
    good = True
    for case in cases:
        if reason := recorder.late():
            recorder.add(dict(case.describe(), reason=reason))
            continue
        good &= _size(recorder, args, case, pace, machine)
    return good


def _size(recorder: Recorder, args: Namespace, case: Case, pace: dict,
          machine: Dict[str, float]) -> bool:
    size, reason = attempt(lambda: Size(case, args, pace), args.device)
    if reason:
        recorder.add(dict(case.describe(), reason=reason))
        print(f'{case}: {reason}')
        return False
    found = {mode: size.measure(mode) for mode in ('forward', 'training')}
    for cell in case.cells:
        row = size.row(cell, found)
        row.update(derive(row, machine))
        recorder.add(row)
        print(f'{case}, cell {cell}', flush=True)
        for mode, times in row['times'].items():
            print(f'  {mode}:', ', '.join(map(told, *zip(*times.items()))))
    return all(
        size.errors.get(f'{name}-{cell}') for cell in case.cells
        for name in size.forms if name != 'flex')


def told(name: str, time: Any) -> str:
    """One competitor in a line of the log."""
    if isinstance(time, str):
        return f'{name} none ({time})'
    return f'{name} {time["median"] * 1e3:.3f} ms'
