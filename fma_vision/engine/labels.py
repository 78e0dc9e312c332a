"""Mistakes in labels and files, found before the first iteration."""
import os
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set

import numpy as np
from mmengine.dist import get_dist_info
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from PIL import Image
from torch import nn

from .classes import find_head
from .config import UserError, datasets_of
from .errors import one_line

CHOICES = ('sample', 'all', 'none')
# A sample ends at the first of these.
SAMPLE, SECONDS = 1000, 2.
# Between lines that say how far it is, and how many mistakes the log names.
PAUSE, NAMED = 5., 20
# A head without a setting of its own, as the hosts have it.
IGNORED = 255


class Mistake(Exception):
    """What is wrong with one sample: a sentence that begins with its file."""


@dataclass
class Rule:
    """What labels are allowed.

    Attributes:
        setting (str): Where the model says how many classes it has.
        count (int, optional): Labels are below it; None: not known.
        ignored (int): Label of what belongs to no class.
    """
    setting: str
    count: Optional[int]
    ignored: int

    @classmethod
    def of(cls, model: nn.Module, dataset: Any) -> 'Rule':
        """The rule of a model's head, else of the data's classes."""
        name, head = find_head(model) or ('head', None)
        count = getattr(head, 'num_classes', None)
        if not isinstance(count, int):
            classes = (getattr(dataset, 'metainfo', None) or {}).get('classes')
            count = len(classes) if classes else None
        elif getattr(head, 'out_channels', None) == 1:
            count = 2  # one logit tells two classes apart
        ignored = getattr(head, 'ignore_index', None)
        return cls(f'model.{name}.num_classes', count,
                   IGNORED if ignored is None else ignored)

    def beyond(self, values: np.ndarray) -> np.ndarray:
        """Those of the values that are no class."""
        if self.count is None:
            return values[:0]
        return values[((values < 0) | (values >= self.count))
                      & (values != self.ignored)]

    def __str__(self) -> str:
        return f'0 to {self.count - 1}, and {self.ignored} for no class'


@dataclass
class Seen:
    """What was found in the masks of a set.

    Attributes:
        files (list[str]): Those read without a mistake.
        values (set[int]): Labels in them, as the model gets them.
    """
    files: List[str] = field(default_factory=list)
    values: Set[int] = field(default_factory=set)


def check_samples(model: nn.Module,
                  dataset: Any,
                  name: str,
                  how: str = 'sample') -> None:
    """Refuse a set whose files or labels a model cannot be trained on.

    Images and labels are read as the pipeline reads them; what follows in
    the pipeline is not run. Of several processes each reads its share.

    Args:
        model (nn.Module): Its head says which labels are classes.
        dataset (Any): The built dataset; wrappers are looked through.
        name (str): Of the dataset, for messages.
        how (str): One of ``CHOICES``: a sample spread over the set and
            bounded in number and time, every file, or none.

    Raises:
        UserError: Names a file, what it holds, and the setting to change.
    """
    if how == 'none':
        return
    parts = list(parts_of(dataset))
    for part in parts:
        if len(part) == 0:
            raise UserError(_no_sample(part, name))
        _check_folders(part, name)
        seconds = SECONDS / len(parts) if how == 'sample' else float('inf')
        _check_part(part, Rule.of(model, part), name, how, seconds)


@contextmanager
def explaining_labels() -> Iterator[None]:
    """Say in one line what a label beyond the classes does to a loss.

    Raises:
        UserError: Instead of the loss's error.
    """
    try:
        yield
    except IndexError as error:
        if not str(error).startswith('Target '):
            raise
        raise UserError(
            f'a label is beyond the classes of the model ({error}): '
            '--check-data all names the file') from error


def parts_of(dataset: Any) -> Iterator[Any]:
    """The datasets inside wrappers that repeat, join or choose."""
    inner = getattr(dataset, 'datasets', None) or \
        [getattr(dataset, 'dataset', None)]
    if hasattr(inner[0], '__getitem__') and not isinstance(inner[0], str):
        for part in inner:
            yield from parts_of(part)
    else:
        yield dataset


