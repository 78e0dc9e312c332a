"""The runs of the experiments: plain data.

A run is a config, a seed and options that `tools/train.py --cfg-options`
takes. Names are stable, because results and work folders go by them:
``<dataset>/<attention>`` for a comparison, ``<dataset>/<attention>-<what>``
where something else differs, ``ablations/<what>`` for FMA on CIFAR-10.
"""
from . import full, reduced
from .run import ATTENTIONS, LAST_ONLY, TASKS, Run

__all__ = ['ATTENTIONS', 'LAST_ONLY', 'PROTOCOLS', 'TASKS', 'Run']

PROTOCOLS = {'full': full.runs, 'reduced': reduced.runs}
