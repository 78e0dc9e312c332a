"""Segments or classifies photographs and draws what the model saw.

Without arguments: a real photograph and the weights this project ships.

    python demo/image_demo.py
    python demo/image_demo.py street.jpg --out outputs/street.png
    python demo/image_demo.py 'photos/*.jpg' CONFIG CHECKPOINT --out outputs

Exit status: 0 if every image was done, 1 if some were not, 2 if none could
be started.
"""

import argparse
import glob
import math
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, List, Optional, Sequence, Tuple
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image, ImageOps, ImageShow

ROOT = Path(__file__).resolve().parents[1]
if __name__ == '__main__':  # so that a checkout works without installing it
    sys.path[:0] = [str(ROOT), str(ROOT / 'kernels')]

from fma_vision.engine.arguments import positive  # noqa: E402
from fma_vision.engine.arguments import positive_number  # noqa: E402
from fma_vision.engine.console import print_any_name  # noqa: E402
from fma_vision.engine.errors import one_line  # noqa: E402

# The model of a call without CONFIG and CHECKPOINT; change both together.
DEMO_CONFIG = ROOT / ('configs/street/fma-nano_fpn_1xb8-2k_street8-256x256.py')
DEMO_CHECKPOINT = ROOT / 'demo/weights/fma-nano_fpn_street8.pth'

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
TOP_CLASSES = 5
# Larger images are refused unless an option allows them, and segmented in
# tiles of this side: scores of all classes at all pixels would fill memory.
MAX_MEGAPIXELS, TILE = 179., 1024
DRAWN = 2**24  # pixels; of more, every few are drawn


class DemoError(Exception):
    """Something a user can put right; its text is the one line shown."""


@dataclass(frozen=True)
class Classes:
    """What a model's outputs are called, and the colours they are drawn in.

    Attributes:
        names: One name a class.
        colours: ``[len(names), 3]`` uint8 RGB.
    """
    names: Tuple[str, ...]
    colours: np.ndarray


# ---------------------------------------------------------------- inputs


def sample_photograph() -> Path:
    """The photograph of a palace that scikit-learn brings along."""
    try:
        import sklearn.datasets
    except ImportError:
        raise DemoError('without IMG the demo uses a photograph of '
                        'scikit-learn, which is not installed: give IMG, or '
                        "`pip install -e '.[demo]'`") from None
    return Path(sklearn.datasets.__file__).parent / 'images' / 'china.jpg'


def find_images(source: str) -> List[Path]:
    """Lists the image files that a file, folder or pattern names.

    Args:
        source: A path or a glob pattern; a file's own name wins over its
            reading as a pattern.

    Returns:
        Sorted paths, at least one.

    Raises:
        DemoError: If it is a URL, or names nothing.
    """
    if '://' in source:
        raise DemoError(f'IMG is a URL, {source!r}: download it and give '
                        'the file')
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [
            p for p in sorted(path.iterdir())
            if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
        ]
        if not found:
            raise DemoError(f'folder {source!r} holds no image '
                            f'({", ".join(IMAGE_SUFFIXES)})')
        return found
    found = [Path(p) for p in sorted(glob.glob(source, recursive=True))]
    found = [p for p in found if p.is_file()]
    if not found:
        raise DemoError(f'no image at {source!r}: it is neither a file, nor '
                        'a folder, nor a pattern that matches files')
    return found


def check_size(image: Image.Image, megapixels: float) -> None:
    """Refuses an image that is too large, before it is decoded.

    Raises:
        DemoError: Names its size and the option.
    """
    if image.width * image.height > megapixels * 1e6:
        raise DemoError(f'{image.width} x {image.height} pixels are more than '
                        f'--max-megapixels {megapixels:g} allows')


