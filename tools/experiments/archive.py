"""Data and work folders in archives for another machine."""

import glob
import tarfile
from pathlib import Path
from typing import Iterator, List, Mapping, Sequence, Tuple

from fma_vision.datasets.cached_images import FOLDER as CACHE
from fma_vision.engine import UserError
from fma_vision.engine.config import datasets_of, load_config
from fma_vision.utils.files import whole_file

from protocol import Run  # isort: skip

MEGABYTE = 10**6
# What a compressor may still hold back when its output is measured.
HELD_BACK = 12 * MEGABYTE
# Headers and padding of a file, what the stream buffers, the padded end.
OVERHEAD = 2048 + 2 * tarfile.RECORDSIZE


def data_roots(runs: Sequence[Run]) -> List[Path]:
    """Folders of the data that runs read, each once.

    Raises:
        UserError: One is missing.
    """
    roots = []
    for config in dict.fromkeys(run.config for run in runs):
        cfg = load_config(config)
        for loader in ('train_dataloader', 'val_dataloader'):
            roots += [Path(d['data_root']) for d in datasets_of(cfg[loader])]
    roots = list(dict.fromkeys(roots))
    for root in roots:
        if not root.is_dir():
            raise UserError(f'no folder {root} to pack')
    return roots


def outdated(path: Path) -> bool:
    """Whether a file is a checkpoint with a later one beside it."""
    note = path.with_name('last_checkpoint')
    if path.suffix != '.pth' or not note.is_file():
        return False
    last = path.with_name(Path(note.read_text(errors='replace').strip()).name)
    return last.is_file() and last != path


def files_of(roots: Sequence[Path],
             folders: Mapping[Path, Path]) -> Iterator[Tuple[Path, str]]:
    """Files to pack and their names in the archive.

    Decoded images are left out: they are large, and made again in seconds.
    So are checkpoints from which no training goes on.
    """
    for root in roots:
        for path in sorted(root.rglob('*')):
            if path.is_file() and path.relative_to(root).parts[0] != CACHE:
                yield path, path.as_posix()
    for folder, name in folders.items():
        for path in sorted(folder.rglob('*')):
            if path.is_file() and not outdated(path):
                yield path, (name / path.relative_to(folder)).as_posix()


def pack(target: Path,
         runs: Sequence[Run],
         folders: Mapping[Path, Path],
         max_size: float,
         data: bool = True) -> List[Path]:
    """Write archives to unpack in a checkout: `tar -xf ARCHIVE`.

    Files keep their times, so that a cache of decoded images, where one
    was carried over by other means, stays valid.

    Args:
        target: Name of the first archive, ``.tar`` or ``.tar.xz``; others
            get ``-2``, ``-3`` and so on before the suffix.
        runs: Their data is packed.
        folders: Work folders, packed where they exist, and their names in
            the archive.
        max_size: Megabytes; another archive begins before a file that could
            make one larger.
        data: Pack data as well as work folders.

    Returns:
        list[Path]: The archives.

    Raises:
        UserError: A folder is missing, there is nothing to pack, or parts of
            another archive of this name lie there.
    """
    for suffix, mode in (('.tar.xz', 'w|xz'), ('.tar', 'w|')):
        if target.name.endswith(suffix):
            break
    else:
        raise UserError(f'archive {target}: a name that ends in .tar or '
                        '.tar.xz is allowed')
    stem = target.name[:-len(suffix)]
    # They would be unpacked with the new ones.
    old = sorted(target.parent.glob(f'{glob.escape(stem)}-[0-9]*{suffix}'))
    if old:
        raise UserError(f'archive {target}: remove {", ".join(map(str, old))} '
                        'of an earlier one')
    files = files_of(data_roots(runs) if data else [], folders)
    written: List[Path] = []
    pending = next(files, None)
    if pending is None:
        raise UserError('there is nothing to pack')
    limit = max_size * MEGABYTE
    slack = min(HELD_BACK, limit / 2) if suffix == '.tar.xz' else 0
    while pending is not None:
        number = f'-{len(written) + 1}' if written else ''
        path = target.with_name(f'{stem}{number}{suffix}')
        with whole_file(path) as out, tarfile.open(
                fileobj=out,
                mode=mode,
                format=tarfile.PAX_FORMAT,
                # What a link leads to may not be there.
                dereference=True) as archive:
            first = True
            while pending is not None:
                source, name = pending
                most = (out.tell() + source.stat().st_size + OVERHEAD + slack)
                if not first and most > limit:
                    break
                archive.add(source, arcname=name, recursive=False)
                first = False
                pending = next(files, None)
        written.append(path)
        print(f'{path}: {path.stat().st_size / MEGABYTE:.1f} MB')
    return written
