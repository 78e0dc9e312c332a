"""The runs of the experiments: plain data.

A run is a config, a seed and options that `tools/train.py --cfg-options`
takes. Names are stable, because results and work folders go by them:
``<dataset>/<attention>`` for a comparison, ``<dataset>/<attention>-<what>``
where something else differs, ``ablations/<what>`` for FMA on CIFAR-10.
"""
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Mapping, Optional, Tuple

TASKS = {
    'tiny_imagenet100': 'classification',
    'cifar10': 'classification',
    'camvid': 'segmentation',
    'dubai_aerial': 'segmentation',
    'books': 'language',
}
# Attention layers in the results, and what their configs' names begin with.
ATTENTIONS = {
    'fma': 'fma',
    'fma_linear': 'fma-linear',
    'window': 'swin',
    'full': 'full',
    'mano': 'mano',
    'fmmformer': 'fmmformer',
}
CONFIGS = {
    'tiny_imagenet100':
    'configs/tiny_imagenet100/{}-nano_1xb128-60e_tiny-in100-64px.py',
    'cifar10':
    'configs/cifar10/{}-nano_1xb128-60e_cifar10-32px.py',
    'camvid':
    'configs/camvid/{}-nano_fpn_1xb8-8k_camvid-360x480.py',
    'dubai_aerial':
    'configs/dubai_aerial/{}-nano_fpn_1xb8-4k_dubai-aerial-512x512.py',
}
# The comparisons that the README leads with are of these four.
HEADLINE = ('fma', 'fma_linear', 'window', 'full')


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Attributes:
        name: Without the seed; see the top of this file.
        dataset: One of ``TASKS``.
        attention: One of ``ATTENTIONS``.
        config: Path from the checkout.
        seed: Of weights and data order.
        options: For ``--cfg-options``, in training and test.
        train_options: The same, in training only.
        amp: Train with ``--amp``.
        start: Name of the run, of the same seed, whose backbone this one
            starts from.
        scales: Test at these multiples of the config's size as well.
    """
    name: str
    dataset: str
    attention: str
    config: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    amp: bool = False
    start: Optional[str] = None
    scales: Tuple[int, ...] = ()

    @property
    def key(self) -> str:
        """Name and seed: its work folder, and what ``--only`` matches."""
        return f'{self.name}/seed{self.seed}'


# The last checkpoint is the one that counts: a best one, chosen by the files
# that are then reported on, would flatter.
LAST_ONLY = {
    'default_hooks.checkpoint.save_best': None,
    # The host drops the oldest before it writes the next: with one alone, a
    # run that is killed in between would have to begin again.
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}


def twin(dataset: str, attention: str, **changes: Any) -> Run:
    """The run of a set's config with one of the attention layers."""
    return Run(
        name=changes.pop('name', f'{dataset}/{attention}'),
        dataset=dataset,
        attention=attention,
        config=CONFIGS[dataset].format(ATTENTIONS[attention]),
        **changes)


# -- full: needs a GPU -------------------------------------------------------

_AMP = dict(
    amp=True,
    train_options={
        **LAST_ONLY,
        'optim_wrapper.dtype': 'bfloat16',
        'train_dataloader.num_workers': 8,
    })
_CELLS = 'model.backbone.attn'
_HIERARCHICAL = {
    f'{_CELLS}.summaries.type': 'hierarchical',
    f'{_CELLS}.summaries.shared': True,
}
# What changes in FMA with cells of 4, rank 1, averages and mass.
ABLATIONS: Dict[str, Dict[str, Any]] = {
    'cell-2': {
        f'{_CELLS}.cell_size': 2
    },
    'cell-8': {
        f'{_CELLS}.cell_size': 8
    },
    'rank-2': {
        f'{_CELLS}.rank': 2
    },
    'rank-4': {
        f'{_CELLS}.rank': 4
    },
    'levels-1': {
        f'{_CELLS}.num_levels': 1
    },
    'mass-off': {
        f'{_CELLS}.mass': False
    },
    'summaries-grouped_conv': {
        f'{_CELLS}.summaries': 'grouped_conv'
    },
    'summaries-conv': {
        f'{_CELLS}.summaries': 'conv'
    },
    'summaries-hierarchical': {
        f'{_CELLS}.summaries': 'hierarchical'
    },
    'summaries-hierarchical-shared': _HIERARCHICAL,
    'pool-queries-learned': {
        f'{_CELLS}.summaries': 'hierarchical',
        f'{_CELLS}.pool_queries': 'learned'
    },
    'position-none': {
        'model.backbone.position': 'none'
    },
    'position-rotary': {
        'model.backbone.position': 'none',
        f'{_CELLS}.positions': 'rotary'
    },
    'position-relative': {
        'model.backbone.position': 'none',
        f'{_CELLS}.positions': 'relative'
    },
    'position-absolute': {
        'model.backbone.position.type': 'AbsolutePosition',
        'model.backbone.position.size': 32
    },
}

