"""The runs of the experiments: plain data, read from full.yml and reduced.yml.

A run is a config, an attention layer to put into it, a seed, and options that
`tools/train.py --cfg-options` takes. Names are stable, because results and
work folders go by them: ``<dataset>/<attention>`` for a comparison,
``<dataset>/<attention>-<what>`` where something else differs,
``ablations/<what>`` for FMA on CIFAR-10.

An entry of ``runs`` is one run for each of its ``attentions`` (all by
default): ``{}`` in ``name`` and ``start`` becomes the attention. ``seeds``
says how many seeds an attention has, 1 by default, ``scales`` which of them
are tested at several sizes. ``options`` hold in training and test,
``train_options`` in training only. ``start`` is a run of the same seed.
"""
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

import yaml

# Attention layers in the results, and the part that puts each into a config,
# which has FMA by itself.
ATTENTIONS = {
    'fma': None,
    **{
        name: f'configs/_base_/attention/{name}.py'
        for name in ('fma_linear', 'window', 'full', 'mano', 'fmmformer')
    }
}
# Whole images at these multiples of the size that a config tests at.
SCALES = (1, 2, 4)
FILES = {path.stem: path for path in Path(__file__).parent.glob('*.yml')}


@dataclass(frozen=True)
class Run:
    """One training and its test; see the module."""
    name: str
    dataset: str
    attention: str
    config: str
    base: Optional[str] = None  # the attention's part, for --base
    seed: int = 0  # of weights and data order
    options: Mapping[str, Any] = field(default_factory=dict)
    train_options: Mapping[str, Any] = field(default_factory=dict)
    amp: bool = False
    start: Optional[str] = None  # the run whose backbone this one starts from
    scales: Tuple[int, ...] = ()  # multiples of the config's size to test at

    @property
    def model(self) -> List[str]:
        """The config and its part, for a command."""
        return [self.config, *(['--base', self.base] if self.base else [])]

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


def expand(entry: Dict[str, Any], seed: int) -> List[Run]:
    """The runs of an entry that have a seed."""
    seeds, scaled = entry.get('seeds', {}), entry.get('scales', ())
    same = {
        k: entry[k]
        for k in ('config', 'options', 'train_options', 'amp') if k in entry
    }
    return [
        Run(entry['name'].format(attention),
            entry['name'].partition('/')[0],
            attention,
            base=ATTENTIONS[attention],
            seed=seed,
            start=entry.get('start', '').format(attention) or None,
            scales=SCALES if attention in scaled and not seed else (),
            **same) for attention in entry.get('attentions', ATTENTIONS)
        if seed < seeds.get(attention, 1)
    ]


def read(protocol: str) -> List[Run]:
    """The runs of a protocol, the first seed of everything first."""
    content = yaml.safe_load(FILES[protocol].read_text(encoding='utf-8'))
    base = dict(content['ablations'], name='cifar10/{}', attentions=['fma'])
    changed = [
        replace(run, name=f'ablations/{name}')
        for name, options in base.pop('changes').items()
        for run in expand(dict(base, options=options), 0)
    ]
    return [
        *(run for entry in content['runs'] for run in expand(entry, 0)),
        *changed, *(run for seed in (1, 2) for entry in content['runs']
                    for run in expand(entry, seed))
    ]
