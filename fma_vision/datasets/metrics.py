"""Metrics over parts of a concatenated evaluation set."""
from typing import Any, Dict, Optional, Sequence

import numpy as np
from mmengine.logging import MMLogger, print_log
from mmseg.evaluation import IoUMetric

from fma_vision.registry import METRICS


@METRICS.register_module()
class SubsetIoUMetric(IoUMetric):
    """IoU over the samples of one subset, over the classes it labels.

    Sets that are concatenated may label different things. A class without
    a single ground-truth pixel in the subset has no meaningful IoU (it
    would be 0 as soon as one pixel is predicted as it), so it is left out of
    the means and shown as nan; its wrong pixels still lower ``aAcc`` and
    the IoU of the classes they were taken from.

    Args:
        subset (str): Value of ``subset`` in the samples to count; the
            dataset sets it and ``PackSegInputs`` must keep it in
            ``meta_keys``. It is also the default prefix of the results.
        **kwargs: Arguments of :class:`mmseg.evaluation.IoUMetric`.
    """

    def __init__(self,
                 subset: str,
                 prefix: Optional[str] = None,
                 **kwargs: Any) -> None:
        super().__init__(prefix=prefix or subset, **kwargs)
        self.subset = subset

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count one batch.

        Args:
            data_batch (dict): A batch from the dataloader.
            data_samples (sequence[dict]): The predictions and labels.

        Raises:
            KeyError: A sample carries no ``subset``.
        """
        for sample in data_samples:
            if 'subset' not in sample:
                raise KeyError(
                    "SubsetIoUMetric: a sample has no 'subset'; give the "
                    "dataset subset=... and PackSegInputs meta_keys with "
                    "'subset'")
        super().process(
            data_batch,
            [s for s in data_samples if s['subset'] == self.subset])

    def compute_metrics(self, results: list) -> Dict[str, float]:
        """Compute the metrics.

        Args:
            results (list): Areas of each image, as :class:`IoUMetric`.

        Returns:
            dict[str, float]: aAcc, mIoU and mAcc in percent.

        Raises:
            ValueError: No sample belonged to the subset.
        """
        if not results and not self.format_only:
            raise ValueError(f'SubsetIoUMetric: no sample has subset '
                             f'{self.subset!r}')
        print_log(f'{self.subset}:', MMLogger.get_current_instance())
        metrics = super().compute_metrics(results)
        # Plain numbers: numpy's would make checkpoints unsafe to load.
        return {key: round(float(v), 2) for key, v in metrics.items()}

    @staticmethod
    def total_area_to_metrics(total_area_intersect, total_area_union,
                              total_area_pred_label, total_area_label, *args:
                              Any, **kwargs: Any) -> Dict[str, Any]:
        """As :class:`IoUMetric`, with nan for classes without labels."""
        metrics = IoUMetric.total_area_to_metrics(total_area_intersect,
                                                  total_area_union,
                                                  total_area_pred_label,
                                                  total_area_label, *args,
                                                  **kwargs)
        absent = (total_area_label == 0).numpy()
        return {
            key: value if key == 'aAcc' else np.where(absent, np.nan, value)
            for key, value in metrics.items()
        }
