"""The full protocol, which needs a GPU."""
from dataclasses import replace
from functools import partial
from typing import List

from .changes import ABLATIONS, HIERARCHICAL, ROTARY
from .run import AT_SCALES, ATTENTIONS, LAST_ONLY, SCALES, TASKS, Run, twin

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
# The comparisons that the README leads with are of these.
HEADLINE = ('fma', 'fma-rotary', 'fma_linear', 'window', 'full')
_AMP = dict(
    amp=True,
    train_options={
        **LAST_ONLY,
        'optim_wrapper.dtype': 'bfloat16',
        'train_dataloader.num_workers': 8,
    })

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


def runs() -> List[Run]:
    """The whole protocol, the first seed of everything first."""
    run = partial(twin, CONFIGS, **_AMP)
    found = []
    for dataset in CONFIGS:
        if TASKS[dataset] == 'classification':
            found += [run(dataset, attention) for attention in ATTENTIONS]
            continue
        found += [
            run(dataset,
                attention,
                scales=SCALES if attention in AT_SCALES else ())
            for attention in ATTENTIONS
        ]
        found.append(
            run(dataset,
                'fma',
                '-hierarchical',
                options=HIERARCHICAL,
                scales=SCALES))
        found += [
            run(dataset,
                attention,
                '-pretrained',
                start=f'tiny_imagenet100/{attention}')
            for attention in ATTENTIONS
        ]
    for attention in ('fma', 'window', 'full'):
        found += [
            run(dataset, attention, '-rotary', options=ROTARY)
            for dataset in ('tiny_imagenet100', 'camvid')
        ]
        found.append(
            run('camvid',
                attention,
                '-rotary-pretrained',
                options=ROTARY,
                start=f'tiny_imagenet100/{attention}-rotary'))
    found += _books()
    found += [
        replace(
            run('cifar10', 'fma', options=options), name=f'ablations/{name}')
        for name, options in ABLATIONS.items()
    ]
    return found + [
        replace(run, seed=seed) for seed in (1, 2)
        for run in found if run.name in [
            f'{dataset}/{name}' for name in HEADLINE
            for dataset in ('tiny_imagenet100', 'camvid')
        ]
    ]
