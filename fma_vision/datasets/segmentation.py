"""Small segmentation sets in the layout of mmsegmentation.

All share ``<data_root>/{images,annotations}/{training,validation}`` with
``.jpg`` photographs and 8-bit ``.png`` index masks of the same name.
"""
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from mmseg.datasets import BaseSegDataset

from fma_vision.registry import DATASETS

from .cached_images import cache_images, read_cached
from .palettes import (CAMVID_CLASSES, CAMVID_PALETTE, CAMVID_TO_STREET8,
                       DUBAI_AERIAL_CLASSES, DUBAI_AERIAL_PALETTE,
                       STREET8_CLASSES, STREET8_PALETTE)

SPLITS_DIR = Path(__file__).parent / 'splits'


class PairedSegDataset(BaseSegDataset):
    """Photographs and index masks, checked before the first batch.

    Args:
        subset (str, optional): A name stored in every sample as ``subset``,
            so that a metric can tell the parts of a concatenated set apart
            (see :class:`SubsetIoUMetric`). Defaults to None: none stored.
        cache_images (bool): Keep the decoded photographs in one file beside
            the data, which the pipeline's ``LoadImageFromFile`` then reads.
            Defaults to False.
        **kwargs: Arguments of :class:`mmseg.datasets.BaseSegDataset`.

    Raises:
        FileNotFoundError: A folder, the list or a mask is missing; names
            the first one and how to make the layout.
    """

    converter = ''

    def __init__(self,
                 subset: Optional[str] = None,
                 cache_images: bool = False,
                 **kwargs: Any) -> None:
        self.subset = subset
        self.cache_images = cache_images
        if cache_images:
            kwargs['pipeline'] = read_cached(kwargs.get('pipeline', ()))
        super().__init__(**kwargs)

    def load_data_list(self) -> List[dict]:
        """List the samples.

        Returns:
            list[dict]: One dict a sample, as :class:`BaseSegDataset`.
        """
        for key in ('img_path', 'seg_map_path'):
            folder = self.data_prefix.get(key)
            if folder and not Path(folder).is_dir():
                raise FileNotFoundError(
                    f'{type(self).__name__}: no folder {folder} '
                    f'(data_root={self.data_root!r}). {self._hint()}')
        if self.ann_file and not Path(self.ann_file).is_file():
            raise FileNotFoundError(
                f'{type(self).__name__}: no list {self.ann_file}')
        samples = super().load_data_list()
        if not samples:
            raise FileNotFoundError(
                f'{type(self).__name__}: no *{self.img_suffix} in '
                f'{self.data_prefix["img_path"]}. {self._hint()}')
        # Without this a missing file shows up hours later in a worker.
        missing = [
            s[key] for s in samples for key in ('img_path', 'seg_map_path')
            if key in s and not Path(s[key]).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f'{type(self).__name__}: {len(missing)} files are missing, '
                f'the first is {missing[0]}. {self._hint()}')
        if self.subset is not None:
            for sample in samples:
                sample['subset'] = self.subset
        if self.cache_images:
            cache_images(samples, self.data_root)
        return samples

    def _hint(self) -> str:
        if not self.converter:
            return ''
        return ('Make the layout with python tools/dataset_converters/'
                f'{self.converter}')


@DATASETS.register_module()
class CamVidDataset(PairedSegDataset):
    """CamVid: 367 + 101 frames of driving video, 480 x 360, 11 classes."""

    METAINFO = dict(classes=CAMVID_CLASSES, palette=CAMVID_PALETTE)
    converter = 'camvid.py'


@DATASETS.register_module()
class CamVidStreet8Dataset(PairedSegDataset):
    """CamVid with its labels mapped to the eight LabelMeFacade classes.

    Building, car, pavement, road and sky keep their names, tree becomes
    vegetation; every other class is ignored (255). CamVid labels neither
    doors nor windows: both lie inside its buildings.
    """

    METAINFO = dict(classes=STREET8_CLASSES, palette=STREET8_PALETTE)
    converter = 'camvid.py'

    @classmethod
    def get_label_map(cls,
                      new_classes: Optional[Sequence] = None
                      ) -> Dict[int, int]:
        """The table from CamVid's label values to the street classes.

        Args:
            new_classes (sequence, optional): Must be the street classes.

        Returns:
            dict: Label value in the file to label value in training.
        """
        if new_classes and tuple(new_classes) != STREET8_CLASSES:
            raise ValueError(
                f'CamVidStreet8Dataset: metainfo classes {new_classes} given,'
                f' only {STREET8_CLASSES} is possible')
        return dict(CAMVID_TO_STREET8)


@DATASETS.register_module()
class LabelMeFacadeDataset(PairedSegDataset):
    """LabelMeFacade: 100 + 845 street photographs, 8 classes.

    Args:
        split (str, optional): 'train' or 'val' reads this package's own
            lists (756 + 189 images; no photo collection is in both, see
            ``tools/dataset_converters/labelmefacade_splits.py``). None
            lists the folders of ``data_prefix``: the official 100 + 845.
        **kwargs: Arguments of :class:`PairedSegDataset`.
    """

    METAINFO = dict(classes=STREET8_CLASSES, palette=STREET8_PALETTE)
    converter = 'labelmefacade.py'

    def __init__(self, split: Optional[str] = None, **kwargs: Any) -> None:
        if split not in (None, 'train', 'val'):
            raise ValueError(f"LabelMeFacadeDataset: split is {split!r}; "
                             "allowed are None, 'train' and 'val'")
        if split is not None:
            if kwargs.get('ann_file'):
                raise ValueError('LabelMeFacadeDataset: give split or '
                                 'ann_file, not both')
            kwargs['ann_file'] = str(SPLITS_DIR / f'labelmefacade_{split}.txt')
            # The lists name training/<stem> and validation/<stem>.
            kwargs.setdefault(
                'data_prefix',
                dict(img_path='images', seg_map_path='annotations'))
        super().__init__(**kwargs)


@DATASETS.register_module()
class DubaiAerialDataset(PairedSegDataset):
    """Dubai aerial tiles: 45 + 9 images of 500 to 1100 px, 6 classes."""

    METAINFO = dict(classes=DUBAI_AERIAL_CLASSES, palette=DUBAI_AERIAL_PALETTE)
    converter = 'dubai_aerial.py'
