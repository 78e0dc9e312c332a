"""Language models on a CPU: reading, writing, precisions.

    python benchmarks/language_model.py                      # all parts
    python benchmarks/language_model.py --parts streaming    # one
    python benchmarks/language_model.py --quick              # a rehearsal
    python benchmarks/tables.py                              # then: the tables

What is compared runs in turns in one process; the JSON holds medians and
quartiles. A step is timed as a run of a leaf cell's tokens, as a text is
written, so that the step that ends a cell is in the mean. Nothing is timed
before chunks and single steps have given the logits of the parallel form.
"""
import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from backbones import under, variants
from measure import compare, parser, run_parts
from mmengine.registry import DATASETS
from torch import Tensor, nn

from fma_vision.engine import (UserError, check_weights, read_checkpoint,
                               select_state_dict)
from fma_vision.engine.build import build_model, load_model_config
from fma_vision.engine.complexity import count_parameters
from fma_vision.engine.timing import peak_memory, summarise, time_interleaved

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/lm/fma-lm-nano_1xb2-3k_books-1k.py'
WEIGHTS = 'demo/weights/fma-lm-nano_books.pth'
TWIN = 'configs/lm/full-lm-nano_1xb2-3k_books-1k.py'
# Tokens of a timed run: those of a leaf cell.
RUN = 64
# Several levels of cells of 64, the last cell ragged.
CHECK_LENGTH = 777


# ------------------------------------------------------------------ models
def shipped() -> nn.Module:
    """The language model whose weights come with the project."""
    model = build_model(load_model_config(str(ROOT / CONFIG)))
    path = str(ROOT / WEIGHTS)
    state = select_state_dict(read_checkpoint(path), path)
    check_weights(model, state, path)
    model.load_state_dict(state)
    return model.eval().net


def drawn(config: str = CONFIG, **attn: Any) -> nn.Module:
    """A model with random weights, and another attention layer if need be."""
    cfg = load_model_config(str(ROOT / config))
    cfg.model.net.setdefault('attn', {}).update(attn)
    net = build_model(cfg).eval().net
    # Branches as weak as before training would hide mistakes in them.
    for parameter in net.blocks.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=parameter.shape[1]**-.5)
        elif not parameter.any():
            nn.init.normal_(parameter, std=.1)
    return net


def random_tokens(net: nn.Module, length: int) -> Tensor:
    """Tokens ``[1, length]``."""
    return torch.randint(net.vocab_size, (1, length))


def check(net: nn.Module, name: str, length: int = CHECK_LENGTH) -> float:
    """The error of pieces against the whole, over the largest logit."""
    tokens = random_tokens(net, length)
    with torch.no_grad():
        whole = net(tokens)
    half = length // 2
    logits, state = net.prefill(
        tokens[:, :half], chunk_size=half // 2, return_all=True)
    found = [logits]
    for token in tokens[:, half:].unbind(1):
        logits, state = net.step(token, state)
        found.append(logits[:, None])
    error = (torch.cat(found, 1) - whole).abs().max() / whole.abs().max()
    if not error <= 1e-3:
        raise UserError(f'{name}: step by step differs from the parallel '
                        f'form by {error:.1e} of the largest logit')
    return float(error)


class Reader:
    """A text that a model has read, to be continued likeliest token first."""

    def __init__(self, net: nn.Module, context: int) -> None:
        self.net, self.context = net, context
        tokens = random_tokens(net, context)
        start = time.perf_counter()
        logits, self.state = net.prefill(tokens)
        self.seconds = time.perf_counter() - start
        self.token = logits.argmax(-1)
        self.peak = peak_memory(lambda: net.prefill(tokens))

    def __call__(self) -> None:
        """One run of steps."""
        for _ in range(RUN):
            logits, self.state = self.net.step(self.token, self.state)
            self.token = logits.argmax(-1)

    def row(self, name: str, samples: List[float]) -> Dict[str, Any]:
        length, = self.state.lengths
        # Keys and values of every token in every layer.
        cache = 8 * length * self.net.embed_dims * len(self.net.blocks)
        return dict(
            model=name,
            context=self.context,
            tokens_per_second=self.context / self.seconds,
            prefill_peak_bytes=self.peak,
            seconds=dict(step=summarise([s / RUN for s in samples])),
            state_tokens=length,
            state_bytes=self.state.nbytes,
            cache_bytes=cache,
            state_over_cache=self.state.nbytes / cache)


# ------------------------------------------------------------------- parts
def streaming(args: argparse.Namespace) -> List[dict]:
    """Reading a text in chunks, then writing token by token."""
    lengths = [2048, 16384, 65536, 262144]
    subjects = {
        'shipped': (shipped(), lengths),
        'averages': (drawn(summaries='avg', rank=1), lengths[1::2]),
        'full attention': (drawn(TWIN), lengths[:2])
    }
    calls: Dict[Any, Reader] = {}
    for name, (net, contexts) in subjects.items():
        print(name, 'differs from its parallel form by', check(net, name))
        net.prefill(random_tokens(net, 1024))  # the first call is slower
        for context in contexts:
            size = max(context // 64, 128) if args.quick else context
            calls[name, context] = Reader(net, size)
    samples = time_interleaved(
        calls, repeats=args.repeats, warmup=1, least_seconds=0)
    rows = [reader.row(key[0], samples[key]) for key, reader in calls.items()]
    for row in rows:
        row['parameters'] = count_parameters(subjects[row['model']][0])
    return rows


def precision(args: argparse.Namespace) -> List[dict]:
    """float32, bfloat16 under autocast and int8: time, bits a character."""
    cfg = load_model_config(str(ROOT / CONFIG)).test_dataloader.dataset
    cfg.update(
        samples=2 if args.quick else 128, data_root=str(ROOT / cfg.data_root))
    windows = DATASETS.build(cfg)
    tokens = torch.stack([windows[i]['tokens'] for i in range(len(windows))])
    net = shipped()
    long = random_tokens(net, 256 if args.quick else 4096)
    whole, steps, scores = {}, {}, {}
    for name, (model, dtype) in variants(net).items():
        cast = partial(under, dtype)
        nats, counts = zip(*(cast(model.nats, x) for x in tokens.split(8)))
        bits = torch.cat(nats).double().sum() / math.log(2)
        scores[name] = float(bits / torch.cat(counts).sum())
        whole[name] = partial(cast, model, long)
        steps[name] = partial(cast, cast(Reader, model, long.shape[1]))
    entries = [(dict(mode='4,096 tokens', bits_per_character=scores), whole),
               (dict(mode=f'{RUN} steps'), steps)]
    return compare(entries, args)


def main(argv: Optional[List[str]] = None) -> int:
    return run_parts(
        parser(__doc__), 'language_model', dict(cpu=(streaming, precision)),
        argv)


if __name__ == '__main__':
    sys.exit(main())
