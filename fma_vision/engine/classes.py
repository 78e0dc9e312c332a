"""The classes, or the vocabulary, of a model against those of its data."""
from functools import reduce
from typing import Any, Dict, Optional, Tuple

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
    for name in ('decode_head', 'head', 'net.head'):
        head = reduce(lambda part, key: getattr(part, key, None),
                      name.split('.'), model)
        if isinstance(head, nn.ModuleList):  # a cascade: the last decides
            head = head[-1]
        if isinstance(head, nn.Module):
            return name, head
    return None


def check_classes(model: nn.Module, dataset: Any) -> None:
    """Refuse a model with fewer or more classes, or tokens, than its data.

    Nothing is said where either number is unknown.

    Args:
        model (nn.Module): As for :func:`find_head`.
        dataset (Any): The built dataset.

    Raises:
        UserError: Names both numbers and the setting to change.
    """
    found = find_head(model)
    meta = getattr(dataset, 'metainfo', None)
    if found is None or not isinstance(meta, dict):
        return
    name, head = found
    source = type(dataset).__name__
    classes, count = meta.get('classes'), getattr(head, 'num_classes', None)
    if isinstance(classes, (list, tuple)) and isinstance(count, int) and \
            count != len(classes):
        raise UserError(f'model.{name}.num_classes is {count}, but {source} '
                        f'has {len(classes)} classes')
    tokens, count = meta.get('vocab_size'), getattr(head, 'num_tokens', None)
    if isinstance(tokens, int) and isinstance(count, int) and count != tokens:
        mask = head.vocab_size - count  # 1 where the mask is a token more
        raise UserError(
            f'model.{name[:-len(".head")]}.vocab_size is {head.vocab_size}, '
            f'but {source} has {tokens} tokens: set it to {tokens + mask}')


def check_same_classes(dataset: Any, other: Any) -> None:
    """Refuse two sets of one kind whose labels mean different classes.

    Args:
        dataset (Any): Trained on.
        other (Any): Evaluated on.

    Raises:
        UserError: Names the classes that differ.
    """
    if type(dataset) is not type(other):
        return
    ours, theirs = (
        list((getattr(x, 'metainfo', None) or {}).get('classes') or ())
        for x in (dataset, other))
    if ours and theirs and ours != theirs:
        apart = sorted(set(ours) ^ set(theirs), key=str)
        raise UserError(
            f'{type(dataset).__name__}: the data to train on and to validate '
            'on have different classes' +
            (f', only one of them has {apart}'
             if apart else f' or another order: {ours} and {theirs}'))


def vocabulary_of(meta: Any) -> Optional[Dict[str, Any]]:
    """The vocabulary in a dataset's ``metainfo``, or a checkpoint's copy."""
    found = meta.get('vocabulary') if isinstance(meta, dict) else None
    return found if isinstance(found, dict) else None


def check_vocabulary(dataset: Any, meta: Any, other: str) -> None:
    """Refuse a text whose tokens mean something else than a model learnt.

    Nothing is said where either vocabulary is unknown.

    Args:
        dataset (Any): The built dataset.
        meta (Any): The other ``metainfo``.
        other (str): What it is of, for the message.

    Raises:
        UserError: Says how the vocabularies differ.
    """
    own = vocabulary_of(getattr(dataset, 'metainfo', None))
    theirs = vocabulary_of(meta)
    if own is None or theirs is None or own == theirs:
        return
    kinds = own.get('type'), theirs.get('type')
    detail = f'{kinds[0]} and {kinds[1]}'
    if kinds == ('characters', 'characters'):
        apart = sorted(set(own['symbols']) ^ set(theirs['symbols']))
        detail = f'characters that one of them lacks: {apart[:10]}'
    elif kinds[0] == kinds[1]:
        detail = f'two of {kinds[0]}'
    source = getattr(dataset, 'source', type(dataset).__name__)
    raise UserError(
        f'{source} and {other} have different vocabularies ({detail}); '
        'dataset.vocabulary takes the file of one for both')
