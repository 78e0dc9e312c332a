"""LabelMeFacade: 100 training and 845 test photographs, 8 classes.

Official layout: ``images``, ``labels`` (masks of colours), ``train.txt`` and
``test.txt`` with lines ``images/<name>.jpg``. The test images become
``validation``; for another split see ``labelmefacade_splits.py``.
"""
from pathlib import Path

from common import (IGNORE, ConversionError, base_parser, check_count,
                    colour_mask, copy_packed, find_layout, opened, report, run,
                    staged, write_pair)

COUNTS = dict(training=100, validation=845)
NUM_CLASSES = 8
COLOURS = {
    (0, 0, 0): IGNORE,  # various
    (128, 0, 0): 0,  # building
    (128, 0, 128): 1,  # car
    (128, 128, 0): 2,  # door
    (128, 128, 128): 3,  # pavement
    (128, 64, 0): 4,  # road
    (0, 128, 128): 5,  # sky
    (0, 128, 0): 6,  # vegetation
    (0, 0, 128): 7  # window
}
LAYOUTS = {
    'packed': ('images/training', 'annotations/training'),
    'official': ('images', 'labels', 'train.txt', 'test.txt')
}


def convert(sources, out: str, force: bool, partial: bool) -> None:
    """Convert; arguments as on the command line."""
    with opened(sources) as folder:
        layout, root = find_layout(folder, LAYOUTS)
        with staged(out, force) as staging:
            if layout == 'packed':
                done = copy_packed(root, staging, COUNTS, NUM_CLASSES, partial)
            else:
                done = {}
                for part, name in (('training', 'train.txt'), ('validation',
                                                               'test.txt')):
                    stems = [
                        Path(line.strip()).stem
                        for line in (root / name).read_text(
                            encoding='utf-8').splitlines() if line.strip()
                    ]
                    check_count(
                        str(root / name), len(stems), COUNTS[part], partial)
                    for stem in stems:
                        image = root / 'images' / f'{stem}.jpg'
                        label = root / 'labels' / f'{stem}.png'
                        for path in (image, label):
                            if not path.is_file():
                                raise ConversionError(
                                    f'{name} names {stem}, but there is no '
                                    f'{path}')
                        write_pair(staging, part, stem, image,
                                   colour_mask(label, COLOURS))
                    done[part] = len(stems)
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0],
                       'data/labelmefacade').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
