#!/usr/bin/env python
"""Prints parameters and multiply-adds of a config's backbone and model.

Takes classification, segmentation, detection and language configs, also
those that an OpenMMLab package ships::

    python tools/analysis_tools/get_flops.py \\
        configs/imagenet/fma-tiny_16xb64_in1k-224px.py --shape 224
    python tools/analysis_tools/get_flops.py \\
        mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py
    python tools/analysis_tools/get_flops.py \\
        configs/lm/fma-lm_1xb32-20k_books-1k.py --shape 16384

One multiply-add counts once. Matrix products, convolutions and attention
(for Fast Multipole Attention: the pairs its hierarchy visits, and learned
summaries) are counted; norms, activations, averages and interpolation are
not. The last column is the share of fused attention ops; a model that
multiplies its own attention matrices (mmpretrain's Swin) has that in its
total only.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

from fma_vision.engine import run_tool
from fma_vision.engine.arguments import add_config_options, add_shape
from fma_vision.engine.build import (input_channels, input_shape,
                                     is_language_model, load_model_config,
                                     measure)
from fma_vision.engine.complexity import Complexity
from fma_vision.engine.files import write_json


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Parameters and multiply-adds (MACs) of a config',
        epilog='One multiply-add counts once; norms, activations and pooling '
        'are not counted.')
    parser.add_argument(
        'config', help='config file, or package::path in an OpenMMLab package')
    add_shape(parser)
    add_config_options(parser)
    parser.add_argument('--out', help='also write the numbers to this JSON')
    return parser.parse_args(argv)


def table(found: Dict[str, Complexity]) -> List[str]:
    """The measured numbers as lines of text."""
    lines = [f'{"":10}{"parameters":>12}{"MACs":>12}{"fused attention":>17}']
    for name, part in found.items():
        lines.append(f'{name:10}{part.parameters / 1e6:>10.2f} M'
                     f'{part.macs / 1e9:>10.3f} G'
                     f'{part.attention_macs / 1e9:>15.3f} G')
    return lines


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    cfg = load_model_config(args.config, args.cfg_options, args.base)
    shape = input_shape(cfg, args.shape)
    found = measure(cfg, shape)
    print('config   ', ' + '.join([args.config, *args.base]))
    if is_language_model(cfg):
        print(f'text      {shape[0]} tokens')
    else:
        print(f'image     {input_channels(cfg)} x {shape[0]} x {shape[1]}')
    print('\n'.join(table(found)))
    if args.out:
        content = dict(config=args.config, base=args.base, shape=list(shape))
        content.update((name, vars(part)) for name, part in found.items())
        write_json(args.out, content)


if __name__ == '__main__':
    run_tool(main)
