#!/usr/bin/env python
"""Latency, throughput and memory of one or several configs, side by side.

All configs run in one process and in turns, so that their ratio means
something on a machine that is not quite idle. The backbones of FMA-T and of
mmpretrain's Swin-T, for instance::

    python tools/analysis_tools/benchmark.py \\
        configs/imagenet/fma-tiny_16xb64_in1k-224px.py \\
        mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py \\
        --part backbone --shape 512 1024 --batch 1 --device cpu

Weights are random (`--seed`), inputs too. Before anything is timed, outputs
must be finite, Fast Multipole Attention must agree with its reference on a
small image, and a compiled model with itself before compilation.
"""

import argparse
import functools
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import torch
from mmengine.config import Config
from torch import Tensor

from fma_vision.engine import UserError, run_tool
from fma_vision.engine.arguments import add_config_options, positive
from fma_vision.engine.build import (build_model, input_channels,
                                     is_language_model, load_model_config)
from fma_vision.engine.complexity import count_parameters
from fma_vision.engine.environment import collect_environment
from fma_vision.engine.files import write_json
from fma_vision.engine.precision import (DTYPES, TOLERANCES, autocast,
                                         relative_error)
from fma_vision.engine.timing import peak_memory, summarise, time_interleaved
from fma_vision.layers import FMAttention2D

# Several levels of cells, with ragged borders, yet cheap for the reference.
CHECK_SIZE = (200, 200)


def image_size(text: str) -> Tuple[int, int]:
    """Reads ``512`` or ``512x1024`` as (height, width)."""
    sides = text.lower().split('x')
    size = tuple(int(side) if side.isdigit() else 0 for side in sides)
    if len(size) > 2 or min(size) < 1:
        raise argparse.ArgumentTypeError(
            f'a side or HxW with positive numbers is allowed, got {text!r}')
    return size[0], size[-1]


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Latency, throughput and memory of configs, in turns in '
        'one process')
    parser.add_argument(
        'configs',
        nargs='+',
        metavar='CONFIG',
        help='config file, or package::path in an OpenMMLab package; ratios '
        'are relative to the last one')
    parser.add_argument(
        '--shape',
        type=image_size,
        nargs='+',
        default=[(224, 224)],
        metavar='SIZE',
        help='image sizes, each a side or HxW (default: 224)')
    parser.add_argument('--batch', type=positive, default=1)
    parser.add_argument(
        '--part',
        choices=('backbone', 'model'),
        default='model',
        help='time the backbone alone or the model without auxiliary heads '
        'and post-processing (default: model)')
    parser.add_argument(
        '--backward',
        action='store_true',
        help='time forward and backward, in training mode')
    parser.add_argument('--device', default='cpu')
    parser.add_argument(
        '--dtype',
        choices=sorted(DTYPES),
        default='float32',
        help='float16 and bfloat16 run under autocast (default: float32)')
    parser.add_argument(
        '--compile', action='store_true', help='through torch.compile')
    parser.add_argument(
        '--repeats', type=positive, default=20, help='samples of each config')
    parser.add_argument('--warmup', type=positive, default=3)
    parser.add_argument('--threads', type=positive, help='CPU threads')
    parser.add_argument('--seed', type=int, default=0)
    add_config_options(parser, ', every one that is given')
    parser.add_argument('--out', help='write the results to this JSON')
    args = parser.parse_args(argv)
    if len(set(args.configs)) < len(args.configs):
        parser.error('argument CONFIG: each config is allowed once')
    return args


