"""How near cheap attentions come to full attention, and how long they take.

One layer's worth of queries, keys and values from two middle layers of a
trained language model; float64 softmax attention is the truth. Train the
model, then measure::

    python tools/train.py configs/lm/full-lm-nano_1xb2-3k_books-1k.py \\
        --work-dir work_dirs/full-lm-nano-4h_1xb2-3k_books-1k \\
        --cfg-options model.net.num_heads=4
    python tools/train.py configs/lm/full-lm-nano-4h_1xb1-40_books-16k.py
    python benchmarks/approximation.py       # --quick writes nothing
    python benchmarks/tables.py

What is timed is the attention on given queries, keys and values, without
projections, all methods in turns. Other methods get queries and keys that are
rotated by their positions, as full attention does; FMA pools keys before the
rotation and turns the means to the centres of their cells, as its layer does.
FMA is checked against its definition before it is measured, the others in the
tests. `pip install -e '.[compare]'` brings the other methods; one that is
missing costs its rows alone.
"""
import argparse
import math
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from measure import RESULTS, Call, compare, parser
from rivals.packages import Inputs, Method, rivals
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from fma_kernels import Hierarchy, fma1d
from fma_kernels.summaries import average_summaries
from fma_vision.engine import (UserError, check_weights, read_checkpoint,
                               run_tool, select_state_dict)
from fma_vision.engine.build import build_model, load_model_config
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.layers import FMAttention1D, FullAttention1D
from fma_vision.layers.positions import rotate

NAME = 'full-lm-nano-4h_1xb1-40_books-16k'
MODES = dict(causal=True, bidirectional=False)
# Cells and ranks, and those of pooled queries.
FORMS = ((16, 1), (16, 4), (64, 1), (64, 4), (128, 4), (256, 4), (512, 4))
LINEAR = ((16, 1), (64, 1), (64, 4), (256, 4))
# Of a float32 output against its definition.
TOLERANCE = 1e-3


def full_attention(inputs: Inputs, causal: bool) -> Tensor:
    """Softmax attention in float64: ``[1, N, heads, head_dim]``."""
    # [1, heads, N, head_dim]
    given = (x.transpose(1, 2).double() for x in inputs[:3])
    out = scaled_dot_product_attention(*given, is_causal=causal)
    return out.transpose(1, 2)


def errors(out: Tensor, exact: Tensor) -> Dict[str, float]:
    """Frobenius norms of the difference over those of the exact output."""
    norm = partial(torch.linalg.vector_norm, dim=(0, 1, 3))
    heads = norm(out.double() - exact) / norm(exact)
    return dict(mean=float(heads.mean()), worst=float(heads.max()))


# ------------------------------------------------------------------ inputs
class Subject(NamedTuple):
    """What methods are given: ``[1, N, heads, head_dim]``, rotated."""
    query: Tensor
    key: Tensor
    value: Tensor
    unturned: Tensor  # as they were projected, [1, N, 3 heads head_dim]


def build(config: str, checkpoint: str) -> Tuple[nn.Module, Dict[str, Any]]:
    """The language model in evaluation mode, and how it was trained."""
    model = build_model(load_model_config(config))
    net = getattr(model, 'net', None)
    attn = net.blocks[0].attn if hasattr(net, 'blocks') else None
    if type(attn) is not FullAttention1D or attn.positions != 'rotary':
        raise UserError(f'{config}: a language model on FullAttention1D with '
                        "positions='rotary' is allowed")
    content = read_checkpoint(checkpoint)
    state = select_state_dict(content, checkpoint)
    check_weights(model, state, checkpoint)
    model.load_state_dict(state)
    return net, dict(
        config=config,
        checkpoint=checkpoint,
        iterations=content.get('meta', {}).get('iter'))


@torch.no_grad()
def capture(net: nn.Module, text: bytes) -> Tuple[Subject, float]:
    """What the two middle blocks see of a text, and its bits a character."""
    tokens = torch.tensor(list(text))
    middle = len(net.blocks) // 2
    layers = [block.attn for block in net.blocks[middle - 1:middle + 1]]
    seen: List[Tensor] = []
    hooks = [
        attn.qkv.register_forward_hook(lambda *args: seen.append(args[-1]))
        for attn in layers
    ]
    nats, count = net.nats(tokens[None, :-1], tokens[None, 1:])
    for hook in hooks:
        hook.remove()
    # [1, N, 3, heads of all layers, head_dim]
    qkv = torch.cat([
        x.unflatten(-1, (3, attn.num_heads, attn.head_dim))
        for x, attn in zip(seen, layers)
    ], 3)
    at, base = torch.arange(len(tokens) - 1), layers[0].rotary_base
    query, key, value = qkv.unbind(2)
    # Contiguous, so that no method is timed on another's strides.
    inputs = (
        x.contiguous()
        for x in (rotate(query, at, base), rotate(key, at, base), value))
    bits = float(nats.sum() / count.sum()) / math.log(2)
    return Subject(*inputs, qkv.flatten(2)), bits


