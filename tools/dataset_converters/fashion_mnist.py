"""Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28.

The four IDX files, compressed or not, are checked and copied; Debian's
package ``dataset-fashion-mnist`` has them in
``/usr/share/datasets/fashion-mnist``.
"""
import shutil
import sys
from pathlib import Path

from common import (ConversionError, base_parser, check_count, find_layout,
                    opened, report, run, staged)

# So that a checkout works without installing it.
sys.path.insert(0, str(Path(__file__).absolute().parents[2]))
from fma_vision.datasets.idx import find_idx, read_idx  # noqa: E402

COUNTS = dict(train=60000, t10k=10000)
SIZE, NUM_CLASSES = 28, 10
LAYOUTS = {
    'compressed': [f'{p}-images-idx3-ubyte.gz' for p in COUNTS],
    'plain': [f'{p}-images-idx3-ubyte' for p in COUNTS]
}


def convert(sources, out: str, force: bool, partial: bool) -> None:
    """Convert; arguments as on the command line."""
    with opened(sources) as folder:
        _, root = find_layout(folder, LAYOUTS)
        with staged(out, force) as staging:
            done = {}
            for prefix, expected in COUNTS.items():
                try:
                    paths = [
                        find_idx(root, f'{prefix}-images-idx3-ubyte'),
                        find_idx(root, f'{prefix}-labels-idx1-ubyte')
                    ]
                    images, labels = (read_idx(path) for path in paths)
                except (FileNotFoundError, ValueError) as error:
                    raise ConversionError(str(error))
                if images.shape != (len(labels), SIZE, SIZE):
                    raise ConversionError(
                        f'{paths[0]} has shape {images.shape}, '
                        f'{paths[1].name} {labels.shape}; expected '
                        f'(N, {SIZE}, {SIZE}) and (N,)')
                if labels.max(initial=0) >= NUM_CLASSES:
                    raise ConversionError(
                        f'{paths[1]} holds label {labels.max()}; allowed are '
                        f'0 to {NUM_CLASSES - 1}')
                check_count(str(paths[0]), len(images), expected, partial)
                for path in paths:
                    shutil.copyfile(path, staging / path.name)
                done[prefix] = len(images)
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0],
                       'data/fashion_mnist').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
