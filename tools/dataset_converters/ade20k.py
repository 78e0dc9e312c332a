"""ADE20K: 20,210 training and 2,000 validation images, 150 classes.

Official layout: ``ADEChallengeData2016/{images,annotations}/{training,
validation}``, where label 0 is 'other' and 1 to 150 are classes; it is what
mmsegmentation reads, so it is checked and copied as it is.
"""
from common import (ConversionError, base_parser, copy_packed, find_layout,
                    opened, report, run, staged)

COUNTS = dict(training=20210, validation=2000)
NUM_LABELS = 151
LAYOUTS = {'official': ('images', 'annotations')}


def convert(sources, out: str, force: bool, partial: bool) -> None:
    """Convert; arguments as on the command line."""
    with opened(sources) as folder:
        _, root = find_layout(folder, LAYOUTS)
        with staged(out, force) as staging:
            done = copy_packed(root, staging, COUNTS, NUM_LABELS, partial)
            if not done:
                raise ConversionError(f'no image in {root / "images"}')
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0],
                       'data/ade/ADEChallengeData2016').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
