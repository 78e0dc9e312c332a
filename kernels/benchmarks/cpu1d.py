"""Causal attention over a sequence on a CPU: speed, layer, scaling, memory.

    python kernels/benchmarks/cpu1d.py --threads 2

Every number comes from one process; what is compared runs in turns, and the
JSON holds medians and quartiles. Nothing is timed before it has been checked:
against the oracle on a short ragged sequence, and at the length itself where
FMA is exact. With keys constant on the coarsest cells it equals SDPA, and
with equal logits every output is the mean of the values so far, which also
checks lengths that are too long for SDPA.
"""
import argparse
import copy
import json
import math
from pathlib import Path
from typing import Callable, Dict, List, Optional

import torch
from cpu import print_row
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, fma1d
from fma_vision.layers import FMAttention1D, FullAttention1D
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import peak_memory, summarise, time_interleaved

RESULT = Path(__file__).parents[2] / 'benchmarks/results/op1d_cpu.json'
LENGTHS = dict(
    speed=(4096, 16384, 32768),
    layer=(32768, ),
    scaling=tuple(2**k for k in range(13, 19)),
    memory=tuple(2**k for k in range(14, 19)))
# All tokens at 32k take ten seconds a call, so these parts repeat less.
REPEATS = dict(speed=3, layer=3, scaling=5)
# Gradients and what they need are held up to this length.
LONGEST_TRAINING = 65536
# The layer as the language model has it, and the op's cheapest form.
LAYERS = {
    'rank 4, hierarchical':
    dict(rank=4, summaries=dict(type='hierarchical', shared=True)),
    'rank 1, avg':
    dict(rank=1, summaries='avg')
}


def qkv(length: int, args: argparse.Namespace) -> List[Tensor]:
    """Views of one projection, as a layer makes them: ``[1, N, h, D]``."""
    packed = torch.randn(1, length, 3, args.heads, args.dim)
    return list(packed.unbind(2))


def attention(query: Tensor, key: Tensor, value: Tensor,
              args: argparse.Namespace, **options) -> Tensor:
    """The op under test."""
    return fma1d(
        query, key, value, cell_size=args.cell, causal=True, **options)


def full_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """SDPA over all tokens to the left, heads first."""
    heads_first = (x.transpose(1, 2) for x in (query, key, value))
    return scaled_dot_product_attention(*heads_first, is_causal=True)


def mean_so_far(x: Tensor) -> Tensor:
    """Mean over each token of ``[1, N, ...]`` and all before it."""
    count = torch.arange(1, x.shape[1] + 1).view(-1, *(1, ) * (x.dim() - 2))
    return x.cumsum(1) / count


def largest_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


def ragged_length(cell: int) -> int:
    """A length of several levels that ends inside a cell."""
    return 19 * cell + cell // 2 + 1


def repeats(part: str, args: argparse.Namespace) -> Optional[int]:
    """Samples of each call; None for a part that counts bytes."""
    return args.repeats or REPEATS[part] if part in REPEATS else None


def refuse(errors: Dict[str, float], what: str, limit: float = 1e-4) -> None:
    """Raises where an error is not rounding."""
    if not all(error <= limit for error in errors.values()):
        raise RuntimeError(f'{what} is wrong: {errors}; nothing was timed')


def check(tensors: List[Tensor], args: argparse.Namespace,
          sdpa: bool) -> Dict[str, float]:
    """Largest errors of the op; raises where one is not rounding.

    Args:
        tensors: Query, key and value ``[1, N, heads, head_dim]``.
        args: The command line.
        sdpa: Whether to compare with SDPA at this length, too.
    """
    query, key, value = tensors
    length = query.shape[1]
    small = qkv(ragged_length(args.cell), args)
    equal = attention(query, key[:, :1].expand_as(key), value, args)
    errors = dict(
        oracle=largest_difference(*(attention(*small, args, backend=backend)
                                    for backend in ('torch', 'naive'))),
        mean=largest_difference(equal, mean_so_far(value)))
    if sdpa:
        widths = Hierarchy((length, ), args.cell, causal=True).widths
        width = max(widths, default=1)
        # Far cells are complete, so the ragged ones need no care.
        coarse = key[:, ::width].repeat_interleave(width, 1)[:, :length]
        exact = full_attention(query, coarse, value).transpose(1, 2)
        errors['sdpa'] = largest_difference(
            attention(query, coarse, value, args), exact)
    refuse(errors, f'the op at {length} tokens, cell {args.cell},')
    return errors


