"""The runs of the experiments: plain data.

A run is a config, a seed and options that `tools/train.py --cfg-options`
takes. Names are stable, because results and work folders go by them:
``<dataset>/<attention>`` for a comparison, ``<dataset>/<attention>-<what>``
where something else differs, ``ablations/<what>`` for FMA on CIFAR-10.
"""
import json
from dataclasses import asdict, dataclass, field, replace
from functools import partial
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
# For --protocol full.
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
# For --protocol reduced: minutes a run on one CPU core.
REDUCED_CONFIGS = {
    'tiny_imagenet100':
    'configs/tiny_imagenet100/{}-nano-p4_1xb64-1k_tiny-in100-64px.py',
    'cifar10':
    'configs/cifar10/{}-nano-p2_1xb64-300_cifar10-32px.py',
    'camvid':
    'configs/camvid/{}-nano_fpn_1xb4-400_camvid-240x320.py',
    'dubai_aerial':
    'configs/dubai_aerial/{}-nano_fpn_1xb4-200_dubai-aerial-256x256.py',
}
# The comparisons that the README leads with are of these.
HEADLINE = ('fma', 'fma-rotary', 'fma_linear', 'window', 'full')
# Whole images at these multiples of the size that a config tests at.
SCALES = (1, 2, 4)
# Attention layers that are tested at all of them.
AT_SCALES = ('fma', 'window')


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

    def note(self, protocol: str) -> Dict[str, Any]:
        """What is written into the work folder: the settings, as JSON."""
        return dict(protocol=protocol, **json.loads(json.dumps(asdict(self))))

    def changed(self, protocol: str, note: Mapping[str, Any]) -> List[str]:
        """In what a folder's note is of another run than this one."""
        # Scales are only looked at after the training.
        return sorted(key for key, value in self.note(protocol).items()
                      if key != 'scales' and value != note.get(key))


# The last checkpoint is the one that counts: a best one, chosen by the files
# that are then reported on, would flatter.
LAST_ONLY = {
    'default_hooks.checkpoint.save_best': None,
    # The host drops the oldest before it writes the next: with one alone, a
    # run that is killed in between would have to begin again.
    'default_hooks.checkpoint.max_keep_ckpts': 2,
}


def twin(configs: Mapping[str, str],
         dataset: str,
         attention: str,
         what: str = '',
         **changes: Any) -> Run:
    """The run of a set's config with one of the attention layers.

    Args:
        configs: ``CONFIGS`` or ``REDUCED_CONFIGS``.
        dataset, attention: See :class:`Run`.
        what: Ends the name, where something else differs.
        **changes: Of the run.
    """
    config = configs[dataset].format(ATTENTIONS[attention])
    return Run(f'{dataset}/{attention}{what}', dataset, attention, config,
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
_RELATIVE = {f'{_CELLS}.positions': 'relative'}
_ROTARY = {f'{_CELLS}.positions': 'rotary'}
_SLOPES = {**_RELATIVE, f'{_CELLS}.relative_slope': 1.}
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
        **_ROTARY
    },
    'position-relative': {
        'model.backbone.position': 'none',
        **_RELATIVE
    },
    'slopes': _SLOPES,
    'rotary': _ROTARY,
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
    run = partial(twin, CONFIGS, **_AMP)
    runs = []
    for dataset in CONFIGS:
        if TASKS[dataset] == 'classification':
            runs += [run(dataset, attention) for attention in ATTENTIONS]
            continue
        runs += [
            run(dataset,
                attention,
                scales=SCALES if attention in AT_SCALES else ())
            for attention in ATTENTIONS
        ]
        runs.append(
            run(dataset,
                'fma',
                '-hierarchical',
                options=_HIERARCHICAL,
                scales=SCALES))
        runs += [
            run(dataset,
                attention,
                '-pretrained',
                start=f'tiny_imagenet100/{attention}')
            for attention in ATTENTIONS
        ]
    for attention in ('fma', 'window', 'full'):
        runs += [
            run(dataset, attention, '-rotary', options=_ROTARY)
            for dataset in ('tiny_imagenet100', 'camvid')
        ]
        runs.append(
            run('camvid',
                attention,
                '-rotary-pretrained',
                options=_ROTARY,
                start=f'tiny_imagenet100/{attention}-rotary'))
    runs += _books()
    runs += [
        replace(
            run('cifar10', 'fma', options=options), name=f'ablations/{name}')
        for name, options in ABLATIONS.items()
    ]
    return runs + [
        replace(run, seed=seed) for seed in (1, 2)
        for run in runs if run.name in [
            f'{dataset}/{name}' for name in HEADLINE
            for dataset in ('tiny_imagenet100', 'camvid')
        ]
    ]