def read_image(path: Path, megapixels: float = MAX_MEGAPIXELS) -> np.ndarray:
    """Reads a photograph upright and whole.

    Args:
        path: The file.
        megapixels: The most that is read.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        DemoError: If it is missing, cut short, too large or no image at all.
    """
    try:
        with open_image(path) as image:
            check_size(image, megapixels)
            # Unlike OpenCV, this refuses a file that ends too early.
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith('I;16'):  # Pillow would clip to 255
                deep = np.asarray(image, np.uint16)
                return np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, 2)
            return np.array(image if image.mode ==
                            'RGB' else image.convert('RGB'))
    except FileNotFoundError:
        raise DemoError('no such file') from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DemoError('not a readable image '
                        f'({one_line(error, 100)})') from None


def open_image(path: Path) -> Image.Image:
    """Opens a file; how large it may be is not left to Pillow."""
    with patch.object(Image, 'MAX_IMAGE_PIXELS', None):
        return Image.open(path)


def visible(bands: np.ndarray, bgr: bool) -> np.ndarray:
    """Bands of any number and depth as a picture.

    Args:
        bands: ``[H, W]`` or ``[H, W, bands]``; of more than three the first
            three are shown.
        bgr: They are blue, green and red.

    Returns:
        ``[H, W, 3]`` uint8 RGB, from the darkest to the brightest hundredth.
    """
    bands = np.atleast_3d(bands)
    shown = np.repeat(bands[..., :1], 3, 2) if bands.shape[2] < 3 else \
        bands[..., 2::-1] if bgr else bands[..., :3]
    if shown.dtype == np.uint8:
        return shown
    low, high = np.nanpercentile(shown, (1, 99))
    shares = (shown - low) / max(high - low, 1e-12)
    return (255 * np.nan_to_num(shares).clip(0, 1)).astype(np.uint8)


def output_paths(images: Sequence[Path], out: str) -> List[Path]:
    """Where each picture goes: into a folder, or to the one file named."""
    target = Path(out)
    if target.suffix.lower() in IMAGE_SUFFIXES and not target.is_dir():
        if len(images) > 1:
            raise DemoError(f'--out {out!r} names one file, but IMG names '
                            f'{len(images)}: give a folder')
        return [target]
    if target.exists() and not target.is_dir():
        raise DemoError(f'--out {out!r} is a file without an image suffix')
    stems = [path.stem for path in images]
    # a.jpg and a.png must not overwrite each other's picture.
    names = [
        f'{p.stem}.png' if stems.count(p.stem) == 1 else f'{p.name}.png'
        for p in images
    ]
    if len(set(names)) < len(names):  # same name in several folders
        names = [f'{i:04d}_{name}' for i, name in enumerate(names)]
    return [target / name for name in names]


# ----------------------------------------------------------------- model


def load_config(path: Path) -> Any:
    """Reads a config that can be tested with.

    Raises:
        UserError: If it cannot be read or lacks a part.
    """
    from fma_vision.engine import UserError, load_config
    cfg = load_config(str(path))
    for key in ('model', 'test_dataloader'):
        if cfg.get(key) is None:
            raise UserError(f'config {str(path)!r} has no {key!r}')
    return cfg


def build_model(cfg: Any) -> Tuple[torch.nn.Module, str]:
    """Builds the model of a config, on one device and for inference.

    Returns:
        The model and its task, ``'segmentation'`` or ``'classification'``.

    Raises:
        UserError: If it cannot be built.
        DemoError: If it does another task.
    """
    from mmengine.registry import init_default_scope

    from fma_vision.engine.build import build_model
    scope = cfg.get('default_scope', 'mmseg')
    init_default_scope(scope)  # for the test pipeline as well
    model = build_model(cfg)
    if hasattr(model, 'decode_head'):
        return model, 'segmentation'
    if hasattr(model, 'head') and scope == 'mmpretrain':
        return model, 'classification'
    raise DemoError(f'the config\'s model, {type(model).__name__}, neither '
                    'segments nor classifies')


def count_classes(model: torch.nn.Module) -> int:
    """How many classes the model tells apart."""
    from fma_vision.engine import find_head
    _, head = find_head(model)
    count = getattr(head, 'num_classes', None)
    if not isinstance(count, int):
        raise DemoError(f'the class count of {type(head).__name__} is '
                        "unknown: it has no integer 'num_classes'")
    return count


