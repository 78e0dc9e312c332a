"""Write the LabelMeFacade train and val lists used by ``configs/street``.

The official split trains on 100 images and validates on 845 that come from
the same photo collections. For training with more data these lists hold
out whole collections instead:

* a *collection* is the part of the file name before ``__``; collections
  whose names begin alike (``static_boston_street`` and
  ``static_boston_street_april``) count as one;
* a collection with an official training image goes to train, any other to
  val, so no collection is in both; a city with several collections can be;
* ``spatial_envelope_256x256_static_8outdoorcategories`` holds independent
  photographs, so its official validation images are shared out by a hash
  of the name.

Run it again with the same data and it writes the same bytes.
"""
import argparse
import hashlib
import sys
from pathlib import Path
from typing import Dict, Iterable, List, Tuple

INDEPENDENT = 'spatial_envelope_256x256_static_8outdoorcategories'
# Half of them keeps val near 190 images beside about 750 for training.
HASH_BUCKETS, HASH_VAL_BUCKETS = 8, 4
OUT_DIR = Path(__file__).parents[2] / 'fma_vision' / 'datasets' / 'splits'


def collection(stem: str) -> str:
    """The photo collection of a file name."""
    return stem.split('__', 1)[0]


def merge_collections(names: Iterable[str]) -> Dict[str, str]:
    """Map each collection to the shortest one whose name it begins with."""
    roots: Dict[str, str] = {}
    for name in sorted(set(names), key=lambda n: (len(n), n)):
        found = [r for r in set(roots.values()) if name.startswith(r)]
        roots[name] = min(found, key=len) if found else name
    return roots


def in_hash_val(stem: str) -> bool:
    """Whether an independent photograph is held out."""
    digest = hashlib.sha256(stem.encode()).digest()
    return digest[0] % HASH_BUCKETS < HASH_VAL_BUCKETS


def split(training: List[str],
          validation: List[str]) -> Tuple[List[str], List[str]]:
    """Share out the official images.

    Args:
        training (list[str]): Stems of the official training images.
        validation (list[str]): Stems of the official validation images.

    Returns:
        tuple: Lines ``training/<stem>`` or ``validation/<stem>`` for train
        and for val, both sorted.
    """
    roots = merge_collections(collection(s) for s in training + validation)
    seen = {roots[collection(s)] for s in training}
    train = [f'training/{s}' for s in training]
    val = []
    for stem in validation:
        if collection(stem) == INDEPENDENT:
            held_out = in_hash_val(stem)
        else:
            held_out = roots[collection(stem)] not in seen
        (val if held_out else train).append(f'validation/{stem}')
    return sorted(train), sorted(val)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Write the LabelMeFacade lists of configs/street')
    parser.add_argument(
        'root', help='folder with images/{training,validation}')
    parser.add_argument('--out', type=Path, default=OUT_DIR)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    stems = {}
    for part in ('training', 'validation'):
        folder = Path(args.root) / 'images' / part
        if not folder.is_dir():
            sys.exit(f'{folder} is no folder; convert LabelMeFacade first '
                     'with tools/dataset_converters/labelmefacade.py')
        stems[part] = sorted(p.stem for p in folder.glob('*.jpg'))
        if not stems[part]:
            sys.exit(f'{folder} holds no .jpg file')
    train, val = split(stems['training'], stems['validation'])
    args.out.mkdir(parents=True, exist_ok=True)
    for name, lines in (('train', train), ('val', val)):
        path = args.out / f'labelmefacade_{name}.txt'
        path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
        print(f'{path}: {len(lines)} images')


if __name__ == '__main__':
    # A name that the console cannot show is printed with escapes.
    sys.stdout.reconfigure(errors='backslashreplace')
    main()
