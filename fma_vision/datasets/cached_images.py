"""Small image sets decoded once, and read through a memory map.

Decoding small JPEG files costs more than all that a small model's input
pipeline does besides. Here the decoded images of a list lie one after the
other in one file beside the data; processes share its pages, and a run that
finds it starts at once.
"""
import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, List, Optional, Sequence

import cv2
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine.logging import print_log

from fma_vision.engine.errors import one_line
from fma_vision.engine.files import whole_file, write_bytes
from fma_vision.registry import SCOPE, TRANSFORMS

FOLDER = 'cache'
# What a sample holds: the file, the place of its first byte, and the shape.
KEY = 'cached_image'


def decode(path: str) -> np.ndarray:
    """A file's image as the host reads it: uint8 ``[H, W, 3]``, BGR.

    Raises:
        ValueError: The file holds no image.
    """
    try:
        return LoadImageFromFile()(dict(img_path=path))['img']
    except (AssertionError, cv2.error) as error:
        raise ValueError(f'{path} holds no image: {one_line(error)}') \
            from error


def _name(paths: Sequence[str], root: Path) -> str:
    """A name that changes with the files, and with what decodes them."""
    digest = hashlib.sha256(cv2.__version__.encode())
    for path in paths:
        state = os.stat(path)
        digest.update(f'{os.path.relpath(path, root)}\0{state.st_size}\0'
                      f'{state.st_mtime_ns}\n'.encode())
    return digest.hexdigest()[:16]


def _build(paths: Sequence[str], target: Path) -> np.ndarray:
    """Decode into ``target``, which appears when it is whole.

    Args:
        paths (sequence[str]): Image files.
        target (Path): The file of pixels.

    Returns:
        ndarray: Shapes ``[N, 3]`` of the images.
    """
    shapes = np.empty((len(paths), 3), np.int64)
    with whole_file(target) as file:
        for i, path in enumerate(paths):
            image = decode(path)
            shapes[i] = image.shape
            file.write(np.ascontiguousarray(image).data)
    return shapes


def _read_shapes(pixels: Path, index: Path,
                 count: int) -> Optional[np.ndarray]:
    """The shapes of a cache's images, None if it is not there and whole."""
    try:
        content = np.frombuffer(index.read_bytes(), np.int64)
        shapes = content.reshape(-1, 3)
        size = pixels.stat().st_size
    except (FileNotFoundError, ValueError):
        return None
    whole = len(shapes) == count and size == shapes.prod(1).sum()
    return shapes if whole else None


def cache_images(samples: List[dict], root: str) -> None:
    """Let samples point to decoded images, made if not there and whole.

    Several processes may do so at once: each writes a file of its own and
    renames it when whole. Where nothing can be written, the samples stay
    as they are and are decoded from their files.

    Args:
        samples (list[dict]): With ``img_path`` each; get ``cached_image``
            for :class:`LoadCachedImage`.
        root (str): The data set's folder; the pixels go to ``cache`` in it.
    """
    folder = Path(root) / FOLDER
    paths = [sample['img_path'] for sample in samples]
    name = _name(paths, Path(root))
    pixels, index = folder / f'{name}.bin', folder / f'{name}.shapes'
    shapes = _read_shapes(pixels, index, len(paths))
    if shapes is None:
        print_log(f'Decoding {len(paths)} images into {folder}', 'current')
        try:
            shapes = _build(paths, pixels)
            write_bytes(index, shapes.tobytes())
        except OSError as error:
            print_log(f'No cache of decoded images: {error}', 'current')
            return
    ends = shapes.prod(1).cumsum()
    for sample, shape, end in zip(samples, shapes.tolist(), ends.tolist()):
        size = shape[0] * shape[1] * shape[2]
        sample[KEY] = (str(pixels), end - size, tuple(shape))


def read_cached(pipeline: Sequence[Any]) -> List[Any]:
    """Let the steps that read whole images as they are ask the cache first.

    Configs name the host's ``LoadImageFromFile``, which its inferencers look
    for to hand over paths and arrays instead.

    Args:
        pipeline (sequence[dict]): A set's transforms.

    Returns:
        list[dict]: The same with :class:`LoadCachedImage`, where the step has
        no settings that would read something else.
    """

    def plain(step: Any) -> bool:
        return (isinstance(step, dict) and step['type'] == 'LoadImageFromFile'
                and set(step) <= {'type', 'to_float32'})

    return [
        dict(step, type=f'{SCOPE}.{LoadCachedImage.__name__}')
        if plain(step) else step for step in pipeline
    ]


@lru_cache(maxsize=8)
def _open(path: str) -> np.ndarray:
    return np.memmap(path, np.uint8, 'r')


@TRANSFORMS.register_module()
class LoadCachedImage(LoadImageFromFile):
    """Takes an image from the cache of its set, or else from its file.

    The cache holds what mmcv's ``LoadImageFromFile`` gives by default, so
    it has none of the settings that would read something else.

    Required keys: ``img_path``, and ``cached_image`` where
    :func:`cache_images` made it. Added keys: ``img``, ``img_shape`` and
    ``ori_shape``.

    Args:
        to_float32 (bool): Turn the pixels into float32.
    """

    def __init__(self, to_float32: bool = False) -> None:
        super().__init__(to_float32=to_float32)

    def transform(self, results: dict) -> Any:
        """Load the image.

        Args:
            results (dict): The sample.

        Returns:
            dict: The same with its image, a copy of its own.
        """
        if KEY not in results:
            return super().transform(results)
        path, start, shape = results.pop(KEY)
        size = shape[0] * shape[1] * shape[2]
        image = np.array(_open(path)[start:start + size]).reshape(shape)
        if self.to_float32:
            image = image.astype(np.float32)
        results.update(img=image, img_shape=shape[:2], ori_shape=shape[:2])
        return results