# -- reduced: a CPU, minutes a run -------------------------------------------


def _short(**options: Any) -> Dict[str, Any]:
    """How runs of minutes train, with changes of the training."""
    given = {**LAST_ONLY, 'optim_wrapper.dtype': 'bfloat16', **options}
    return dict(amp=True, train_options=given)


_REDUCED = _short()
# The full protocol's texts of 4,096 characters and hidden characters, for the
# small model; 2.0 million characters are seen in each.
_4K = {
    f'{part}_dataloader.{key}': value
    for part in ('train', 'val', 'test')
    for key, value in (('batch_size', 1), ('dataset.length', 4096))
}
# Every twentieth window while training, as at 1,024 characters.
_4K['val_dataloader.dataset.samples'] = 16
_MASKED = {
    # One more than there are bytes: the mask.
    'model.net.vocab_size': 257,
    'model.net.causal': False,
    'model.net.head.objective': 'masked',
    'model.net.head.mask_ratio': 0.15,
}

_THREE_SEEDS = (
    'tiny_imagenet100/fma',
    'tiny_imagenet100/fma-rotary',
    'tiny_imagenet100/window',
    'camvid/fma-pretrained',
    'camvid/window-pretrained',
    'camvid/fma-long-pretrained',
    'camvid/fma-rotary-long-pretrained',
    'camvid/window-long-pretrained',
    'dubai_aerial/fma-pretrained',
    'dubai_aerial/window-pretrained',
)

# Where classification leaves the layers alike: milder augmentation.
_MILD = {
    'tiny_imagenet100':
    'configs/tiny_imagenet100/{}-nano-p4_1xb64-1k-mild_tiny-in100-64px.py',
}


def _long(attention: str, what: str = '', **changes: Any) -> Run:
    """CamVid for longer: 400 iterations decide by chance what is found."""
    return twin(
        REDUCED_CONFIGS,
        'camvid',
        attention,
        f'{what}-long-pretrained',
        start=f'tiny_imagenet100/{attention}{what}',
        **_short(**{'train_cfg.max_iters': 1000}),
        **changes)