def speed(args: argparse.Namespace, lengths: List[int]) -> List[dict]:
    """Inference against SDPA over all tokens to the left."""
    rows = []
    for length in lengths:
        tensors = qkv(length, args)
        errors = check(tensors, args, sdpa=True)
        samples = time_interleaved(
            dict(
                fma=lambda: attention(*tensors, args),
                sdpa=lambda: full_attention(*tensors)),
            repeats=repeats('speed', args),
            warmup=1,
            least_seconds=args.least)
        ours, sdpa = (summarise(samples[name]) for name in ('fma', 'sdpa'))
        tree = Hierarchy((length, ), args.cell, causal=True)
        rows.append(
            dict(
                length=length,
                errors=errors,
                fma_seconds=ours,
                sdpa_seconds=sdpa,
                speedup=sdpa['median'] / ours['median'],
                speedup_by_flops=length * (length + 1) / 2 /
                tree.visited_pairs,
                gflops=tree.flops(args.heads, args.dim) / ours['median'] /
                1e9))
        print_row('speed', rows[-1])
    return rows


def check_layer(layer: nn.Module, full: nn.Module,
                x: Tensor) -> Dict[str, float]:
    """Largest errors of the layer; raises where one is not rounding.

    Learned summaries start as averages, and leave here with random weights.

    Args:
        layer: The layer, with the projections of ``full``.
        full: Its twin on all tokens.
        x: Tokens ``[1, N, dim]``.
    """
    # No summary is attended: the twin must agree on any weights.
    near = x[:, :2 * layer.cell_size - 1]
    errors = dict(full=largest_difference(layer(near), full(near)))
    blind = copy.deepcopy(layer)
    blind.qkv.weight[:layer.dim] = 0  # of the queries
    blind.qkv.bias[:layer.dim] = 0
    value = blind.qkv(x)[..., 2 * layer.dim:]
    errors['mean'] = largest_difference(
        blind(x), blind.proj(mean_so_far(value)))
    for name, parameter in layer.named_parameters():
        if 'delta' in name:
            nn.init.normal_(parameter, std=.1)
    small = torch.randn(1, ragged_length(layer.cell_size), layer.dim)
    found = layer(small)
    layer.backend = 'naive'
    errors['oracle'] = largest_difference(found, layer(small))
    layer.backend = 'auto'
    refuse(errors, f'the layer at {x.shape[1]} tokens, {layer.extra_repr()},')
    return errors


def layer_speed(args: argparse.Namespace, lengths: List[int]) -> List[dict]:
    """Inference of the layer with projections and rotary positions."""
    rows = []
    dim = args.heads * args.dim
    common = dict(causal=True, positions='rotary')
    full = FullAttention1D(dim, args.heads, **common).eval()
    for length in lengths:
        x = torch.randn(1, length, dim)
        layers, errors = {}, {}
        for name, options in LAYERS.items():
            layers[name] = FMAttention1D(dim, args.heads, args.cell, **common,
                                         **options).eval()
            layers[name].load_state_dict(full.state_dict(), strict=False)
            errors[name] = check_layer(layers[name], full, x)
        calls: Dict[str, Callable] = {
            name: (lambda module=module: module(x))
            for name, module in dict(layers, full=full).items()
        }
        samples = time_interleaved(
            calls,
            repeats=repeats('layer', args),
            warmup=1,
            least_seconds=args.least)
        reference = summarise(samples['full'])
        for name in layers:
            ours = summarise(samples[name])
            rows.append(
                dict(
                    length=length,
                    layer=name,
                    errors=errors[name],
                    fma_seconds=ours,
                    full_seconds=reference,
                    speedup=reference['median'] / ours['median']))
            print_row('layer', rows[-1])
    return rows


