"""The classes of a model against those of its data."""
from typing import Any, Optional, Tuple

from torch import nn

from .config import UserError


def find_head(model: nn.Module) -> Optional[Tuple[str, nn.Module]]:
    """The head that decides a model's classes.

    Args:
        model (nn.Module): A model; wrappers for test-time augmentation and
            data parallelism are looked through.

    Returns:
        tuple or None: Its name in the model and the head.
    """
    while isinstance(getattr(model, 'module', None), nn.Module):
        model = model.module
    for name in ('decode_head', 'head'):
        head = getattr(model, name, None)
        if isinstance(head, nn.ModuleList):  # a cascade: the last decides
            head = head[-1]
        if isinstance(head, nn.Module):
            return name, head
    return None


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Refuse a model with fewer or more classes than its data.

    Nothing is said where either number is unknown.

    Args:
        model (nn.Module): As for :func:`find_head`.
        dataset (Any): The built dataset.

    Raises:
        UserError: Names both numbers and the setting to change.
    """
    found = find_head(model)
    meta = getattr(dataset, 'metainfo', None) or {}
    classes = meta.get('classes') if isinstance(meta, dict) else None
    if found is None or not isinstance(classes, (list, tuple)):
        return
    name, head = found
    count = getattr(head, 'num_classes', None)
    if isinstance(count, int) and count != len(classes):
        raise UserError(f'model.{name}.num_classes is {count}, but '
                        f'{type(dataset).__name__} has {len(classes)} classes')