def _order(total: int, how: str) -> np.ndarray:
    """Numbers of the samples to read, those of this process."""
    order = np.arange(total)
    if how == 'sample':
        chosen = np.linspace(0, total - 1, min(total, SAMPLE)).round()
        # In an order that is spread over the set wherever time cuts it.
        order = np.random.default_rng(0).permutation(chosen.astype(int))
    rank, world = get_dist_info()
    return order[rank::world]


def _check_part(part: Any, rule: Rule, name: str, how: str,
                seconds: float) -> None:
    order, seen, mistakes = _order(len(part), how), Seen(), []
    started = told = time.monotonic()
    done = 0
    for index in map(int, order):
        now = time.monotonic()
        if done and now - started > seconds:
            break
        if now - told > PAUSE:
            told = now
            print_log(f'{name}: {done} of {len(order)} samples checked',
                      'current')
        try:
            _check_sample(part, index, rule, seen)
        except Mistake as mistake:
            mistakes.append(str(mistake))
            if 1 < len(mistakes) <= NAMED:
                print_log(f'also {mistake}', 'current')
        done += 1
    looked = f'{done} of {len(part)} samples of {name}'
    if mistakes:
        raise UserError(
            f'{mistakes[0]} ({len(mistakes)} mistakes in {looked})')
    _check_values(part, rule, seen, looked)
    print_log(f'{looked} checked', 'current')


# ----------------------------------------------------------- one sample


def _check_sample(part: Any, index: int, rule: Rule, seen: Seen) -> None:
    sample = _load(part, index)
    if sample.get('gt_seg_map') is not None:
        _check_mask(sample, rule, seen)
    label = sample.get('gt_label', sample.get('label'))
    if label is not None:
        _check_label(sample, np.atleast_1d(label), part, index, rule)


def _load(part: Any, index: int) -> Dict[str, Any]:
    """A sample as the first steps of the pipeline load it."""
    pipeline = getattr(part, 'pipeline', None)
    if not getattr(pipeline, 'transforms', None):
        return _read(part, index)
    sample = part.get_data_info(index)
    for step in _loading_steps(pipeline.transforms):
        kind = 'seg_map' if 'Annotation' in type(step).__name__ else 'img'
        try:
            sample = step(sample)
        except Exception as error:  # whatever a decoder raises
            raise _unreadable(part, index, sample, kind, error) from error
        if kind == 'img':
            _check_end(sample)
    return sample


def _read(part: Any, index: int) -> Dict[str, Any]:
    """A sample of a dataset that has no pipeline."""
    try:
        sample = part[index]
    except Exception as error:
        source = getattr(part, 'source', type(part).__name__)
        raise Mistake(f'{source}: sample {index} cannot be read: '
                      f'{one_line(error)}') from error
    return sample if isinstance(sample, dict) else {}


def _loading_steps(steps: Iterable) -> Iterator:
    """The steps that load, those of test-time augmentation once."""
    for step in steps:
        if type(step).__name__.startswith('Load'):
            yield step
        for inner in getattr(step, 'subroutines', ())[:1]:
            yield from _loading_steps(inner.transforms)


def _unreadable(part: Any, index: int, sample: dict, kind: str,
                error: Exception) -> Mistake:
    """Why a file could not be loaded."""
    what, suffix = dict(
        img=('image', 'img_suffix'), seg_map=('label', 'seg_map_suffix'))[kind]
    key = f'{kind}_path'
    path = sample.get(key)
    if path is None:
        return Mistake(f'{type(part).__name__}: sample {index} has no {what}: '
                       f'data_prefix.{key} must name the folder')
    if '://' in str(path) or Path(path).is_file():
        return Mistake(f'{path}: the {what} cannot be read '
                       f'({one_line(error, 150)})')
    of = f' for {sample["img_path"]}' if kind == 'seg_map' else ''
    reason = f'data_prefix.{key} decides where'
    if hasattr(part, suffix):
        reason = (f'{suffix} is {getattr(part, suffix)!r}, '
                  f'{_suffixes(Path(path).parent)}')
    return Mistake(f'{path}: no such {what}{of}: {reason}')


