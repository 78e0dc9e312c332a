"""Datasets of the configs: small real sets with their class names.

The parts import when their host package (mmsegmentation, mmpretrain) is
installed; the other part works without it.
"""
from importlib.util import find_spec

from fma_vision import registry  # noqa: F401  silences the hosts' imports

__all__ = []

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
    __all__ += [
        'CIFAR10FolderDataset', 'FashionMNISTDataset', 'TinyImageNet100Dataset'
    ]