_BOOKS = {
    'books/{}-1k': 'configs/lm/{}-lm_1xb32-20k_books-1k.py',
    'books/{}-4k': 'configs/lm/{}-lm_1xb8-20k_books-4k.py',
    'books/{}-masked-1k': 'configs/lm/{}-lm-masked_1xb32-20k_books-1k.py',
}


def _books() -> List[Run]:
    runs = [
        Run(
            name.format(attention), 'books', attention,
            config.format(attention), **_AMP)
        for name, config in _BOOKS.items()
        for attention in ('fma', 'full', 'fmmformer')
    ]
    masked = _BOOKS['books/{}-masked-1k'].format('fma')
    return runs + [
        Run('books/fma_linear-masked-1k',
            'books',
            'fma_linear',
            masked,
            options={'model.net.attn.pool_queries': True},
            **_AMP),
        Run('books/fma-avg-1k',
            'books',
            'fma',
            _BOOKS['books/{}-1k'].format('fma'),
            options={'model.net.attn.summaries': 'avg'},
            **_AMP),
    ]


def full() -> List[Run]:
    """The whole protocol, the first seed of everything first."""
    scales = {'fma': (1, 2, 4), 'window': (1, 2, 4)}
    runs = []
    for dataset in CONFIGS:
        segments = TASKS[dataset] == 'segmentation'
        for attention in ATTENTIONS:
            runs.append(
                twin(
                    dataset,
                    attention,
                    scales=scales.get(attention, ()) if segments else (),
                    **_AMP))
        if segments:
            runs.append(
                twin(
                    dataset,
                    'fma',
                    name=f'{dataset}/fma-hierarchical',
                    options=_HIERARCHICAL,
                    scales=(1, 2, 4),
                    **_AMP))
            runs += [
                twin(
                    dataset,
                    attention,
                    name=f'{dataset}/{attention}-pretrained',
                    start=f'tiny_imagenet100/{attention}',
                    **_AMP) for attention in ATTENTIONS
            ]
    runs += _books()
    runs += [
        twin(
            'cifar10',
            'fma',
            name=f'ablations/{name}',
            options=options,
            **_AMP) for name, options in ABLATIONS.items()
    ]
    return runs + [
        replace(run, seed=seed) for seed in (1, 2)
        for run in runs if run.name in [
            f'{dataset}/{attention}' for attention in HEADLINE
            for dataset in ('tiny_imagenet100', 'camvid')
        ]
    ]


# -- reduced: a CPU, minutes a run -------------------------------------------


def by_iterations(iterations: int, warmup: int) -> Dict[str, Any]:
    """Options that let a config counted in epochs count iterations."""
    return {
        'train_cfg._delete_': True,
        'train_cfg.type': 'IterBasedTrainLoop',
        'train_cfg.max_iters': iterations,
        'param_scheduler.0.by_epoch': False,
        'param_scheduler.0.convert_to_iter_based': False,
        'param_scheduler.0.end': warmup,
        'param_scheduler.1.by_epoch': False,
        'param_scheduler.1.convert_to_iter_based': False,
        'param_scheduler.1.begin': warmup,
        'log_processor.by_epoch': False,
        'default_hooks.logger.interval': 10,
        'default_hooks.logger.log_metric_by_epoch': False,
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': max(iterations // 5, 1),
    }


# Batches of 32, 300 of them, no mixing of images: a fifth of an epoch. It
# shows that every part works and which layers learn fast, no more.
_REDUCED = {
    **LAST_ONLY,
    **by_iterations(iterations=300, warmup=30),
    # The test that comes after is enough.
    'val_cfg':
    None,
    'val_dataloader':
    None,
    'val_evaluator':
    None,
    'train_dataloader.batch_size':
    32,
    'train_dataloader.num_workers':
    0,
    'train_dataloader.persistent_workers':
    False,
    'model.train_cfg':
    None,
}
_REDUCED_TEST = {
    'test_dataloader.num_workers': 0,
    'test_dataloader.persistent_workers': False,
}


def reduced() -> List[Run]:
    """Every attention layer on CIFAR-10 at 32 x 32 tokens, one seed."""
    return [
        twin(
            'cifar10',
            attention,
            options=_REDUCED_TEST,
            train_options=_REDUCED) for attention in ATTENTIONS
    ]


PROTOCOLS = {'full': full, 'reduced': reduced}