def test_dataset(cfg: Any) -> Any:
    """The dataset dict a config tests on; of several, the first."""
    dataset = cfg.test_dataloader.get('dataset') or {}
    while dataset.get('datasets') or dataset.get('dataset'):
        part = (dataset.get('datasets') or [dataset.get('dataset')])[0]
        dataset = type(part)({'pipeline': dataset.get('pipeline'), **part})
    return dataset


def config_metainfo(cfg: Any) -> dict:
    """The class names a config states, itself or through its dataset."""
    from mmengine.registry import DATASETS
    dataset = test_dataset(cfg)
    # A name without scope is looked for where the config's scope says.
    with DATASETS.switch_scope_and_registry(None) as registry:
        registered = registry.get(str(dataset.get('type')))
    meta = dict(getattr(registered, 'METAINFO', None) or {})
    meta.update(dataset.get('metainfo') or {})
    if dataset.get('classes'):
        meta['classes'] = dataset.classes
    return meta


def name_classes(meta: dict, cfg: Any, count: int) -> Classes:
    """Finds a name and a colour for each class.

    Args:
        meta: The checkpoint's meta data, which is asked first.
        cfg: The config, asked next.
        count: How many classes the model has.

    Raises:
        DemoError: If neither names exactly ``count`` classes. Guessing a
            dataset from the count would print wrong names.
    """
    saved = {
        key.lower(): value
        for key, value in (meta.get('dataset_meta') or meta).items()
    }
    stated = config_metainfo(cfg)
    source = saved if saved.get('classes') else stated
    names = source.get('classes')
    if not isinstance(names, (list, tuple)) or len(names) != count:
        given = (f'{len(names)} names are known' if isinstance(
            names, (list, tuple)) else 'none is named')
        raise DemoError(
            f'the model has {count} classes, but {given}: state them in the '
            'config as test_dataloader.dataset.metainfo='
            'dict(classes=[...], palette=[...])')
    palette = source.get('palette') or stated.get('palette')
    if palette is None or len(palette) != count:
        palette = default_palette(count)
    return Classes(
        tuple(str(name) for name in names), np.array(palette, dtype=np.uint8))


def default_palette(count: int) -> np.ndarray:
    """Colours that stay apart: ``[count, 3]`` uint8 RGB."""
    import matplotlib
    hues = (np.arange(count) * 0.618034) % 1  # golden section steps
    colours = matplotlib.colormaps['hsv'](hues)[:, :3]
    return (colours * 215).astype(np.uint8)


