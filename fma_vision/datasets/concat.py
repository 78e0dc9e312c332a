"""Several sets as one, read by one pipeline."""
from typing import Any, Sequence

from mmengine.dataset import ConcatDataset as _ConcatDataset

from fma_vision.registry import DATASETS


@DATASETS.register_module()
class ConcatDataset(_ConcatDataset):
    """MMEngine's ``ConcatDataset`` with a pipeline for all its sets.

    The hosts' inferencers look for the pipeline of the test set itself,
    which MMEngine's class does not have.

    Args:
        datasets (sequence[dict | BaseDataset]): The sets. A pipeline that a
            set names itself goes before the common one.
        pipeline (sequence[dict]): Of the sets that name none.
        **kwargs: Arguments of :class:`mmengine.dataset.ConcatDataset`.
    """

    def __init__(self,
                 datasets: Sequence[Any],
                 pipeline: Sequence[Any] = (),
                 **kwargs: Any) -> None:
        super().__init__([{
            'pipeline': pipeline,
            **part
        } if isinstance(part, dict) else part for part in datasets], **kwargs)
