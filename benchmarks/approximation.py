"""How near cheap attentions come to full attention, and how long they take.

One layer's worth of queries, keys and values from two middle layers of a
trained language model; float64 softmax attention is the truth. Train the
model, then measure::

    python tools/train.py configs/lm/full-lm-nano_1xb2-3k_books-1k.py \\
        --work-dir work_dirs/full-lm-nano-4h_1xb2-3k_books-1k \\
        --cfg-options model.net.num_heads=4
    python tools/train.py configs/lm/full-lm-nano-4h_1xb1-40_books-16k.py
    python benchmarks/approximation.py       # --no-timing: errors alone
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
import sys
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[1]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from measure import Call, compare
from rivals.packages import PACKAGES, Inputs, Method, rivals
from torch import Tensor, nn

from fma_kernels import Hierarchy, fma1d
from fma_kernels.summaries import average_summaries
from fma_vision.engine import (UserError, check_weights, read_checkpoint,
                               run_tool, select_state_dict)
from fma_vision.engine.build import build_model, load_model_config
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.engine.timing import peak_memory
from fma_vision.layers import FMAttention1D, FullAttention1D
from fma_vision.layers.positions import rotate

ROOT = Path(__file__).resolve().parents[1]
NAME = 'full-lm-nano-4h_1xb1-40_books-16k'
RESULT = ROOT / 'benchmarks/results/approximation_cpu.json'
MODES = dict(causal=True, bidirectional=False)
# Cells and ranks, and those of pooled queries.
FORMS = ((16, 1), (16, 4), (64, 1), (64, 4), (128, 4), (256, 4), (512, 4))
LINEAR = ((16, 1), (64, 1), (64, 4), (256, 4))
# Of a float32 output against its definition.
TOLERANCE = 1e-3
# Queries at a time in float64.
CHUNK = 256


def full_attention(inputs: Inputs, causal: bool) -> Tensor:
    """Softmax attention by its definition: float64 ``[1, N, heads, D]``."""
    # [heads, N, head_dim]
    query, key, value = (x[0].transpose(0, 1).double() for x in inputs[:3])
    query, length = query * query.shape[-1]**-.5, query.shape[1]
    parts = []
    for start in range(0, length, CHUNK):
        logits = query[:, start:start + CHUNK] @ key.transpose(1, 2)
        if causal:
            later = torch.ones(logits.shape[1:], dtype=torch.bool)
            logits.masked_fill_(later.triu(start + 1), -math.inf)
        parts.append(logits.softmax(-1) @ value)
    return torch.cat(parts, 1).transpose(0, 1)[None]


def errors(out: Tensor, exact: Tensor) -> Dict[str, float]:
    """Frobenius norms of the difference over those of the exact output.

    Returns:
        The mean over heads, and the worst of them.
    """
    norm = partial(torch.linalg.vector_norm, dim=(0, 1, 3))
    heads = norm(out.double() - exact) / norm(exact)
    return dict(mean=float(heads.mean()), worst=float(heads.max()))


# ------------------------------------------------------------------ inputs
class Subject(NamedTuple):
    """What methods are given.

    Attributes:
        query, key, value: As full attention takes them, rotated by their
            positions, ``[1, N, heads, head_dim]`` each.
        unturned: As they were projected, ``[1, N, 3 heads head_dim]``.
    """
    query: Tensor
    key: Tensor
    value: Tensor
    unturned: Tensor


def build(config: str, checkpoint: str) -> Tuple[nn.Module, Dict[str, Any]]:
    """The language model in evaluation mode, and how it was trained.

    Raises:
        UserError: They cannot be read, do not fit, or are of another model.
    """
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
    """What the two middle blocks see of a text, heads side by side.

    Args:
        net: The language model.
        text: A character more than is read, to predict.

    Returns:
        The subject, and the model's bits per character.
    """
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
                 subject: Subject, repeats: int) -> List[Dict[str, Any]]:
    """Errors, times and memory of the methods in one mode.

    Args:
        methods: Those of the mode are taken.
        causal: The mode.
        example: To fit weights on.
        subject: What is reported on.
        repeats: Samples of each time; 0 for none.

    Raises:
        UserError: An output is not finite.
    """
    fitted = example, full_attention(example[:3], causal)
    exact, entries = full_attention(subject[:3], causal), []
    for method in methods:
        if causal not in method.modes:
            continue
        call = method.prepare(subject, causal, fitted)
        row: Dict[str, Any] = dict(
            family=method.family,
            name=method.name,
            note=method.note,
            real=errors(call(), exact))
        print(f'{method.family}, {method.name}: {row["real"]}', flush=True)
        if not math.isfinite(row['real']['mean']):
            raise UserError(f'{method.family}, {method.name} is not finite')
        entries.append((row, dict(call=call)))
    if not repeats:
        return [row for row, _ in entries]
    rows = compare(entries, repeats, .1)
    for row, (_, own) in zip(rows, entries):
        row['seconds'] = row['seconds']['call']
        row['peak_bytes'] = peak_memory(own['call'])
        del row['ratio']
    return rows


def versions() -> Dict[str, str]:
    """Of the packages that hold the other methods."""
    found = {}
    for package in PACKAGES.values():
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return found


@torch.no_grad()
def measure(args: argparse.Namespace) -> Dict[str, Any]:
    """Measures what the command line names.

    Raises:
        UserError: Something cannot be read, or a method is wrong.
    """
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
    return dict(
        environment=dict(
            collect_environment('cpu', args.seed), compared=versions()),
        model=model,
        setting=dict(
            zip(('length', 'heads', 'head_dim'), subject.query.shape[1:]),
            text=str(args.text),
            bpc=bits,
            repeats=args.repeats),
        checks=checks,
        missing=missing,
        modes={
            mode:
            measure_mode([*forms, *others], causal, example, subject,
                         0 if args.no_timing else args.repeats)
            for mode, causal in MODES.items()
        })


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--config', default=f'configs/lm/{NAME}.py')
    parser.add_argument(
        '--checkpoint', default=f'work_dirs/{NAME}/iter_40.pth')
    parser.add_argument(
        '--text', type=Path, default=Path('data/books/valid.txt'))
    parser.add_argument(
        '--length',
        type=int,
        default=16384,
        help='tokens, a power of two from 512')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--repeats', type=int, default=5, help='samples of each time')
    parser.add_argument(
        '--no-timing', action='store_true', help='errors alone')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULT)
    args = parser.parse_args(argv)
    # H-Transformer-1D halves it down to blocks of 128.
    if args.length < 512 or args.length & (args.length - 1):
        parser.error('--length must be a power of two and at least 512, got '
                     f'{args.length}')
    # About a version check and a deprecated import of the packages.
    warnings.filterwarnings('ignore', message='.*(distutils|torch.cuda.amp)')
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    write_json(args.out, measure(args))


if __name__ == '__main__':
    run_tool(main)
