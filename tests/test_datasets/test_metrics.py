"""SubsetIoUMetric against counts done by hand."""
# Hosts are optional, so their imports follow importorskip.
# flake8: noqa: E402

import math

import pytest
import torch

pytest.importorskip('mmseg')

from fma_vision.datasets import SubsetIoUMetric


def sample(subset: str, prediction: list, label: list) -> dict:
    return dict(
        subset=subset,
        pred_sem_seg=dict(data=torch.tensor([prediction])),
        gt_sem_seg=dict(data=torch.tensor([label])))


def evaluate(subset: str, samples: list) -> dict:
    metric = SubsetIoUMetric(subset=subset)
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    for item in samples:
        metric.process({}, [item])
    return metric.evaluate(size=len(samples))


# Labels a a a b | 255; one a is taken for b, one for the absent class c.
ONE = sample('one', [[0, 1, 2, 1, 0]], [[0, 0, 0, 1, 255]])
OTHER = sample('two', [[2, 2]], [[2, 0]])


def test_counts_its_subset_only() -> None:
    result = evaluate('one', [ONE, OTHER])
    assert set(result) == {'one/aAcc', 'one/mIoU', 'one/mAcc'}
    assert result['one/aAcc'] == pytest.approx(50)
    # a: 1 of 3; b: 1 of 2; c is not labelled and not in the mean.
    assert result['one/mIoU'] == pytest.approx(
        100 * (1 / 3 + 1 / 2) / 2, abs=0.01)
    assert result['one/mAcc'] == pytest.approx(100 * (1 / 3 + 1) / 2, abs=0.01)
    other = evaluate('two', [ONE, OTHER])
    assert other['two/mIoU'] == pytest.approx(100 * (0 + 1 / 2) / 2)


def test_results_are_plain_numbers() -> None:
    assert {type(v) for v in evaluate('one', [ONE]).values()} == {float}
    assert not any(math.isnan(v) for v in evaluate('one', [ONE]).values())


def test_nothing_of_the_subset() -> None:
    with pytest.raises(ValueError, match="no sample has subset 'three'"):
        evaluate('three', [ONE, OTHER])


def test_samples_without_subset() -> None:
    bare = {k: v for k, v in ONE.items() if k != 'subset'}
    with pytest.raises(KeyError, match='meta_keys'):
        evaluate('one', [bare])