class Subject:
    """One config's part under test.

    Args:
        name: The config as the user gave it.
        args: The command line.
    """

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name = name
        self.args = args
        self.cfg: Config = load_model_config(name, args.cfg_options, args.base)
        if is_language_model(self.cfg):
            raise UserError(f'{name} is of a language model: '
                            'benchmarks/language_model.py times those')
        self.channels = input_channels(self.cfg)
        torch.manual_seed(args.seed)
        model = build_model(self.cfg)
        if getattr(model, 'auxiliary_head', None) is not None:
            model.auxiliary_head = None
        self.model = model.to(args.device)
        if args.part == 'backbone' and not hasattr(model, 'backbone'):
            raise UserError(f'--part backbone: {name} has no backbone')
        self.part = model if args.part == 'model' else model.backbone
        self.forward = self._forward()
        if args.backward:
            self.part.train()

    def _forward(self) -> Callable[[Tensor], Any]:
        if self.args.part == 'model':
            return functools.partial(self.part, mode='tensor')
        return self.part

    def image(self, size: Tuple[int, int]) -> Tensor:
        """The random images ``[B, C, H, W]`` of a size, always the same."""
        generator = torch.Generator().manual_seed(self.args.seed)
        image = torch.randn(
            self.args.batch, self.channels, *size, generator=generator)
        return image.to(self.args.device)

    def autocast(self) -> torch.autocast:
        return autocast(self.args.device, self.args.dtype)

    def run(self, image: Tensor) -> List[Tensor]:
        """One forward pass without gradients, as a flat list of maps."""
        with torch.no_grad(), self.autocast():
            return flatten(self.forward(image))

    def run_backward(self, image: Tensor) -> None:
        """One forward and backward pass; gradients are dropped."""
        with self.autocast():
            maps = flatten(self.forward(image))
        sum(m.float().mean() for m in maps).backward()
        self.part.zero_grad(set_to_none=True)

    def call(self, size: Tuple[int, int]) -> Callable[[], object]:
        """What is timed: one pass over a batch of a size."""
        run = self.run_backward if self.args.backward else self.run
        return functools.partial(run, self.image(size))

    def check(self, size: Tuple[int, int]) -> None:
        """Refuses to time a part whose numbers are wrong.

        Compiles the part where that is asked for.

        Args:
            size: Image height and width to try.

        Raises:
            UserError: The part fails on this size, an output is not finite,
                attention disagrees with its reference, or the compiled part
                with the plain one.
        """
        modes = [(m, m.training) for m in self.part.modules()]
        for module, _ in modes:
            module.training = False
        image = self.image(size)[:1]
        try:
            found = self.run(image)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(f'{self.name} fails on an image of {size[0]} x '
                            f'{size[1]}: {error}')
        if not all(torch.isfinite(m).all() for m in found):
            raise UserError(f'{self.name}: outputs are not finite')
        self._check_attention()
        if self.args.compile:
            self.forward = torch.compile(self.forward, dynamic=False)
            self._compare(self.run(image), found, 'its uncompiled self')
        for module, mode in modes:
            module.training = mode

    def _check_attention(self) -> None:
        """Compares Fast Multipole Attention with its naive reference."""
        layers = [
            m for m in self.part.modules() if isinstance(m, FMAttention2D)
        ]
        if not layers:
            return
        image = self.image(CHECK_SIZE)[:1]
        found = self.run(image)
        backends = [layer.backend for layer in layers]
        for layer in layers:
            layer.backend = 'naive'
        reference = self.run(image)
        for layer, backend in zip(layers, backends):
            layer.backend = backend
        self._compare(found, reference, 'its naive reference')

    def _compare(self, found: List[Tensor], reference: List[Tensor],
                 what: str) -> None:
        tolerance = TOLERANCES[self.args.dtype]
        for a, b in zip(found, reference):
            error = relative_error(a, b)
            if not error <= tolerance:
                raise UserError(
                    f'{self.name}: differs from {what} by {error:.1e} of the '
                    f'largest output, allowed is {tolerance:.0e}')


def flatten(out: Any) -> List[Tensor]:
    """The tensors in nested tuples, lists and dicts."""
    if isinstance(out, Tensor):
        return [out]
    values = out.values() if isinstance(out, dict) else out
    return [tensor for value in values for tensor in flatten(value)]


def measure(subjects: List[Subject], size: Tuple[int, int],
            args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Times all subjects in turns at one size.

    Args:
        subjects: What to time.
        size: Image height and width.
        args: The command line.

    Returns:
        One result per subject; the ratio is its median latency over that of
        the last subject.
    """
    calls = {subject.name: subject.call(size) for subject in subjects}
    samples = time_interleaved(calls, args.device, args.repeats, args.warmup)
    reference = summarise(samples[subjects[-1].name])['median']
    results = []
    for subject in subjects:
        seconds = summarise(samples[subject.name])
        results.append(
            dict(
                config=subject.name,
                shape=list(size),
                latency_seconds=seconds,
                images_per_second=args.batch / seconds['median'],
                ratio_of_medians=seconds['median'] / reference,
                peak_memory_bytes=peak_memory(calls[subject.name],
                                              args.device),
                parameters=count_parameters(subject.part),
                samples_seconds=samples[subject.name]))
    return results


def table(results: List[Dict[str, Any]]) -> str:
    """Results as lines of text."""
    lines = [
        f'{"image":>11}{"median ms":>11}{"quartiles":>19}{"images/s":>10}'
        f'{"ratio":>7}{"peak MiB":>10}  config'
    ]
    for row in results:
        seconds = row['latency_seconds']
        low, high = seconds['quartile_1'], seconds['quartile_3']
        size = 'x'.join(map(str, row['shape']))
        lines.append(f'{size:>11}{seconds["median"] * 1e3:>11.1f}'
                     f'{f"{low * 1e3:.1f} to {high * 1e3:.1f}":>19}'
                     f'{row["images_per_second"]:>10.2f}'
                     f'{row["ratio_of_medians"]:>7.2f}'
                     f'{row["peak_memory_bytes"] / 2**20:>10.1f}  '
                     f'{row["config"]}')
    return '\n'.join(lines)


def benchmark(args: argparse.Namespace) -> Dict[str, Any]:
    """Checks and times what the command line names.

    Args:
        args: From :func:`parse_args`.

    Returns:
        ``environment``, ``arguments`` and ``results``.

    Raises:
        UserError: A config cannot be used, or an output is wrong.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {args.device} cannot be used: {reason}')
    subjects = [Subject(name, args) for name in args.configs]
    for subject in subjects:
        subject.check(min(args.shape))
    results: List[Dict[str, Any]] = []
    for size in args.shape:
        results += measure(subjects, size, args)
    arguments = {
        key: value
        for key, value in vars(args).items() if key not in ('out', 'shape')
    }
    arguments['shape'] = [list(size) for size in args.shape]
    return dict(
        environment=collect_environment(args.device, args.seed),
        arguments=arguments,
        results=results)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    record = benchmark(args)
    print(table(record['results']))
    print('ratio: median latency over that of the last config')
    if args.out:
        write_json(args.out, record)


if __name__ == '__main__':
    run_tool(main)
