#!/usr/bin/env python
"""Draws where tokens of an image look, in layers of a trained backbone.

    python tools/visualization/attention_maps.py CONFIG CHECKPOINT \\
        --index 40 --at 0.5,0.6 0.2,0.3 --out outputs/attention_maps.png

One row for each place, one map for each layer (the last block of each stage,
or --layers): how much the token there, outlined, takes from every other, as a
multiple of an even share, mean over the heads or of one --head. Works for FMA,
whose summaries' weights fall on the tokens they stand for, for windows,
neighbourhoods, all tokens and FMMformer.
"""

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config

from fma_vision.engine import UserError, run_tool, trained_runner
from fma_vision.engine.arguments import add_runner_arguments, positive
from fma_vision.engine.build import preprocessor_settings
from fma_vision.visualization.attention_maps import (Layers, attention_maps,
                                                     map_layers, record_inputs)

# Multiples of an even share that colours tell apart; less is white.
LOW, HIGH = 0.1, 100
COLOURS = colormaps['YlGnBu'].with_extremes(under='white', bad='white')
PLACE_COLOUR = '#d1193e'


def place(text: str) -> Tuple[float, float]:
    """Reads ``X,Y``, fractions of width and height.

    Raises:
        argparse.ArgumentTypeError: It is something else.
    """
    try:
        x, y = (float(part) for part in text.split(','))
    except ValueError:
        x = y = -1.
    if not (0 <= x < 1 and 0 <= y < 1):
        raise argparse.ArgumentTypeError(
            f'X,Y with both in [0, 1) is allowed, got {text!r}')
    return x, y


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Where tokens look, in layers of a trained backbone')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--index', type=int, default=0, help='of the image in the test data')
    parser.add_argument(
        '--at',
        type=place,
        nargs='+',
        default=[(.5, .5)],
        metavar='X,Y',
        help='places, as fractions of width and height from the top left')
    parser.add_argument(
        '--layers',
        nargs='+',
        metavar='NAME',
        help='such as backbone.stages.0.blocks.1.attn; default: the last '
        'block of each stage')
    parser.add_argument(
        '--head', type=int, help='draw this head, instead of their mean')
    parser.add_argument(
        '--out',
        type=Path,
        default=Path('outputs/attention_maps.png'),
        help='default: %(default)s')
    parser.add_argument('--dpi', type=positive, default=110)
    add_runner_arguments(parser)
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Map:
    """The maps of one layer.

    Attributes:
        name: Of the layer.
        stride: Pixels from token to token.
        tokens: Row and column of each place's token.
        shares: ``[places, H, W]``, multiples of an even share.
    """
    name: str
    stride: int
    tokens: List[Tuple[int, int]]
    shares: np.ndarray


def choose(layers: Layers, names: Optional[Sequence[str]]) -> Layers:
    """The layers that are named, or the last of each stage.

    Raises:
        UserError: There is none, or none of a name.
    """
    if not layers:
        raise UserError('the model has no FMATransformer whose layers weigh '
                        'tokens one by one')
    if names is None:
        last = {
            re.sub(r'blocks\.\d+', 'blocks', name): name
            for name in layers
        }
        names = list(last.values())
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise UserError(f'--layers {unknown[0]} is unknown; allowed: '
                        f'{", ".join(layers)}')
    return {name: layers[name] for name in names}


def rgb(image: torch.Tensor, cfg: Config) -> np.ndarray:
    """An input ``[C, H, W]`` of 0 to 255 as ``[H, W, 3]`` to look at.

    Raises:
        UserError: It has neither one channel nor three.
    """
    if len(image) not in (1, 3):
        raise UserError('images must have 1 or 3 channels, got '
                        f'{len(image)}')
    settings = preprocessor_settings(cfg)
    picture = image.permute(1, 2, 0).clamp(0, 255).byte().numpy()
    if settings.get('bgr_to_rgb') or settings.get('to_rgb'):
        picture = picture[..., ::-1]
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def share_of(weights: torch.Tensor, head: Optional[int]) -> np.ndarray:
    """Weights ``[places, heads, H, W]`` as multiples of an even share.

    Raises:
        UserError: There is no such head.
    """
    heads, height, width = weights.shape[1:]
    if head is not None and not 0 <= head < heads:
        raise UserError(f'--head must be in [0, {heads}), got {head}')
    one = weights.mean(1) if head is None else weights[:, head]
    return (one * height * width).cpu().numpy()


