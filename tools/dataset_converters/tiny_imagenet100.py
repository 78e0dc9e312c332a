"""The first 100 classes of Tiny ImageNet: 50,000 + 5,000 of 64 x 64.

Official layout: ``tiny-imagenet-200`` with ``wnids.txt``, ``words.txt``,
``train/<wnid>/images`` and ``val/images`` with ``val/val_annotations.txt``;
the first 100 WordNet ids in alphabetical order are taken. The packed layout
``{train,val}/<wnid>`` with ``classes.txt`` may come in several archives.
"""
import shutil
from pathlib import Path
from typing import Dict, List

from class_folders import check_size, copy_class_folders
from common import (ConversionError, base_parser, check_count, find_layout,
                    images_in, opened, report, run, staged)

NUM_CLASSES, SIZE = 100, 64
PER_CLASS = dict(train=500, val=50)
LAYOUTS = {
    'packed': ('train', 'val', 'classes.txt'),
    'official': ('wnids.txt', 'words.txt', 'train', 'val/val_annotations.txt')
}


def _table(path: Path) -> Dict[str, str]:
    """Lines ``key<TAB>value`` as a dict."""
    rows = (
        line.split('\t')
        for line in path.read_text(encoding='utf-8').splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1}


def _from_official(root: Path, staging: Path, partial: bool) -> Dict[str, int]:
    wnids = sorted((root / 'wnids.txt').read_text().split())[:NUM_CLASSES]
    if len(wnids) < NUM_CLASSES and not partial:
        raise ConversionError(f'{root / "wnids.txt"} names {len(wnids)} '
                              f'classes, {NUM_CLASSES} are needed')
    words = _table(root / 'words.txt')
    files: Dict[str, Dict[str, List[Path]]] = dict(train={}, val={})
    for wnid in wnids:
        files['train'][wnid] = list(
            images_in(root / 'train' / wnid / 'images').values())
        files['val'][wnid] = []
    for name, wnid in _table(root / 'val' / 'val_annotations.txt').items():
        if wnid in files['val']:
            files['val'][wnid].append(root / 'val' / 'images' / name)
    done = {}
    for split, by_class in files.items():
        done[split] = 0
        for wnid, paths in by_class.items():
            check_count(f'{root} {split} {wnid}', len(paths), PER_CLASS[split],
                        partial)
            target = staging / split / wnid
            target.mkdir(parents=True)
            for path in paths:
                check_size(path, SIZE)
                shutil.copyfile(path, target / path.name)
            done[split] += len(paths)
    lines = [f'{wnid}\t{words.get(wnid, wnid)}' for wnid in wnids]
    (staging / 'classes.txt').write_text(
        '\n'.join(lines) + '\n', encoding='utf-8')
    return done


def convert(sources, out: str, force: bool, partial: bool) -> None:
    """Convert; arguments as on the command line."""
    with opened(sources) as folder:
        layout, root = find_layout(folder, LAYOUTS)
        with staged(out, force) as staging:
            if layout == 'packed':
                table = _table(root / 'classes.txt')
                if partial:
                    # One archive of several names classes it does not hold.
                    table = {
                        k: v
                        for k, v in table.items()
                        if (root / 'train' / k).is_dir()
                    }
                elif len(table) != NUM_CLASSES:
                    raise ConversionError(
                        f'{root / "classes.txt"} names {len(table)} classes, '
                        f'expected {NUM_CLASSES}')
                done = copy_class_folders(root, staging, list(table),
                                          PER_CLASS, SIZE, partial)
                (staging / 'classes.txt').write_text(
                    ''.join(f'{k}\t{v}\n' for k, v in table.items()),
                    encoding='utf-8')
            else:
                done = _from_official(root, staging, partial)
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0],
                       'data/tiny_imagenet100').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
