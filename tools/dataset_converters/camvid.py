"""CamVid: 367 training and 101 validation frames, 11 classes.

Official layout read here: the one of the SegNet tutorial, with folders
``train``, ``trainannot``, ``val`` and ``valannot`` of PNG files, where label
11 is void. Its test frames are not used.
"""
from common import (IGNORE, ConversionError, base_parser, check_count,
                    copy_packed, find_layout, images_in, index_mask,
                    match_stems, opened, report, run, staged, write_pair)

COUNTS = dict(training=367, validation=101)
NUM_CLASSES, VOID = 11, 11
LAYOUTS = {
    'packed': ('images/training', 'annotations/training'),
    'SegNet tutorial': ('train', 'trainannot', 'val', 'valannot')
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
                for part, name in (('training', 'train'), ('validation',
                                                           'val')):
                    images = images_in(root / name)
                    masks = images_in(root / f'{name}annot')
                    stems = match_stems(images, masks, str(root / name))
                    check_count(
                        str(root / name), len(stems), COUNTS[part], partial)
                    for stem in stems:
                        mask = index_mask(masks[stem], NUM_CLASSES,
                                          {VOID: IGNORE})
                        write_pair(staging, part, stem, images[stem], mask)
                    done[part] = len(stems)
            if not done:
                raise ConversionError(f'nothing found in {root}')
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0], 'data/camvid').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
