"""Write pictures of what a config feeds its model, labels drawn in."""
import argparse
import os
import sys
from typing import Any, List, Sequence

import numpy as np
from PIL import Image, ImageDraw

IGNORE = 255
# Small images are enlarged to at least this many pixels a side.
MIN_SIDE = 192


def parse_args(argv=None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv (list[str], optional): Defaults to ``sys.argv``.

    Returns:
        argparse.Namespace: The options.
    """
    from fma_vision.engine.arguments import add_config_options
    parser = argparse.ArgumentParser(
        description='Write pictures of a dataset after its pipeline')
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', required=True, help='folder for PNG files')
    parser.add_argument(
        '--phase', choices=['train', 'val', 'test'], default='train')
    parser.add_argument(
        '--number', type=int, default=20, help='how many (default: 20)')
    parser.add_argument(
        '--opacity', type=float, default=0.5, help='of masks (default: 0.5)')
    add_config_options(parser)
    return parser.parse_args(argv)


def to_rgb(inputs: Any, swap: bool) -> np.ndarray:
    """The image of a packed sample.

    Args:
        inputs (Tensor): uint8 or float ``[C, H, W]``, C 1 or 3.
        swap (bool): The channels are blue, green, red.

    Returns:
        ndarray: uint8 RGB ``[H, W, 3]``.
    """
    # [C, H, W] -> [H, W, C]
    image = inputs.permute(1, 2, 0).numpy()
    image = image.clip(0, 255).astype(np.uint8)
    if image.shape[2] == 1:
        return image.repeat(3, axis=2)
    return image[..., ::-1].copy() if swap else image


def draw_mask(image: np.ndarray, mask: np.ndarray,
              palette: Sequence[Sequence[int]], opacity: float) -> Image.Image:
    """The image beside itself with the mask's colours over it.

    Args:
        image (ndarray): uint8 RGB ``[H, W, 3]``.
        mask (ndarray): Class indices ``[H, W]``; 255 stays uncoloured.
        palette (sequence): RGB of each class.
        opacity (float): Of the colours.

    Returns:
        Image: Twice as wide.
    """
    table = np.zeros((256, 3), np.float32)
    table[:len(palette)] = palette
    mixed = (1 - opacity) * image + opacity * table[mask]
    mixed = np.where((mask == IGNORE)[..., None], image, mixed)
    return Image.fromarray(np.hstack([image, mixed.astype(np.uint8)]))


def draw_label(image: np.ndarray, text: str) -> Image.Image:
    """The image, enlarged when small, over a line of text.

    Args:
        image (ndarray): uint8 RGB ``[H, W, 3]``.
        text (str): The line.

    Returns:
        Image: The picture.
    """
    factor = max(1, -(-MIN_SIDE // min(image.shape[:2])))
    picture = Image.fromarray(image.repeat(factor, 0).repeat(factor, 1))
    canvas = Image.new('RGB', (picture.width, picture.height + 16), 'white')
    canvas.paste(picture, (0, 0))
    # The built-in font has Latin letters only.
    text = text.encode('latin-1', 'replace').decode('latin-1')
    ImageDraw.Draw(canvas).text((2, picture.height + 2), text, fill='black')
    return canvas


def browse(args: argparse.Namespace) -> List[str]:
    """Write the pictures.

    Args:
        args (argparse.Namespace): From :func:`parse_args`.

    Returns:
        list[str]: The files written.
    """
    from mmengine.registry import DATASETS, init_default_scope

    from fma_vision.engine import UserError, check_data_roots, load_config
    from fma_vision.engine.build import preprocessor_settings
    cfg = load_config(args.config, args.cfg_options, args.base)
    key = f'{args.phase}_dataloader'
    if cfg.get(key) is None:
        raise UserError(f'{args.config} has no {key}')
    if args.number < 1:
        raise UserError(f'--number is {args.number}, at least 1 is allowed')
    if not 0 <= args.opacity <= 1:
        raise UserError(f'--opacity is {args.opacity}, allowed are 0 to 1')
    check_data_roots(cfg, (key, ))
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(cfg[key].dataset)
    classes = dataset.metainfo['classes']
    preprocessor = preprocessor_settings(cfg)
    swap = bool(preprocessor.get('to_rgb') or preprocessor.get('bgr_to_rgb'))
    os.makedirs(args.out, exist_ok=True)
    written = []
    # Evenly over the set, so that every class of a sorted set shows up.
    indices = np.linspace(0,
                          len(dataset) - 1, min(args.number,
                                                len(dataset))).astype(int)
    for index in indices:
        item = dataset[int(index)]
        sample = item['data_samples']
        image = to_rgb(item['inputs'], swap)
        if 'gt_sem_seg' in sample:
            mask = sample.gt_sem_seg.data[0].numpy()
            picture = draw_mask(image, mask, dataset.metainfo['palette'],
                                args.opacity)
        elif 'gt_label' in sample:
            names = [classes[int(i)] for i in sample.gt_label]
            picture = draw_label(image, ', '.join(names))
        else:
            raise UserError(f'{args.config}: samples carry neither masks nor '
                            'labels')
        path = os.path.join(args.out, f'{args.phase}_{index:06d}.png')
        picture.save(path)
        written.append(path)
    print(f'{len(written)} pictures in {args.out}')
    return written


if __name__ == '__main__':
    # So that a checkout works without installing it.
    sys.path.insert(
        0, os.path.abspath(os.path.join(os.path.dirname(__file__), '../..')))
    from fma_vision.engine import run_tool
    run_tool(lambda: browse(parse_args()))
