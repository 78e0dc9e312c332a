"""Datasets of the configs: texts, sequences, and small real sets.

Each part of the images imports when its host package (mmsegmentation,
mmpretrain) is installed, the metric of texts when MMEngine
is; the others work without it.
"""
from importlib.util import find_spec

from fma_vision import registry  # noqa: F401  silences the hosts' imports

from .length_sampler import LengthGroupedSampler
from .listops import ListOpsDataset
from .sequences import pad_sequences
from .text import TextDataset
from .text_classification import TextClassificationDataset

__all__ = [
    'LengthGroupedSampler', 'ListOpsDataset', 'TextClassificationDataset',
    'TextDataset', 'pad_sequences'
]

if registry.HAS_MMENGINE:
    from .concat import ConcatDataset
    from .text_metrics import BitsPerCharacter
    __all__ += ['BitsPerCharacter', 'ConcatDataset']

if find_spec('mmcv') is not None:
    from .cached_images import LoadCachedImage
    __all__ += ['LoadCachedImage']

if find_spec('mmseg') is not None:
    from .metrics import SubsetIoUMetric
    from .segmentation import (CamVidDataset, CamVidStreet8Dataset,
                               DubaiAerialDataset, LabelMeFacadeDataset)
    __all__ += [
        'CamVidDataset', 'CamVidStreet8Dataset', 'DubaiAerialDataset',
        'LabelMeFacadeDataset', 'SubsetIoUMetric'
    ]

if find_spec('mmpretrain') is not None:
    from .classification import CIFAR10FolderDataset, TinyImageNet100Dataset
    from .fashion_mnist import FashionMNISTDataset
    from .sequential_cifar10 import SequentialCIFAR10
    __all__ += [
        'CIFAR10FolderDataset', 'FashionMNISTDataset', 'SequentialCIFAR10',
        'TinyImageNet100Dataset'
    ]
