"""The op on a CPU: speed, scaling, memory, and flex_attention's near field.

    python kernels/benchmarks/cpu.py --threads 2

Every number comes from one process; what is compared runs in turns, and the
JSON holds medians and quartiles. Nothing is timed before the op has been
checked: against the oracle on a small ragged grid, and against SDPA at the
size itself, with keys constant on the coarsest cells, where FMA is exact.
"""
import argparse
import json
from pathlib import Path
from typing import Callable, Dict, List

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, fma2d
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import peak_memory, summarise, time_interleaved

RESULT = Path(__file__).parents[2] / 'benchmarks/results/op_cpu.json'


def qkv(side: int, heads: int, dim: int) -> List[Tensor]:
    """Views of one projection, as a layer makes them: ``[1, H, W, h, D]``."""
    packed = torch.randn(1, side, side, 3, heads, dim)
    return list(packed.unbind(3))


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SDPA over all tokens, heads first."""
    heads_first = (
        x.flatten(1, 2).transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*heads_first)


def check(side: int, cell: int, heads: int, dim: int) -> Dict[str, float]:
    """Largest errors of the op; raises where one is not rounding."""
    small = [torch.randn(1, 37, 53, heads, dim) for _ in range(3)]
    oracle = (fma2d(*small, cell_size=cell, backend='torch') -
              fma2d(*small, cell_size=cell, backend='naive')).abs().max()
    hierarchy = Hierarchy((side, side), cell)
    width = hierarchy.widths[-1]
    query, key, value = qkv(side, heads, dim)
    coarse = key[:, ::width, ::width]
    key = coarse.repeat_interleave(width, 1).repeat_interleave(width, 2)
    exact = full_attention(query, key, value).transpose(1, 2)
    out = fma2d(query, key, value, cell_size=cell).flatten(1, 2)
    errors = dict(oracle=float(oracle), sdpa=float((out - exact).abs().max()))
    if max(errors.values()) > 1e-4:
        raise RuntimeError(f'the op is wrong at {side}, cell {cell}: '
                           f'{errors}; nothing was timed')
    return errors


def speed(args) -> List[dict]:
    """Inference against SDPA over all tokens."""
    rows = []
    for side in (128, 256):
        tensors = qkv(side, args.heads, args.dim)
        errors = {
            cell: check(side, cell, args.heads, args.dim)
            for cell in (8, 4)
        }
        calls: Dict[str, Callable] = {
            cell: (lambda cell=cell: fma2d(*tensors, cell_size=cell))
            for cell in (8, 4)
        }
        calls['sdpa'] = lambda: full_attention(*tensors)
        samples = time_interleaved(calls, repeats=args.repeats, warmup=2)
        sdpa = summarise(samples['sdpa'])
        for cell in (8, 4):
            hierarchy = Hierarchy((side, side), cell)
            ours = summarise(samples[cell])
            rows.append(
                dict(
                    side=side,
                    cell_size=cell,
                    errors=errors[cell],
                    fma_seconds=ours,
                    sdpa_seconds=sdpa,
                    speedup=sdpa['median'] / ours['median'],
                    speedup_by_flops=side**4 / hierarchy.visited_pairs,
                    gflops=hierarchy.flops(args.heads, args.dim) /
                    ours['median'] / 1e9))
            print_row('speed', rows[-1])
    return rows


def scaling(args) -> List[dict]:
    """Time against visited pairs from 64 x 64 to 512 x 512 tokens."""
    rows = []
    for cell in (8, 4):
        calls = {}
        for side in (64, 128, 256, 512):
            tensors = qkv(side, args.heads, args.dim)
            calls[side] = (lambda t=tensors, c=cell: fma2d(*t, cell_size=c))
        samples = time_interleaved(
            calls, repeats=args.repeats, warmup=2, least_seconds=0.2)
        base = None
        for side in calls:
            pairs = Hierarchy((side, side), cell).visited_pairs
            seconds = summarise(samples[side])
            base = base or (seconds['median'], pairs)
            rows.append(
                dict(
                    side=side,
                    cell_size=cell,
                    visited_pairs=pairs,
                    fma_seconds=seconds,
                    growth_over_pairs=(seconds['median'] / base[0]) /
                    (pairs / base[1])))
            print_row('scaling', rows[-1])
    return rows


def memory(args) -> List[dict]:
    """Peak bytes of tensors beyond the inputs, over those of q + k + v."""
    rows = []
    side = 256
    for cell in (8, 4):
        tensors = [x.contiguous() for x in qkv(side, args.heads, args.dim)]
        size = sum(x.numel() * x.element_size() for x in tensors)

        def forward() -> Tensor:
            return fma2d(*tensors, cell_size=cell)

        leaves = [x.clone().requires_grad_() for x in tensors]
        grad = torch.randn_like(leaves[0])

        def training() -> tuple:
            out = fma2d(*leaves, cell_size=cell)
            return out, torch.autograd.grad(out, leaves, grad)

        with torch.no_grad():
            forward()
            extra = peak_memory(forward)
        training()
        rows.append(
            dict(
                side=side,
                cell_size=cell,
                qkv_bytes=size,
                forward=extra / size,
                training=peak_memory(training) / size))
        print_row('memory', rows[-1])
    return rows


def near_blocks(side: int, cell: int):
    """The near field as whole blocks of flex_attention: a block is a cell.

    Tokens are in cell order, so that no block is masked in part: the layout
    that suits flex_attention best, with nothing to rearrange.
    """
    from torch.nn.attention.flex_attention import BlockMask
    hierarchy = Hierarchy((side, side), cell)
    cells = side // cell
    lists = [[r * cells + c for r, c in hierarchy.neighbours((row, column))]
             for row in range(cells) for column in range(cells)]
    count = torch.tensor([len(x) for x in lists], dtype=torch.int32)
    index = torch.zeros(len(lists), len(lists), dtype=torch.int32)
    for row, found in zip(index, lists):
        row[:len(found)] = torch.tensor(found)
    none = torch.zeros_like(count)
    return BlockMask.from_kv_blocks(
        none[None, None],
        torch.zeros_like(index)[None, None],
        count[None, None],
        index[None, None],
        BLOCK_SIZE=cell * cell)


def near_field(args) -> List[dict]:
    """flex_attention, compiled, on the near field alone, per key visited."""
    from torch.nn.attention.flex_attention import flex_attention
    rows = []
    for side in (128, 256):
        for cell in (8, 4):
            torch.compiler.reset()
            flex = torch.compile(flex_attention, dynamic=False)
            mask = near_blocks(side, cell)
            tensors = [
                torch.randn(1, args.heads, side**2, args.dim) for _ in range(3)
            ]
            images = qkv(side, args.heads, args.dim)
            calls = dict(
                flex=lambda: flex(*tensors, block_mask=mask),
                fma=lambda: fma2d(*images, cell_size=cell))
            samples = time_interleaved(calls, repeats=args.repeats, warmup=2)
            hierarchy = Hierarchy((side, side), cell)
            pairs = dict(
                flex=hierarchy.near_pairs, fma=hierarchy.visited_pairs)
            seconds = {name: summarise(samples[name]) for name in calls}
            per_key = {
                name: seconds[name]['median'] / pairs[name] / args.heads * 1e9
                for name in calls
            }
            rows.append(
                dict(
                    side=side,
                    cell_size=cell,
                    pairs=pairs,
                    seconds=seconds,
                    nanoseconds_per_key=per_key,
                    fma_over_flex=per_key['fma'] / per_key['flex']))
            print_row('near_field', rows[-1])
    return rows


def print_row(part: str, row: dict) -> None:
    """One line as soon as a row is known."""
    numbers = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in row.items() if not isinstance(value, dict)
    }
    print(part, numbers, flush=True)


PARTS = dict(
    speed=speed, scaling=scaling, memory=memory, near_field=near_field)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument('--heads', type=int, default=3)
    parser.add_argument('--dim', type=int, default=32)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    # Parts measured earlier stay, each with its own environment.
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        with torch.set_grad_enabled(part == 'memory'):
            rows = PARTS[part](args)
        results[part] = dict(
            environment=collect_environment('cpu', args.seed),
            setting=dict(
                heads=args.heads,
                head_dim=args.dim,
                batch=1,
                dtype='float32',
                repeats=args.repeats),
            rows=rows)
        write_json(args.out, results)


if __name__ == '__main__':
    main()
