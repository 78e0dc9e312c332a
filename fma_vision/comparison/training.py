"""One model trained with each attention layer in turn."""

import copy
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from mmengine.config import Config, ConfigDict

from ..engine import (UserError, build_runner, check_data, check_data_roots,
                      drop_validation, prepare, select_device)
from ..utils.complexity import count_parameters
from ..utils.configs import is_language_model, load_model_config
from ..utils.environment import collect_environment
from ..utils.errors import one_line
from ..utils.files import write_json
from ..utils.results import read_json
from .specs import LayerSpec, config_specs, ndim_of

LOADERS = ('train_dataloader', 'test_dataloader')
RESULT = 'result.json'


@dataclass(frozen=True)
class Budget:
    """What every layer gets; None leaves it to the config.

    Attributes:
        iters: Iterations, of a config that counts them.
        epochs: Epochs, of a config that counts those.
        train_samples: Samples to train on, spread evenly over the data.
        test_samples: Samples to test on.
    """
    iters: Optional[int] = None
    epochs: Optional[int] = None
    train_samples: Optional[int] = None
    test_samples: Optional[int] = None


def attention_slot(model: Dict[str, Any]) -> Dict[str, Any]:
    """The part of a model's config that takes ``attn``.

    Args:
        model: ``cfg.model``.

    Raises:
        UserError: No part has, or is known to take, one.
    """
    parts: List[Dict[str, Any]] = [model]
    for part in parts:  # grows meanwhile: breadth first
        if 'attn' in part:
            return part
        parts += [value for value in part.values() if isinstance(value, dict)]
    for name in ('net', 'backbone'):
        # Their own layers are a default of these.
        if 'FMA' in str(model.get(name, {}).get('type')):
            return model[name]
    raise UserError('--train: no part of the model has `attn`')


def own_attention(cfg: Config) -> Dict[str, Any]:
    """The layer that a config's model has, as far as the config says."""
    own = attention_slot(cfg.model).get('attn')
    if isinstance(own, (list, tuple)):  # one per stage
        own = own[0]
    own = dict(own) if isinstance(own, dict) else dict(type=own)
    if own.get('type') is None:
        text = is_language_model(cfg)
        own['type'] = 'FMAttention1D' if text else 'FMAttention2D'
    return own


def set_budget(cfg: Config, budget: Budget) -> None:
    """Shortens a training.

    Args:
        cfg: Changed in place.
        budget: How far.

    Raises:
        UserError: The config counts the other unit.
    """
    loop = cfg.train_cfg
    for key, name, value in (('max_iters', '--iters', budget.iters),
                             ('max_epochs', '--epochs', budget.epochs)):
        if value is None:
            continue
        if key not in loop:
            other = '--epochs' if key == 'max_iters' else '--iters'
            raise UserError(f'{name}: the config does not count these; use '
                            f'{other}')
        loop[key] = value
    for key, count in zip(LOADERS,
                          (budget.train_samples, budget.test_samples)):
        if count is not None:
            cfg[key].dataset = ConfigDict(
                type='fma_vision.SpreadSubset',
                dataset=cfg[key].dataset,
                count=count)


def prepare_config(name: str, budget: Budget, seed: int,
                   cfg_options: Optional[Dict[str, Any]]) -> Config:
    """A config that trains without validation and tests at the end.

    Args:
        name: Of the config.
        budget: Its length.
        seed: Of everything random.
        cfg_options: Further changes.

    Raises:
        UserError: The config cannot be used, or its data is not there.
    """
    cfg = load_model_config(name, cfg_options)
    for key in ('train_dataloader', 'train_cfg'):
        if cfg.get(key) is None:
            raise UserError(f'--train: {name} has no {key}')
    for part in ('dataloader', 'evaluator'):
        if cfg.get(f'test_{part}') is None:
            cfg[f'test_{part}'] = cfg.get(f'val_{part}')
        if cfg.get(f'test_{part}') is None:
            raise UserError(f'--train: {name} has no test_{part}')
    if cfg.get('test_cfg') is None:
        cfg.test_cfg = dict()
    # Loaders and evaluators of the two may be one object.
    for part in ('dataloader', 'evaluator'):
        cfg[f'test_{part}'] = copy.deepcopy(cfg[f'test_{part}'])
    drop_validation(cfg)
    set_budget(cfg, budget)
    cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    hooks = list(cfg.get('custom_hooks') or [])
    if not any('IterationSeedHook' in str(h.get('type')) for h in hooks):
        # Layers draw unlike numbers for their weights; from the first
        # iteration on, all see the same ones.
        hooks.append(dict(type='fma_vision.IterationSeedHook'))
    cfg.custom_hooks = hooks
    check_data_roots(cfg, LOADERS)
    return cfg