def _suffixes(folder: Path) -> str:
    """How the files of a folder end."""
    if not folder.is_dir():
        return f'and there is no folder {folder} (see data_prefix)'
    found = Counter(
        Path(entry.name).suffix for entry in os.scandir(folder)
        if entry.is_file())
    names = ', '.join(repr(suffix) for suffix, _ in found.most_common(4))
    return f'the files in {folder} end with {names or "nothing"}'


def _check_end(sample: dict) -> None:
    """Refuse a JPEG file that was cut off: OpenCV makes the rest grey."""
    path = sample.get('img_path') or ''
    if not str(path).lower().endswith(('.jpg', '.jpeg')) or \
            not os.path.isfile(path):
        return
    try:
        with Image.open(path) as image:
            image.draft('L', (1, 1))  # an eighth of the pixels
            image.load()
    except Image.DecompressionBombError:
        pass
    except (OSError, SyntaxError, ValueError) as error:
        raise Mistake(f'{path}: the image cannot be read '
                      f'({one_line(error, 150)})') from error


def _check_label(sample: dict, label: np.ndarray, part: Any, index: int,
                 rule: Rule) -> None:
    """Refuse a class that the model has not."""
    if rule.count is None or label.dtype.kind not in 'iu':
        return
    beyond = label[(label < 0) | (label >= rule.count)]
    if beyond.size:
        source = sample.get('img_path') or \
            f'{getattr(part, "source", type(part).__name__)}, sample {index}'
        raise Mistake(
            f'{source}: class label {_listed(beyond)} found, {rule.setting} '
            f'is {rule.count}, which allows 0 to {rule.count - 1}: set it and '
            'the classes of the dataset to the number that there are')


def _check_mask(sample: dict, rule: Rule, seen: Seen) -> None:
    """Refuse a mask that is no map of classes of its image's size."""
    mask = np.asarray(sample['gt_seg_map'])
    path = str(sample.get('seg_map_path') or sample.get('img_path'))
    if mask.ndim == 3 and mask.shape[2] <= 4:
        raise Mistake(
            f'{path}: the label is a colour picture of shape {mask.shape}; '
            'allowed is one channel that holds the number of the class: '
            'seg_map_suffix and data_prefix.seg_map_path must lead to such '
            'files')
    image = sample.get('img')
    if image is not None and image.shape[:2] != mask.shape[:2]:
        raise Mistake(
            f'{path}: the label is {mask.shape[0]} x {mask.shape[1]}, its '
            f'image {sample.get("img_path")} {image.shape[0]} x '
            f'{image.shape[1]} pixels; both must be as large: img_suffix and '
            'seg_map_suffix decide what belongs together')
    if mask.dtype == np.uint8:
        _check_depth(path)
    values = np.unique(mask)
    if rule.beyond(values).size:
        raise Mistake(_labels_beyond(sample, path, values, rule))
    seen.files.append(path)
    seen.values.update(values.tolist())


def _check_depth(path: str) -> None:
    """Refuse numbers that the host's loader cuts to eight bits."""
    try:
        with Image.open(path) as image:
            if image.mode[0] not in 'IF':  # 16 bits or more
                return
            found = np.unique(np.asarray(image))
    except (OSError, SyntaxError, ValueError):
        return  # no file that Pillow reads: the loader is another one
    lost = found[found != found.astype(np.uint8)]
    if lost.size:
        raise Mistake(
            f'{path}: label values {_listed(found)} found, of which the '
            f'loader cannot keep {_listed(lost)}: allowed are whole numbers '
            'from 0 to 255, and seg_map_suffix must lead to such files')