# --------------------------------------------------------------------- FMA
def fma(subject: Subject,
        causal: bool,
        _: Any = None,
        backend: str = 'auto',
        pool_queries: bool = False,
        **form: Any) -> Call:
    """The op as its layer calls it, with averages: nothing is learned."""
    tree = Hierarchy((subject.key.shape[1], ), causal=causal, **form).trimmed()
    # For its centres of cells alone.
    layer = FMAttention1D(2, 1, **form)
    centres = layer.summary_positions(tree, subject.key.device)

    def pooled(x: Tensor) -> Tensor:
        return rotate(average_summaries(x, tree), centres)

    def call() -> Tensor:
        # [1, N, 3, heads, head_dim]
        heads = subject.unturned.unflatten(-1, (3, *subject.key.shape[2:]))
        asking, asked, _ = heads.unbind(2)
        options = dict(key_summaries=pooled(asked))
        if pool_queries:
            options['query_summaries'] = pooled(asking)
        return fma1d(
            *subject[:3],
            num_levels=tree.num_levels,
            causal=causal,
            pool_queries=pool_queries,
            backend=backend,
            **form,
            **options)

    return call


def fma_forms(longest: int) -> List[Method]:
    """All forms with cells up to a size."""
    return [
        Method('FMA', f'{"linear, " * pooled}cell {cell}, rank {rank}',
               partial(fma, cell_size=cell, rank=rank, pool_queries=pooled),
               (False, ) if pooled else (True, False))
        for forms, pooled in ((FORMS, False), (LINEAR, True))
        for cell, rank in forms if cell <= longest
    ]


def check(form: Method, head_dim: int) -> float:
    """The largest error against the dense definition, on a ragged piece."""
    length = 13 * form.prepare.keywords['cell_size'] // 2 + 1
    # One head: the definition holds all pairs.
    given = torch.randn(3, 1, length, 1, head_dim)
    subject = Subject(*given, given.permute(1, 2, 0, 3, 4).flatten(2))
    return max(
        float((form.prepare(subject, causal)() -
               form.prepare(subject, causal, backend='naive')()).abs().max())
        for causal in form.modes)


# ----------------------------------------------------------------- measure
def measure_mode(methods: List[Method], causal: bool, example: Subject,
                 subject: Subject,
                 args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Errors, times and memory of the methods in one mode.

    Weights are fitted on ``example``; ``subject`` is reported on.
    """
    fitted = example, full_attention(example[:3], causal)
    exact, entries = full_attention(subject[:3], causal), []
    for method in methods:
        if causal not in method.modes:
            continue
        call = method.prepare(subject, causal, fitted)
        kept = {k: getattr(method, k) for k in ('family', 'name', 'note')}
        row = dict(kept, real=errors(call(), exact))
        print(f'{method.family}, {method.name}: {row["real"]}', flush=True)
        if not math.isfinite(row['real']['mean']):
            raise UserError(f'{method.family}, {method.name} is not finite')
        entries.append((row, dict(call=call)))
    # Of one call each.
    return [
        dict(
            row,
            seconds=row['seconds']['call'],
            peak_bytes=row['peak_bytes']['call'])
        for row in compare(entries, args)
    ]


@torch.no_grad()
def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """Measures what the command line names."""
    net, model = build(args.config, args.checkpoint)
    text = args.text.read_bytes() if args.text.is_file() else b''
    if len(text) < 3 * (args.length + 1):
        raise UserError(f'--text {args.text}: a file of at least '
                        f'{3 * (args.length + 1)} bytes is allowed')
    # From its thirds, far from each other.
    pieces = [
        capture(net, text[start:start + args.length + 1])
        for start in (0, len(text) // 3)
    ]
    (example, _), (subject, bits) = pieces
    others, missing = rivals()
    for family, reason in missing.items():
        print(f'{family} is left out: {reason}')
    forms = fma_forms(args.length // 8)
    checks = {x.name: check(x, subject.query.shape[-1]) for x in forms}
    wrong = {k: x for k, x in checks.items() if not x <= TOLERANCE}
    if wrong:
        raise UserError(f'FMA is wrong by {wrong}; nothing was measured')
    packages = sorted({x.package for x in others} - {''})
    compared = {x: metadata.version(x) for x in packages}
    return dict(
        environment=dict(
            collect_environment('cpu', args.seed), compared=compared),
        model=model,
        setting=dict(
            zip(('length', 'heads', 'head_dim'), subject.query.shape[1:]),
            text=str(args.text),
            bpc=bits,
            repeats=args.repeats),
        checks=checks,
        missing=missing,
        modes={
            mode: measure_mode([*forms, *others], causal, example, subject,
                               args)
            for mode, causal in MODES.items()
        })


def main(argv: Optional[Sequence[str]] = None) -> None:
    options = parser(__doc__)
    options.set_defaults(device='cpu', repeats=5, least=.1)
    options.add_argument('--config', default=f'configs/lm/{NAME}.py')
    options.add_argument(
        '--checkpoint', default=f'work_dirs/{NAME}/iter_40.pth')
    options.add_argument(
        '--text', type=Path, default=Path('data/books/valid.txt'))
    options.add_argument(
        '--length', type=int, default=16384, help='tokens, a power of two')
    args = options.parse_args(argv)
    if args.quick:
        args.length, args.repeats = 512, 1
    elif args.out is None:
        args.out = RESULTS / 'approximation_cpu.json'
    # H-Transformer-1D halves it down to blocks of 128.
    if args.length < 512 or args.length & (args.length - 1):
        options.error('--length must be a power of two and at least 512, got '
                      f'{args.length}')
    # About a version check and a deprecated import of the packages.
    warnings.filterwarnings('ignore', message='.*(distutils|torch.cuda.amp)')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    found = measure(args)
    if args.out is not None:
        write_json(args.out, found)


if __name__ == '__main__':
    run_tool(main)