def measure(args: argparse.Namespace) -> Tuple[np.ndarray, List[Map]]:
    """Run a model on one image and follow some tokens.

    Args:
        args: From :func:`parse_args`.

    Returns:
        The image, ``[H, W, 3]`` uint8, and the maps of each layer.

    Raises:
        UserError: Something does not fit.
    """
    runner = trained_runner(args.config, args.checkpoint, args.device,
                            args.work_dir, args.cfg_options, args.base)
    model = runner.model
    dataset = runner.test_loop.dataloader.dataset
    if not 0 <= args.index < len(dataset):
        raise UserError(f'--index must be in [0, {len(dataset)}), got '
                        f'{args.index}')
    layers = choose(map_layers(model), args.layers)
    sample = dataset[args.index]
    image = rgb(sample['inputs'], runner.cfg)
    batch = {key: [value] for key, value in sample.items()}
    with record_inputs(layers) as inputs, torch.no_grad():
        model.test_step(batch)
    found = []
    for name, layer in layers.items():
        if len(inputs[name]) != 1:
            raise UserError(
                f'{name} ran {len(inputs[name])} times for one image: where '
                'that is looked at in parts, give --cfg-options '
                'model.test_cfg.mode=whole')
        backbone, stage = re.fullmatch(r'(?:(.+)\.)?stages\.(\d+)\..+',
                                       name).groups()
        patch = model.get_submodule(backbone or '').patch_size
        stride = patch * 2**int(stage)
        tokens = [(int(y * image.shape[0]) // stride,
                   int(x * image.shape[1]) // stride) for x, y in args.at]
        try:
            weights = attention_maps(layer, inputs[name][0], tokens)
        except ValueError as error:
            raise UserError(f'{name}: {error}') from error
        found.append(Map(name, stride, tokens, share_of(weights, args.head)))
    return image, found


def draw(image: np.ndarray, maps: Sequence[Map],
         places: Sequence[Tuple[float, float]]) -> Figure:
    """The image and its maps, a row for each place."""
    height, width = image.shape[:2]
    panel = 2.6
    figure = Figure(
        figsize=(panel * (1 + len(maps)) + .9,
                 panel * height / width * len(places) + .45),
        layout='constrained')
    axes = figure.subplots(len(places), 1 + len(maps), squeeze=False)
    norm = LogNorm(LOW, HIGH)
    for row, (x, y) in enumerate(places):
        axes[row, 0].imshow(image, extent=(0, width, height, 0))
        axes[row, 0].plot(
            x * width, y * height, '+', color=PLACE_COLOUR, ms=10, mew=2)
        for axis, layer in zip(axes[row, 1:], maps):
            share, step = layer.shares[row], layer.stride
            axis.imshow(
                share,
                norm=norm,
                cmap=COLOURS,
                interpolation='nearest',
                extent=(0, share.shape[1] * step, share.shape[0] * step, 0))
            down, right = layer.tokens[row]
            axis.add_patch(
                Rectangle((right * step, down * step),
                          step,
                          step,
                          fill=False,
                          edgecolor=PLACE_COLOUR,
                          linewidth=1.6))
        for axis in axes[row]:
            axis.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes[0, 0].set_title('image', fontsize=9)
    for axis, layer in zip(axes[0, 1:], maps):
        short = re.sub(r'.*stages\.(\d+)\.blocks\.(\d+)\..*',
                       r'stages.\1.blocks.\2', layer.name)
        size = ' × '.join(map(str, layer.shares.shape[1:]))
        axis.set_title(f'{short}, {size}', fontsize=9)
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=axes, shrink=.9, extend='both')
    bar.set_label('weight, 1 = an even share', fontsize=9)
    return figure


def check_out(path: Path) -> None:
    """Refuse a name that no picture can be written to, before the work.

    Raises:
        UserError: It is a folder, or of no known format.
    """
    formats = Figure().canvas.get_supported_filetypes()
    if path.is_dir() or path.suffix[1:].lower() not in formats:
        raise UserError(f'--out must be a file with one of the endings '
                        f'{", ".join(sorted(formats))}; got {path}')


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    check_out(args.out)
    image, maps = measure(args)
    figure = draw(image, maps, args.at)
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(args.out, dpi=args.dpi)
    except OSError as error:
        raise UserError(f'--out {args.out} cannot be written: '
                        f'{error}') from None
    print(f'{len(maps)} layers, {len(args.at)} places -> {args.out}')


if __name__ == '__main__':
    run_tool(main)
