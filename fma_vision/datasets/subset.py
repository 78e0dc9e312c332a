"""A part of any data set."""
from typing import Any

from mmengine.registry import DATASETS as HOST_DATASETS

from fma_vision.registry import DATASETS


@DATASETS.register_module()
class SpreadSubset:
    """Some samples of a data set, spread evenly over it.

    Unlike the first ones, they hold all classes of a set that is sorted by
    class.

    Args:
        dataset (dict): Config of the data set.
        count (int): Samples to keep; all of a smaller set.

    Raises:
        ValueError: ``count`` is less than 1.
    """

    def __init__(self, dataset: dict, count: int) -> None:
        if count < 1:
            raise ValueError(f'count must be at least 1, got {count}')
        self.dataset = HOST_DATASETS.build(dataset)
        self.count = count

    @property
    def metainfo(self) -> dict:
        """dict: Of the whole set."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Load the annotations, where the set does so late."""
        if hasattr(self.dataset, 'full_init'):
            self.dataset.full_init()

    def __len__(self) -> int:
        return min(self.count, len(self.dataset))

    def _whole(self, index: int) -> int:
        """The index in the whole set."""
        if not 0 <= index < len(self):
            raise IndexError(f'{index} is not in [0, {len(self)})')
        return index * len(self.dataset) // len(self)

    def get_data_info(self, index: int) -> dict:
        """The annotation of a sample."""
        return self.dataset.get_data_info(self._whole(index))

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self._whole(index)]