class Predictor:
    """A model with its test pipeline: photograph in, prediction out.

    Args:
        config: Path of the config, which decides the task.
        checkpoint: Path of weights that match it.
        device: Where to run, e.g. ``'cpu'`` or ``'cuda:0'``.

    Raises:
        DemoError, UserError: If any of them cannot be used.
    """

    def __init__(self, config: Path, checkpoint: Path, device: str) -> None:
        from mmengine.dataset import Compose

        from fma_vision.engine import (check_weights, read_checkpoint,
                                       select_state_dict)
        from fma_vision.engine.build import input_channels
        for what, path in (('config', config), ('checkpoint', checkpoint)):
            if not path.is_file():
                raise DemoError(f'no {what} at {str(path)!r}')
        cfg = load_config(config)
        content = read_checkpoint(str(checkpoint))
        state = select_state_dict(content, str(checkpoint))
        model, self.task = build_model(cfg)
        check_weights(model, state, str(checkpoint))
        model.load_state_dict(state)
        meta = content.get('meta') if 'state_dict' in content else None
        self.classes = name_classes(meta or {}, cfg, count_classes(model))
        try:
            self.model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise DemoError(f'--device {device!r} cannot be used: '
                            f'{one_line(error, 120)}') from None
        # A statement of its own: some models return None from eval().
        self.model.eval()
        steps = list(test_dataset(cfg).get('pipeline') or [])
        loads = [s for s in steps if _is_loading(s) and 'Image' in s['type']]
        load = dict(loads[0]) if loads else {}
        # Files are read as BGR; datasets of arrays (CIFAR-10) hand out RGB.
        self.bgr = bool(load) and load.get('imdecode_backend') != 'tifffile'
        self.float32 = bool(load.get('to_float32'))
        self.channels = input_channels(cfg)
        # What is no photograph is read as the config reads it.
        self.loader = None
        if load.get('color_type') == 'unchanged' or \
                self.channels not in (1, 3):
            if not load:
                raise DemoError(f'the model takes {self.channels} channels, '
                                'and test_dataloader.dataset.pipeline has no '
                                'step that loads such images')
            self.loader = Compose([load])
        self.pipeline = Compose([s for s in steps if not _is_loading(s)])

    def read(self, path: Path, megapixels: float) -> np.ndarray:
        """Reads an image for this model.

        Args:
            path: The file.
            megapixels: The most that is read.

        Returns:
            ``[H, W, 3]`` uint8 RGB, or what the step of the config that
            loads images makes of another kind.

        Raises:
            DemoError: As :func:`read_image`, or it has other channels than
                the model takes.
        """
        if self.loader is None:
            return read_image(path, megapixels)
        try:
            with open_image(path) as image:
                check_size(image, megapixels)
        except (OSError, SyntaxError, ValueError):
            pass  # Pillow does not know every kind of TIFF
        try:
            image = self.loader(dict(img_path=str(path)))['img']
        except FileNotFoundError:
            raise DemoError('no such file') from None
        except Exception as error:  # whatever the decoders raise
            raise DemoError('not a readable image '
                            f'({one_line(error, 100)})') from None
        found = np.atleast_3d(image).shape[2]
        if found != self.channels:
            raise DemoError(f'the image has {found} channels, the model takes '
                            f'{self.channels} (model.backbone.in_channels)')
        return image

    def tiles(self, image: np.ndarray, tile: int) -> np.ndarray:
        """Segments an image piece by piece.

        Each tile is a photograph of its own to the model, and reaches over
        its neighbours, so that what is kept of it has surroundings.

        Args:
            image: As :meth:`read` gives it.
            tile: Side of a tile in pixels.

        Returns:
            ``[H, W]`` class indices.
        """
        height, width = image.shape[:2]
        most = max(len(self.classes.names), 255)  # 255 marks 'no class'
        found = np.empty((height, width), np.min_scalar_type(most))
        for top, row, bottom in pieces(height, tile):
            for left, column, right in pieces(width, tile):
                part = self(image[top:top + tile, left:left + tile])
                found[row:bottom,
                      column:right] = part[row - top:bottom - top,
                                           column - left:right - left]
            if sys.stderr.isatty():
                print(
                    f'\r{bottom / height:4.0%} of the tiles done',
                    end='\n' if bottom == height else '',
                    file=sys.stderr)
        return found

    @torch.inference_mode()
    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Predicts one image.

        Args:
            image: As :meth:`read` gives it.

        Returns:
            ``[H, W]`` class indices (segmentation) or ``[classes]``
            probabilities (classification).
        """
        data = image
        if self.loader is None:
            if self.channels == 1:
                grey = Image.fromarray(image).convert('L')
                data = np.asarray(grey)[..., None]
            elif self.bgr:
                data = image[..., ::-1]
            if self.float32:
                data = data.astype(np.float32)
        data = np.ascontiguousarray(data)
        size = data.shape[:2]
        sample = self.pipeline(dict(img=data, img_shape=size, ori_shape=size))
        batch = dict(
            inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        result = self.model.test_step(batch)[0]
        if self.task == 'segmentation':
            return result.pred_sem_seg.data[0].cpu().numpy()
        return result.pred_score.cpu().numpy()


def _is_loading(step: dict) -> bool:
    """Whether a pipeline step reads an image or annotations from a file."""
    return str(step.get('type')).rsplit('.', 1)[-1].startswith('Load')


def pieces(size: int, tile: int) -> Iterator[Tuple[int, int, int]]:
    """Cuts a side into tiles that overlap by a quarter.

    Args:
        size: Pixels of the side.
        tile: Pixels of a tile.

    Yields:
        Where a tile begins, and the range that is kept of it.
    """
    margin, edge = tile // 8, 0
    while edge < size:
        start = max(min(edge - margin, size - tile), 0)
        stop = size if start + tile >= size else start + tile - margin
        yield start, edge, stop
        edge = stop


# --------------------------------------------------------------- drawing


def summary(prediction: np.ndarray, classes: Classes) -> List[Tuple]:
    """The classes seen: (index, name, share or probability), largest first."""
    if prediction.ndim == 2:
        count = len(classes.names)
        # By rows: a whole image of eight-byte numbers is large.
        counts = sum(
            np.bincount(row, minlength=count)[:count] for row in prediction)
        shares = counts / max(prediction.size, 1)
        order = [i for i in np.argsort(-shares, kind='stable') if shares[i]]
    else:
        shares = prediction
        order = list(np.argsort(-shares, kind='stable')[:TOP_CLASSES])
    return [(int(i), classes.names[i], float(shares[i])) for i in order]


def overlay(image: np.ndarray, prediction: np.ndarray, classes: Classes,
            opacity: float) -> np.ndarray:
    """Paints each class over the photograph: ``[H, W, 3]`` uint8 RGB."""
    known = prediction < len(classes.names)  # 255 marks 'no class'
    paint = classes.colours[np.where(known, prediction, 0)]
    mixed = (1 - opacity) * image + opacity * paint
    return np.where(known[..., None], mixed, image).astype(np.uint8)


def draw(image: np.ndarray, prediction: np.ndarray, classes: Classes,
         opacity: float) -> Any:
    """Photograph and prediction side by side, with a legend.

    Returns:
        A matplotlib ``Figure`` that belongs to no window.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    height, width = image.shape[:2]
    aspect = height / width
    panel = float(np.clip(width / 100, 4.8, 9.6))  # inches at 100 dpi
    tall = float(np.clip(panel * aspect, 2.4, 12))
    figure = Figure(
        figsize=(2 * panel + 2.2, tall + 0.4), dpi=100, layout='constrained')
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    left.set_title('photograph', fontsize=10)
    left.axis('off')
    rows = summary(prediction, classes)
    if prediction.ndim == 2:
        right.imshow(overlay(image, prediction, classes, opacity))
        right.set_title('classes seen', fontsize=10)
        right.axis('off')
        handles = [
            Patch(
                facecolor=classes.colours[i] / 255,
                edgecolor='0.4',
                linewidth=0.5,
                label=f'{name}  {share:.1%}') for i, name, share in rows
        ]
        figure.legend(
            handles=handles,
            loc='outside right center',
            frameon=False,
            fontsize=10,
            title='share of pixels',
            title_fontsize=9)
    else:
        names = [name for _, name, _ in rows][::-1]
        values = [share for _, _, share in rows][::-1]
        bars = right.barh(names, values, color='#3b6ea5')
        right.bar_label(bars, [f'{v:.1%}' for v in values], padding=3)
        right.set_xlim(0, 1.15)
        right.set_xticks([0, 0.5, 1], ['0%', '50%', '100%'])
        right.set_title('likeliest classes', fontsize=10)
        right.spines[['top', 'right']].set_visible(False)
    return figure


