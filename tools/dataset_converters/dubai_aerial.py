"""Dubai aerial imagery: 45 training and 9 validation tiles, 6 classes.

Official layout: ``Tile N/images/image_part_00K.jpg`` and
``Tile N/masks/image_part_00K.png`` (masks of colours). Tiles 1 to 5 become
training, tile 6 validation; further tiles are left out.
"""
from common import (ConversionError, base_parser, check_count, colour_mask,
                    copy_packed, find_layout, images_in, match_stems, opened,
                    report, run, staged, write_pair)

COUNTS = dict(training=45, validation=9)
NUM_CLASSES = 6
COLOURS = {
    (60, 16, 152): 0,  # building
    (132, 41, 246): 1,  # land
    (110, 193, 228): 2,  # road
    (254, 221, 58): 3,  # vegetation
    (226, 169, 41): 4,  # water
    (155, 155, 155): 5  # unlabelled
}
TILES = dict(training=(1, 2, 3, 4, 5), validation=(6, ))
LAYOUTS = {
    'packed': ('images/training', 'annotations/training'),
    'official': ('Tile 1/images', 'Tile 1/masks')
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
                for part, tiles in TILES.items():
                    for tile in tiles:
                        tile_root = root / f'Tile {tile}'
                        if partial and not tile_root.is_dir():
                            continue
                        images = images_in(tile_root / 'images')
                        masks = images_in(tile_root / 'masks')
                        for stem in match_stems(images, masks, str(tile_root)):
                            write_pair(staging, part, f'tile{tile}_{stem}',
                                       images[stem],
                                       colour_mask(masks[stem], COLOURS))
                            done[part] = done.get(part, 0) + 1
                    check_count(f'{root} {part}', done.get(part, 0),
                                COUNTS[part], partial)
            if not done:
                raise ConversionError(f'nothing found in {root}')
    report(out, done)


def main() -> None:
    args = base_parser(__doc__.splitlines()[0],
                       'data/dubai_aerial').parse_args()
    convert(args.source, args.out, args.force, args.partial)


if __name__ == '__main__':
    run(main)
