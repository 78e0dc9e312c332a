"""The reduced protocol: minutes a run on one CPU core."""
from dataclasses import replace
from functools import partial
from typing import Any, Dict, List

from .changes import ABLATIONS, ATTN, HIERARCHICAL, RELATIVE, ROTARY, SLOPES
from .run import AT_SCALES, ATTENTIONS, LAST_ONLY, SCALES, Run, twin

CONFIGS = {
    'tiny_imagenet100':
    'configs/tiny_imagenet100/{}-nano-p4_1xb64-1k_tiny-in100-64px.py',
    'cifar10':
    'configs/cifar10/{}-nano-p2_1xb64-300_cifar10-32px.py',
    'camvid':
    'configs/camvid/{}-nano_fpn_1xb4-400_camvid-240x320.py',
    'dubai_aerial':
    'configs/dubai_aerial/{}-nano_fpn_1xb4-200_dubai-aerial-256x256.py',
}


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

# Maps of 16 x 16 tokens have one level at most, so that there is nothing to
# share between levels.
_ABLATIONS = {
    name: options
    for name, options in ABLATIONS.items()
    if name != 'summaries-hierarchical-shared'
}
_ABLATIONS['position-absolute'] = {
    **ABLATIONS['position-absolute'], 'model.backbone.position.size': 16
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
        CONFIGS,
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
    run = partial(twin, CONFIGS, 'tiny_imagenet100')
    runs += [
        run(
            attention, f'-250-lr{rate:g}',
            **_short(**{
                'train_cfg.max_iters': 250,
                'optim_wrapper.optimizer.lr': rate
            })) for attention in ('fma', 'window')
        for rate in (3e-4, 1e-3, 3e-3)
    ]
    alone = {f'{ATTN}.window_size': 1}
    runs += [
        twin(CONFIGS, dataset, 'window', '-alone', options=alone, **_REDUCED)
        for dataset in ('tiny_imagenet100', 'cifar10')
    ]
    runs.append(_long('window', '-alone', options=alone))
    changes = {
        '-slopes': SLOPES,
        '-hierarchical': ABLATIONS['summaries-hierarchical'],
        # As the twin's windows have.
        '-relative': RELATIVE,
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
            CONFIGS, dataset, attention, '-rotary', options=ROTARY, **_REDUCED)
        for dataset in ('tiny_imagenet100', 'cifar10')
        for attention in ('window', 'full')
    ]
    runs.append(_long('window', '-rotary', options=ROTARY))
    return runs + [
        twin(
            CONFIGS,
            dataset,
            'fma',
            '-mass-off-pretrained',
            options=ABLATIONS['mass-off'],
            start='tiny_imagenet100/fma',
            **_REDUCED) for dataset in ('camvid', 'dubai_aerial')
    ]


def _books() -> List[Run]:

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


def runs() -> List[Run]:
    """Every attention layer on every set, in minutes a run."""
    run = partial(twin, CONFIGS, **_REDUCED)
    found = [
        run(dataset, attention) for dataset in ('tiny_imagenet100', 'cifar10')
        for attention in ATTENTIONS
    ]
    found += [
        run(dataset,
            attention,
            '-pretrained',
            start=f'tiny_imagenet100/{attention}',
            scales=SCALES if attention in AT_SCALES else ())
        for dataset in ('camvid', 'dubai_aerial') for attention in ATTENTIONS
    ]
    found += [run('camvid', attention) for attention in ('fma', 'window')]
    found += [
        run(dataset,
            'fma',
            '-hierarchical-pretrained',
            options=HIERARCHICAL,
            start='tiny_imagenet100/fma',
            scales=SCALES) for dataset in ('camvid', 'dubai_aerial')
    ]
    found.append(
        run('camvid',
            'fma',
            '-relative-pretrained',
            options=RELATIVE,
            start='tiny_imagenet100/fma'))
    found += [_long(attention) for attention in ('fma', 'window')]
    found += _books()
    found += [
        replace(
            run('cifar10', 'fma', options=options), name=f'ablations/{name}')
        for name, options in _ABLATIONS.items()
    ]
    found += _tried()
    return found + [
        replace(run, seed=seed, scales=()) for seed in (1, 2)
        for run in found if run.name in _THREE_SEEDS
    ]