def drawn(predictor: Predictor, image: np.ndarray,
          prediction: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """What a picture is drawn from: RGB, and classes of the same pixels."""
    step = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / DRAWN))
    image = image[::step, ::step]
    if prediction.ndim == 2:
        prediction = prediction[::step, ::step]
    if predictor.loader is not None:
        image = visible(image, predictor.bgr)
    return image, prediction


def show(path: Path) -> None:
    """Opens a finished picture in the viewer of the desktop."""
    with Image.open(path) as picture:
        if not ImageShow.show(picture, title=path.name):
            print('--show: no image viewer was found', file=sys.stderr)


# ------------------------------------------------------------------ main


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Segments or classifies photographs (the config decides '
        'which) and draws the result beside each.')
    parser.add_argument(
        'img',
        nargs='?',
        help='a file, a folder or a quoted glob; without it, a photograph '
        'that scikit-learn ships')
    parser.add_argument('config', nargs='?', help='default: the demo\'s own')
    parser.add_argument('checkpoint', nargs='?', help='weights for CONFIG')
    parser.add_argument(
        '--out',
        default='outputs/demo',
        help='a folder, or a file if it ends like an image (default: '
        '%(default)s)')
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to run (default here: %(default)s)')
    parser.add_argument(
        '--opacity',
        type=float,
        default=0.55,
        help='of the painted classes, 0 to 1 (default: %(default)s)')
    parser.add_argument(
        '--tile',
        type=positive,
        metavar='PIXELS',
        help='segment tiles of this side one by one, each as an image of its '
        f'own (default: {TILE} for images above {MAX_MEGAPIXELS:g} '
        'megapixels, else whole images)')
    parser.add_argument(
        '--max-megapixels',
        type=positive_number,
        default=MAX_MEGAPIXELS,
        help='refuse larger images (default: %(default)g)')
    parser.add_argument(
        '--show', action='store_true', help='also open each picture')
    args = parser.parse_args(argv)
    if not 0 <= args.opacity <= 1:
        parser.error(f'--opacity is {args.opacity}, must be in [0, 1]')
    if (args.config is None) != (args.checkpoint is None):
        parser.error('CONFIG and CHECKPOINT belong together: give both, or '
                     'neither for the demo\'s own model')
    return args