def _tried() -> List[Run]:
    """Changes of FMA and of its training, tried where it is not ahead.

    And the floor: windows of one token, which is no attention at all.
    """
    runs = []
    for attention in ('fma', 'window'):
        mild = partial(twin, _MILD, 'tiny_imagenet100', attention, **_REDUCED)
        runs += [
            mild('-mild'),
            # 32 x 32 tokens, as in the full protocol.
            mild('-mild-p2', options={'model.backbone.patch_size': 2})
        ]
    run = partial(twin, REDUCED_CONFIGS, 'tiny_imagenet100')
    runs += [
        run(
            attention, f'-250-lr{rate:g}',
            **_short(**{
                'train_cfg.max_iters': 250,
                'optim_wrapper.optimizer.lr': rate
            })) for attention in ('fma', 'window')
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    alone = {f'{_CELLS}.window_size': 1}
    runs += [
        run('window', '-alone', options=alone, **_REDUCED),
        twin(
            REDUCED_CONFIGS,
            'cifar10',
            'window',
            '-alone',
            options=alone,
            **_REDUCED),
        _long('window', '-alone', options=alone),
    ]
    changes = {
        '-slopes': _SLOPES,
        '-hierarchical': ABLATIONS['summaries-hierarchical'],
        # As the twin's windows have.
        '-relative': _RELATIVE,
    }
    runs += [
        run('fma', what, options=options, **_REDUCED)
        for what, options in changes.items()
    ]
    runs.append(
        Run(
            'tiny_imagenet100/fma-rotary', 'tiny_imagenet100', 'fma',
            'configs/tiny_imagenet100/'
            'fma-nano-rotary-p4_1xb64-1k_tiny-in100-64px.py', **_REDUCED))
    slopes, rotary = (
        Run(f'camvid/fma-{what}-long-pretrained',
            'camvid',
            'fma',
            f'configs/camvid/fma-nano-{what}_fpn_1xb4-1k_camvid-240x320.py',
            start=f'tiny_imagenet100/fma-{what}',
            **_REDUCED) for what in ('slopes', 'rotary'))
    runs += [slopes, rotary]
    # Four times as long, where attention has more to tell, and CamVid from it.
    runs += [
        Run(
            'tiny_imagenet100/fma-rotary-mild-long', 'tiny_imagenet100', 'fma',
            'configs/tiny_imagenet100/'
            'fma-nano-rotary-p4_1xb64-4k-mild_tiny-in100-64px.py', **_REDUCED),
        twin(_MILD, 'tiny_imagenet100', 'window', '-mild-long',
             **_short(**{'train_cfg.max_iters': 4000})),
    ]
    runs += [
        replace(
            short,
            name=short.name.replace('-long-', '-long-mild-'),
            start=f'{short.start}-mild-long')
        for short in (rotary, _long('window'))
    ]
    # Is it FMA, or is it the positions?
    runs += [
        twin(
            REDUCED_CONFIGS,
            dataset,
            attention,
            '-rotary',
            options=_ROTARY,
            **_REDUCED) for dataset in ('tiny_imagenet100', 'cifar10')
        for attention in ('window', 'full')
    ]
    runs.append(_long('window', '-rotary', options=_ROTARY))
    return runs + [
        twin(
            REDUCED_CONFIGS,
            dataset,
            'fma',
            '-mass-off-pretrained',
            options=ABLATIONS['mass-off'],
            start='tiny_imagenet100/fma',
            **_REDUCED) for dataset in ('camvid', 'dubai_aerial')
    ]


def _reduced_books() -> List[Run]:

    def run(attention: str, what: str, steps: int, **options: Any) -> Run:
        return Run(
            f'books/{attention}-{what}',
            'books',
            attention,
            f'configs/lm/{attention}-lm-nano_1xb2-3k_books-1k.py',
            options=options,
            train_options={
                **LAST_ONLY, 'train_cfg.max_iters': steps
            })

    layers = ('fma', 'full', 'fmmformer')
    masked = [run(layer, 'masked-1k', 1000, **_MASKED) for layer in layers]
    pooled = {**_MASKED, 'model.net.attn.pool_queries': True}
    return [
        *(run(layer, '1k', 1000) for layer in layers),
        run('fma', 'avg-1k', 1000, **{'model.net.attn.summaries': 'avg'}),
        *masked,
        replace(
            masked[0],
            name='books/fma_linear-masked-1k',
            attention='fma_linear',
            options=pooled),
        *(run(layer, '4k', 500, **_4K) for layer in layers),
    ]


def reduced() -> List[Run]:
    """Every attention layer on every set, in minutes a run."""
    run = partial(twin, REDUCED_CONFIGS, **_REDUCED)
    runs = [
        run(dataset, attention) for dataset in ('tiny_imagenet100', 'cifar10')
        for attention in ATTENTIONS
    ]
    runs += [
        run(dataset,
            attention,
            '-pretrained',
            start=f'tiny_imagenet100/{attention}',
            scales=SCALES if attention in AT_SCALES else ())
        for dataset in ('camvid', 'dubai_aerial') for attention in ATTENTIONS
    ]
    runs += [run('camvid', attention) for attention in ('fma', 'window')]
    runs += [
        run(dataset,
            'fma',
            '-hierarchical-pretrained',
            options=_HIERARCHICAL,
            start='tiny_imagenet100/fma',
            scales=SCALES) for dataset in ('camvid', 'dubai_aerial')
    ]
    runs.append(
        run('camvid',
            'fma',
            '-relative-pretrained',
            options=_RELATIVE,
            start='tiny_imagenet100/fma'))
    runs += [_long(attention) for attention in ('fma', 'window')]
    runs += _reduced_books()
    runs += [
        replace(
            run('cifar10', 'fma', options=options), name=f'ablations/{name}')
        for name, options in ABLATIONS.items()
    ]
    runs += _tried()
    return runs + [
        replace(run, seed=seed, scales=()) for seed in (1, 2)
        for run in runs if run.name in _THREE_SEEDS
    ]


PROTOCOLS = {'full': full, 'reduced': reduced}