def _folder(work_dir: Path, name: str, label: str, cfg: Config) -> Path:
    """A folder for exactly this training: changed settings get another."""
    slug = re.sub(r'[^\w.=-]+', '-', label).strip('-')
    digest = hashlib.sha1(cfg.pretty_text.encode()).hexdigest()[:8]
    return work_dir / Path(name).stem / f'{slug}_{digest}'


def train(cfg: Config, folder: Path, device: str, seed: int) -> Dict[str, Any]:
    """Trains and tests a config, or goes on where that was interrupted.

    Args:
        cfg: From :func:`prepare_config`, with its layer.
        folder: Work folder; holds the result afterwards.
        device: ``'cpu'`` or ``'cuda'``.
        seed: For the record.

    Returns:
        Parameters, scores, seconds, and where it ran; read from the folder
        where it is done already.

    Raises:
        UserError: A setting is wrong, or the result there is damaged.
    """
    if (folder / RESULT).is_file():
        return read_json(folder / RESULT)
    select_device(device)
    cfg.work_dir = str(folder)
    cfg.experiment_name = folder.name
    cfg.resume = (folder / 'last_checkpoint').is_file()
    cfg.load_from = None if cfg.resume else cfg.get('load_from')
    prepare(cfg, LOADERS)
    runner = build_runner(cfg)
    check_data(runner, 'train')
    start = time.perf_counter()
    runner.train()
    seconds = time.perf_counter() - start
    result = dict(
        parameters=count_parameters(runner.model),
        iterations=runner.iter,
        train_samples=len(runner.train_dataloader.dataset),
        resumed=bool(cfg.resume),
        train_seconds=seconds,
        metrics={
            k: float(v)
            for k, v in runner.test().items()
        },
        test_samples=len(runner.test_dataloader.dataset),
        environment=collect_environment(device, seed))
    write_json(folder / RESULT, result)
    return result


def compare_accuracy(
        name: str,
        specs: Optional[Sequence[LayerSpec]],
        budget: Budget,
        work_dir: Path,
        seed: int = 0,
        device: str = 'cpu',
        cfg_options: Optional[Dict[str, Any]] = None,
        report: Callable[[Dict[str, Any]],
                         None] = print) -> List[Dict[str, Any]]:
    """Trains one config's model with several layers.

    The seed, the data and its order, the schedule and the test are the same
    for all. Finished trainings are not repeated, interrupted ones go on.

    Args:
        name: The config; one part of its model takes ``attn``.
        specs: The layers; None takes all that suit the config, where those
            of the config's own type have its arguments.
        budget: How long and on how much.
        work_dir: Folder of the trainings' folders.
        seed: Of everything random.
        device: Where to train.
        cfg_options: Further changes of the config.
        report: Takes each row as soon as it is known.

    Returns:
        One row per layer: ``status`` is ``'trained'``, or ``'failed'`` with a
        ``reason``.

    Raises:
        UserError: The config cannot be used at all.
    """
    device = torch.device(device).type
    base = prepare_config(name, budget, seed, cfg_options)
    own = own_attention(base)
    ndim = ndim_of(own) or (1 if is_language_model(base) else 2)
    if specs is None:
        specs = config_specs(ndim, own)
    rows = []
    for spec in specs:
        if spec.ndim not in (None, ndim):
            continue
        row = dict(layer=spec.label, config=spec.for_model())
        cfg = copy.deepcopy(base)
        attention_slot(cfg.model)['attn'] = spec.for_model()
        folder = _folder(work_dir, name, spec.label, cfg)
        try:
            row.update(train(cfg, folder, device, seed), status='trained')
        except UserError as error:  # costs this layer's row only
            row.update(status='failed', reason=str(error))
        except Exception as error:
            row.update(status='failed', reason=one_line(error))
        rows.append(row)
        report(row)
    return rows