def prepare(args: argparse.Namespace) -> Tuple[Predictor, List[Path], List]:
    """Everything that must be right before the first image is tried."""
    try:
        # First, because it keeps two notices of the others off the console.
        import fma_vision.registry  # isort: skip  # noqa: F401
        import mmpretrain  # noqa: F401
        import mmseg  # noqa: F401
    except ImportError as error:
        raise DemoError(f'the demo needs more packages ({error}): '
                        "`pip install -e '.[demo]'`") from None
    images = find_images(args.img) if args.img else [sample_photograph()]
    targets = output_paths(images, args.out)
    config = Path(args.config) if args.config else DEMO_CONFIG
    checkpoint = Path(args.checkpoint) if args.config else DEMO_CHECKPOINT
    from fma_vision.engine import UserError
    try:
        return Predictor(config, checkpoint, args.device), images, targets
    except UserError as error:
        raise DemoError(str(error)) from None


def process(predictor: Predictor, path: Path, target: Path,
            args: argparse.Namespace) -> None:
    """Reads, predicts, draws and reports one image."""
    image = predictor.read(path, args.max_megapixels)
    tile = args.tile
    if tile is None and image.shape[0] * image.shape[1] > MAX_MEGAPIXELS * 1e6:
        tile = TILE
    start = time.perf_counter()
    try:
        # A classifier shrinks what it sees, and needs no tiles.
        prediction = predictor.tiles(image, tile) if tile is not None and \
            predictor.task == 'segmentation' else predictor(image)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise DemoError(f'prediction failed: {one_line(error)}') from None
    seconds = time.perf_counter() - start
    figure = draw(*drawn(predictor, image, prediction), predictor.classes,
                  args.opacity)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target)
    except OSError as error:
        raise DemoError(f'cannot write {str(target)!r}: '
                        f'{one_line(error)}') from None
    seen = ', '.join(f'{name} {share:.0%}' for _, name, share in summary(
        prediction, predictor.classes)[:TOP_CLASSES] if share >= 0.01)
    print(f'{path.name}: {seen} ({seconds:.1f} s) -> {target}', flush=True)
    if args.show:
        show(target)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    try:
        predictor, images, targets = prepare(args)
    except DemoError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    failed = 0
    for path, target in zip(images, targets):
        try:
            process(predictor, path, target, args)
        except DemoError as error:
            failed += 1
            print(f'error: {path}: {error}', file=sys.stderr, flush=True)
    if len(images) > 1:
        print(f'{len(images) - failed} of {len(images)} images done')
    return 1 if failed else 0


if __name__ == '__main__':
    warnings.simplefilter('ignore')  # notices of the host, not of the demo
    print_any_name()
    sys.exit(main())