def scaling(args: argparse.Namespace, lengths: List[int]) -> List[dict]:
    """Time over the length, all lengths in turns."""
    # Shorter sequences are the beginnings of the longest.
    longest = qkv(max(lengths), args)
    inputs = {n: [x[:, :n] for x in longest] for n in sorted(lengths)}
    errors = {n: check(x, args, sdpa=False) for n, x in inputs.items()}
    samples = time_interleaved(
        {
            n: (lambda x=x: attention(*x, args))
            for n, x in inputs.items()
        },
        repeats=repeats('scaling', args),
        warmup=1,
        least_seconds=args.least)
    rows: List[dict] = []
    for length in inputs:
        seconds = summarise(samples[length])
        growth = None
        if rows:
            ratio = seconds['median'] / rows[-1]['fma_seconds']['median']
            growth = ratio**(1 / math.log2(length / rows[-1]['length']))
        rows.append(
            dict(
                length=length,
                errors=errors[length],
                visited_pairs=Hierarchy((length, ), args.cell,
                                        causal=True).visited_pairs,
                fma_seconds=seconds,
                growth_per_doubling=growth))
        print_row('scaling', rows[-1])
    return rows


def memory(args: argparse.Namespace, lengths: List[int]) -> List[dict]:
    """Peak bytes of tensors beyond the inputs, per token."""
    rows = []
    for length in lengths:
        tensors = qkv(length, args)
        with torch.no_grad():
            errors = check(tensors, args, sdpa=False)
            peak = peak_memory(lambda: attention(*tensors, args))
        row = dict(
            length=length,
            errors=errors,
            qkv_bytes_per_token=3 * args.heads * args.dim *
            tensors[0].element_size(),
            forward_bytes_per_token=peak / length,
            training_bytes_per_token=None)
        if length <= LONGEST_TRAINING:
            leaves = [x.clone().requires_grad_() for x in tensors]
            grad = torch.randn_like(leaves[0])

            def training() -> tuple:
                out = attention(*leaves, args)
                return out, torch.autograd.grad(out, leaves, grad)

            training()
            row['training_bytes_per_token'] = peak_memory(training) / length
        rows.append(row)
        print_row('memory', row)
    return rows


PARTS = dict(speed=speed, layer=layer_speed, scaling=scaling, memory=memory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        '--parts', nargs='+', choices=PARTS, default=list(PARTS))
    parser.add_argument(
        '--lengths',
        nargs='+',
        type=int,
        help='tokens, for every part (default: each part\'s own)')
    parser.add_argument('--heads', type=int, default=8)
    parser.add_argument('--dim', type=int, default=64, help='of a head')
    parser.add_argument('--cell', type=int, default=64)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--repeats',
        type=int,
        help=f'samples of each call (default: {REPEATS})')
    parser.add_argument(
        '--least', type=float, default=0.2, help='seconds of a sample')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    # Parts measured earlier stay, each with its own environment.
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        with torch.set_grad_enabled(part == 'memory'):
            rows = PARTS[part](args, args.lengths or LENGTHS[part])
        results[part] = dict(
            environment=collect_environment('cpu', args.seed),
            setting=dict(
                heads=args.heads,
                head_dim=args.dim,
                cell_size=args.cell,
                causal=True,
                batch=1,
                dtype='float32',
                repeats=repeats(part, args)),
            rows=rows)
        write_json(args.out, results)


if __name__ == '__main__':
    main()
