"""What the converters share: reading archives, checks, and safe writing.

A converter writes into a hidden folder beside its target and renames it at
the very end, so that the target is either complete or absent.
"""
import argparse
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence

import numpy as np
from PIL import Image

IGNORE = 255
IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')
# Official name of a part -> folder name of the host toolbox.
PARTS = ('training', 'validation')


class ConversionError(Exception):
    """The input is not what the converter needs; shown as one line."""


def base_parser(description: str, out: str) -> argparse.ArgumentParser:
    """The options of every converter.

    Args:
        description (str): One line about the data.
        out (str): Default target folder.

    Returns:
        ArgumentParser: With ``source``, ``--out``, ``--force`` and
        ``--partial``.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        'source',
        nargs='+',
        help='folder or archive (.tar, .tar.gz, .tar.xz, .tgz, .zip) with '
        'the official or the packed layout; several archives are unpacked '
        'over each other')
    parser.add_argument('--out', default=out, help=f'target (default: {out})')
    parser.add_argument(
        '--force', action='store_true', help='replace an existing target')
    parser.add_argument(
        '--partial',
        action='store_true',
        help='accept fewer images than the whole set has')
    return parser


def run(main: Callable[[], None]) -> None:
    """Run a converter; a wrong input is one line on standard error.

    Args:
        main (callable): Takes nothing.
    """
    # A name that the console cannot show is printed with escapes.
    sys.stdout.reconfigure(errors='backslashreplace')
    try:
        main()
    except ConversionError as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        sys.exit(f'error: {type(error).__name__}: {error}')


@contextmanager
def opened(sources: Sequence[str]) -> Iterator[Path]:
    """Give the input as a folder.

    Args:
        sources (sequence[str]): One folder, or archives.

    Yields:
        Path: The folder, or a temporary one with the archives' content.

    Raises:
        ConversionError: A source is missing, broken or of an unknown kind.
    """
    for source in sources:
        if not os.path.exists(source):
            raise ConversionError(f'no file or folder {source}')
    if len(sources) == 1 and os.path.isdir(sources[0]):
        yield Path(sources[0])
        return
    with tempfile.TemporaryDirectory(prefix='fma-convert-') as folder:
        for source in sources:
            if os.path.isdir(source):
                raise ConversionError(
                    f'{source} is a folder; several sources must be archives')
            _unpack(source, Path(folder))
        yield Path(folder)


def _unpack(source: str, folder: Path) -> None:
    try:
        if tarfile.is_tarfile(source):
            with tarfile.open(source) as archive:
                # Refuses links and paths that lead out of the folder.
                archive.extractall(folder, filter='data')
        elif zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                # extractall drops leading slashes and '..'.
                archive.extractall(folder)
        else:
            raise ConversionError(
                f'{source} is neither a folder nor a tar or zip archive')
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ConversionError(f'{source} is a broken archive: {error}')
    except Exception as error:
        # lzma and zlib have their own exceptions.
        if isinstance(error, (ConversionError, OSError)):
            raise
        raise ConversionError(f'{source} cannot be unpacked: {error}')


def find_layout(folder: Path,
                layouts: Dict[str, Sequence[str]],
                depth: int = 3) -> tuple:
    """Find a known layout in a folder or a few levels below.

    Args:
        folder (Path): Where to look.
        layouts (dict): Name to relative paths that must all exist.
        depth (int): Levels below ``folder`` to search.

    Returns:
        tuple[str, Path]: Name of the layout and its root.

    Raises:
        ConversionError: None is there; says what was looked for.
    """
    level = [folder]
    for _ in range(depth + 1):
        for root in level:
            for name, needed in layouts.items():
                if all((root / path).exists() for path in needed):
                    return name, root
        level = sorted(p for root in level for p in root.iterdir()
                       if p.is_dir())[:1000]
    wanted = '; or '.join(f'{name}: {", ".join(needed)}'
                          for name, needed in layouts.items())
    raise ConversionError(f'{folder} has no known layout; looked for {wanted}')


@contextmanager
def staged(out: str, force: bool = False) -> Iterator[Path]:
    """Write a folder whole or not at all.

    Args:
        out (str): The target.
        force (bool): Replace a target that exists.

    Yields:
        Path: A hidden folder beside the target; it becomes the target when
        the block ends and vanishes when the block raises.

    Raises:
        ConversionError: The target exists and ``force`` is not given.
    """
    target = Path(out)
    if target.exists() and not force:
        if not target.is_dir() or any(target.iterdir()):
            raise ConversionError(f'{out} exists; --force replaces it')
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(
        tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent))
    try:
        yield staging
        # mkdtemp makes private folders; data should be readable as usual.
        staging.chmod(0o755)
        with ExitStack() as stack:
            if target.exists():
                old = Path(
                    tempfile.mkdtemp(
                        prefix=f'.{target.name}.old.', dir=target.parent))
                stack.callback(shutil.rmtree, old, ignore_errors=True)
                os.rename(target, old / 'data')
            os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def images_in(folder: Path) -> Dict[str, Path]:
    """The images of a folder.

    Args:
        folder (Path): The folder.

    Returns:
        dict[str, Path]: File by stem, sorted.

    Raises:
        ConversionError: There are none, or two share a stem.
    """
    if not folder.is_dir():
        raise ConversionError(f'no folder {folder}')
    found: Dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            if path.stem in found:
                raise ConversionError(f'{path} and {found[path.stem].name} '
                                      'are the same sample twice')
            found[path.stem] = path
    if not found:
        raise ConversionError(f'no image in {folder}')
    return found


def check_count(what: str, found: int, expected: int, partial: bool) -> None:
    """Compare a number of files with the whole set's.

    Args:
        what (str): For the message.
        found (int): Number found.
        expected (int): Number of the whole set.
        partial (bool): Accept fewer.

    Raises:
        ConversionError: Too few without ``partial``, or too many.
    """
    if found > expected or (found < expected and not partial):
        hint = '' if found > expected else '; --partial accepts fewer'
        raise ConversionError(f'{what}: {found} found, the whole set has '
                              f'{expected}{hint}')


def read_image(path: Path) -> Image.Image:
    """Decode an image completely.

    Args:
        path (Path): The file.

    Returns:
        Image: Loaded.

    Raises:
        ConversionError: It cannot be decoded.
    """
    try:
        image = Image.open(path)
        image.load()
        return image
    except Exception as error:
        raise ConversionError(f'{path} cannot be decoded: {error}')


def index_mask(path: Path,
               num_classes: int,
               mapping: Optional[Dict[int, int]] = None) -> np.ndarray:
    """Read and check a mask of class indices.

    Args:
        path (Path): 8-bit grey or palette PNG.
        num_classes (int): Labels 0 to ``num_classes - 1`` and 255 may occur
            in the result.
        mapping (dict, optional): File value to label; other values stay.

    Returns:
        ndarray: uint8 ``[H, W]``.

    Raises:
        ConversionError: Another kind of image, or a value out of range.
    """
    image = read_image(path)
    if image.mode not in ('L', 'P'):
        raise ConversionError(f'{path} has mode {image.mode}; masks of class '
                              'indices have mode L or P')
    mask = np.array(image)
    for old, new in (mapping or {}).items():
        mask[mask == old] = new
    values = np.unique(mask)
    wrong = values[(values >= num_classes) & (values != IGNORE)]
    if wrong.size:
        raise ConversionError(f'{path} holds label {wrong[0]}; allowed are 0 '
                              f'to {num_classes - 1} and {IGNORE}')
    return mask


def colour_mask(path: Path, colours: Dict[tuple, int]) -> np.ndarray:
    """Turn a mask of colours into class indices.

    Args:
        path (Path): RGB image.
        colours (dict): (R, G, B) to label.

    Returns:
        ndarray: uint8 ``[H, W]``.

    Raises:
        ConversionError: A colour is in no class.
    """
    rgb = np.asarray(read_image(path).convert('RGB')).astype(np.uint32)
    code = (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]
    mask = np.zeros(code.shape, np.uint8)
    known = np.zeros(code.shape, bool)
    for (red, green, blue), label in colours.items():
        here = code == (red << 16 | green << 8 | blue)
        mask[here] = label
        known |= here
    if not known.all():
        bad = rgb[~known][0]
        raise ConversionError(f'{path} holds colour {tuple(bad.tolist())}, '
                              'which is no class of this set')
    return mask


def write_pair(staging: Path, part: str, stem: str, image: Path,
               mask: np.ndarray) -> None:
    """Write a photograph and its mask in the host's layout.

    Args:
        staging (Path): Root of the layout.
        part (str): 'training' or 'validation'.
        stem (str): Name of the sample.
        image (Path): JPEG files are copied, others become JPEG.
        mask (ndarray): uint8 ``[H, W]``.

    Raises:
        ConversionError: Photograph and mask differ in size.
    """
    picture = read_image(image)
    if picture.size != mask.shape[::-1]:
        raise ConversionError(
            f'{image} is {picture.size[0]} x {picture.size[1]}, its mask '
            f'{mask.shape[1]} x {mask.shape[0]}')
    images = staging / 'images' / part
    masks = staging / 'annotations' / part
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    if image.suffix.lower() in ('.jpg', '.jpeg'):
        shutil.copyfile(image, images / f'{stem}.jpg')
    else:
        picture.convert('RGB').save(images / f'{stem}.jpg', quality=95)
    Image.fromarray(mask).save(masks / f'{stem}.png', optimize=True)


def match_stems(images: Dict[str, Path], masks: Dict[str, Path],
                what: str) -> List[str]:
    """The samples of two folders.

    Args:
        images (dict): From :func:`images_in`.
        masks (dict): From :func:`images_in`.
        what (str): For the message.

    Returns:
        list[str]: Stems, sorted.

    Raises:
        ConversionError: An image has no mask or a mask no image.
    """
    for name, extra in (('no mask', set(images) - set(masks)),
                        ('no image', set(masks) - set(images))):
        if extra:
            raise ConversionError(f'{what}: {len(extra)} samples have {name},'
                                  f' the first is {min(extra)}')
    return sorted(images)


def copy_packed(root: Path, staging: Path, counts: Dict[str, int],
                num_classes: int, partial: bool) -> Dict[str, int]:
    """Check and copy ``{images,annotations}/{training,validation}``.

    Args:
        root (Path): Root of that layout.
        staging (Path): Where to write.
        counts (dict): Samples of the whole set by part.
        num_classes (int): Labels in the masks, without 255.
        partial (bool): Accept fewer samples, or one part only.

    Returns:
        dict[str, int]: Samples written by part.

    Raises:
        ConversionError: See the functions above.
    """
    done = {}
    for part, expected in counts.items():
        if partial and not (root / 'images' / part).is_dir():
            continue
        images = images_in(root / 'images' / part)
        masks = images_in(root / 'annotations' / part)
        stems = match_stems(images, masks, str(root / 'images' / part))
        check_count(f'{root / "images" / part}', len(stems), expected, partial)
        for stem in stems:
            write_pair(staging, part, stem, images[stem],
                       index_mask(masks[stem], num_classes))
        done[part] = len(stems)
    return done


def report(out: str, done: Dict[str, int]) -> None:
    """Print what was written.

    Args:
        out (str): The target.
        done (dict[str, int]): Number of samples by part.
    """
    parts = ', '.join(f'{number} {part}' for part, number in done.items())
    print(f'{out}: {parts}')