def _labels_beyond(sample: dict, path: str, values: np.ndarray,
                   rule: Rule) -> str:
    """What is wrong with labels beyond the classes, and what mends it."""
    reduced, found = sample.get('reduce_zero_label'), _file_values(path)
    if found is None:
        found = values
    mend = (f'{rule.setting} and metainfo.classes must count all classes, '
            "reduce_zero_label=True is for files whose 0 is no class, and the "
            "head's ignore_index for another number that is none")
    if path.lower().endswith(('.jpg', '.jpeg')):
        mend = ('JPEG does not keep numbers: save labels as PNG, which '
                'seg_map_suffix must name')
    elif reduced:
        mend = (f'{rule.setting} and metainfo.classes must count all classes, '
                'reduce_zero_label=False is for files whose 0 is a class')
    taken = ', less 1 by reduce_zero_label' if reduced else ''
    return (f'{path}: label values {_listed(found)} found{taken}, '
            f'{rule.setting} is {rule.count}, which allows {rule}: {mend}')


# -------------------------------------------------------------- the set


def _check_values(part: Any, rule: Rule, seen: Seen, looked: str) -> None:
    """Refuse masks that are right one by one and teach nothing together."""
    classes = seen.values - {rule.ignored}
    if not seen.files or len(classes) > 1 or rule.ignored not in seen.values:
        return
    path = seen.files[0]
    found = _file_values(path)
    values = _listed(np.array(sorted(seen.values)) if found is None else found)
    if not classes:
        raise UserError(
            f'{path}: label values {values} found, and in all labels of '
            f'{looked} every pixel is ignored: see reduce_zero_label '
            f'(here {getattr(part, "reduce_zero_label", False)}), which makes '
            f"0 to 255, and the head's ignore_index (here {rule.ignored})")
    binary = found is not None and set(found.tolist()) <= {0, 255}
    if binary and rule.ignored == 255 and (rule.count or 0) > 1:
        raise UserError(
            f'{path}: label values {values} found, nothing but 0 and 255 in '
            f'all labels of {looked}, and 255 is ignored (ignore_index): '
            'write the second class as 1, or map it in get_label_map of the '
            'dataset; --check-data none trains on one class')


def _check_folders(part: Any, name: str) -> None:
    """Refuse class folders without an image."""
    folders = getattr(part, 'folder_to_idx', None) or ()
    root = Path(getattr(part, 'img_prefix', None) or '')
    for folder in folders:
        if (root / folder).is_dir() and not any(
                part.is_valid_file(path.name)
                for path in (root / folder).rglob('*')):
            raise UserError(
                f'{name}: class folder {root / folder} holds no image; '
                f'{_suffixes(root / folder)}, extensions allows '
                f'{", ".join(sorted(part.extensions))}')


def _no_sample(part: Any, name: str) -> str:
    """Why a dataset is empty."""
    folder = (getattr(part, 'data_prefix', None) or {}).get('img_path')
    suffix = getattr(part, 'img_suffix', None)
    if folder and suffix and not getattr(part, 'ann_file', ''):
        return (f'{name}: no image *{suffix} in {folder}: img_suffix is '
                f'{suffix!r}, {_suffixes(Path(folder))}')
    return (f'{name}: {type(part).__name__} holds no sample: data_root, '
            'data_prefix and ann_file say where they are')


def explain_empty(config: Any, name: str) -> None:
    """Say why a set cannot be built: the host fails on empty ones.

    Args:
        config (Any): Of the dataloader or dataset.
        name (str): Of the dataset, for the message.

    Raises:
        UserError: It has no sample; names the folder and the setting.
    """
    for node in datasets_of(config):
        part = DATASETS.build(dict(node, lazy_init=True))
        if not part.load_data_list():
            raise UserError(_no_sample(part, name))


# -------------------------------------------------------------- helpers


def _file_values(path: str) -> Optional[np.ndarray]:
    """Numbers in a label file before they are mapped, None if not known."""
    try:
        with Image.open(path) as image:
            return np.unique(np.asarray(image))
    except (OSError, SyntaxError, ValueError):
        return None


def _listed(values: np.ndarray, most: int = 10) -> str:
    """Some numbers for a message."""
    shown = ', '.join(f'{value:g}' for value in values[:most].astype(float))
    if len(values) <= most:
        return shown
    return f'{shown}, ... {values[-1]:g} ({len(values)} of them)'
