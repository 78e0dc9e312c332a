"""One run, as data, and what all runs have in common."""
import json
from dataclasses import asdict, dataclass, field
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
# Whole images at these multiples of the size that a config tests at.
SCALES = (1, 2, 4)
# Attention layers that are tested at all of them.
AT_SCALES = ('fma', 'window')


@dataclass(frozen=True)
class Run:
    """One training and its test.

    Attributes:
        name: Without the seed; see :mod:`protocol`.
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
        configs: By set, with a place for the name of the attention.
        dataset, attention: See :class:`Run`.
        what: Ends the name, where something else differs.
        **changes: Of the run.
    """
    config = configs[dataset].format(ATTENTIONS[attention])
    return Run(f'{dataset}/{attention}{what}', dataset, attention, config,
               **changes)
