"""Checks and copies sets kept as one folder of images per class."""
import shutil
from pathlib import Path
from typing import Dict, Sequence

from common import ConversionError, check_count, images_in, read_image


def copy_class_folders(root: Path, staging: Path, folders: Sequence[str],
                       counts: Dict[str, int], size: int,
                       partial: bool) -> Dict[str, int]:
    """Check and copy ``<split>/<folder>/<image>``.

    Args:
        root (Path): Holds the splits.
        staging (Path): Where to write.
        folders (sequence[str]): One folder per class, in every split.
        counts (dict): Images per class of the whole set, by split.
        size (int): Height and width of every image.
        partial (bool): Accept fewer images per class.

    Returns:
        dict[str, int]: Images written by split.

    Raises:
        ConversionError: A folder is missing or unknown, or an image is
            broken or of another size.
    """
    done = {}
    for split, per_class in counts.items():
        there = {p.name for p in (root / split).iterdir() if p.is_dir()}
        if there != set(folders):
            raise ConversionError(
                f'{root / split} must hold one folder per class; missing: '
                f'{sorted(set(folders) - there)[:5]}, not a class: '
                f'{sorted(there - set(folders))[:5]}')
        done[split] = 0
        for folder in folders:
            images = images_in(root / split / folder)
            check_count(f'{root / split / folder}', len(images), per_class,
                        partial)
            target = staging / split / folder
            target.mkdir(parents=True)
            for path in images.values():
                check_size(path, size)
                shutil.copyfile(path, target / path.name)
            done[split] += len(images)
    return done


def check_size(path: Path, size: int) -> None:
    """Decode an image and check its size.

    Args:
        path (Path): The file.
        size (int): Expected height and width.

    Raises:
        ConversionError: Broken, or another size.
    """
    image = read_image(path)
    if image.size != (size, size):
        raise ConversionError(f'{path} is {image.size[0]} x {image.size[1]}, '
                              f'expected {size} x {size}')
