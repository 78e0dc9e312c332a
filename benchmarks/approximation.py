#!/usr/bin/env python
"""How near cheap attentions come to full attention, and how long they take.

One attention layer's worth of queries, keys and values from two middle layers
of a trained language model, and a set with one distant needle for each head;
float64 softmax attention is the truth. Train the model, then run::

    python tools/train.py configs/lm/full-lm-nano-4h_1xb2-3k_books-1k.py
    python tools/train.py configs/lm/full-lm-nano-4h_1xb1-40_books-16k.py
    python tools/analysis_tools/compare_approximation.py
    python benchmarks/tables.py

`--no-timing` for errors alone. What is timed is the attention on given
queries, keys and values, without projections, each method in the layout that
it takes; all of them in turns, in one process. Other methods get queries and
keys that are rotated by their positions, as full attention does; FMA pools
keys before the rotation and turns the means to the centres of their cells, as
its layer does. Weights of a method that has some are fitted, and the form of
FMA is chosen, on one piece of text; errors are those on another piece.

Nothing is measured before each method has been checked against a definition
of its own. `pip install -e '.[compare]'` brings the other methods; one that
is missing costs its rows alone.
"""

import argparse
import math
import statistics
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

if __name__ == '__main__':  # so that a checkout works without installing it
    _ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(_ROOT), str(_ROOT / 'kernels')]

import matplotlib
import torch
from approximation import fma_forms
from approximation.measure import errors, full_attention, recovered
from approximation.method import Call, Method
from approximation.rivals import (CHECKS, PACKAGES, check_references,
                                  references, rivals)
from approximation.subjects import (Subject, capture, hide_needle,
                                    middle_layers, read_pieces)
from torch import Tensor, nn

from fma_vision.engine import (UserError, check_weights, read_checkpoint,
                               run_tool, select_state_dict)
from fma_vision.utils.configs import (build_model, load_model_config,
                                      training_size)
from fma_vision.utils.environment import collect_environment
from fma_vision.utils.files import write_json
from fma_vision.utils.timing import peak_memory, summarise, time_interleaved

matplotlib.use('Agg')
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NAME = 'full-lm-nano-4h_1xb1-40_books-16k'
RESULT = ROOT / 'benchmarks/results/approximation_cpu.json'
PICTURE = ROOT / 'docs/assets/approximation.png'
MODES = dict(causal=True, bidirectional=False)
# Of a float32 output against its definition, on a short piece.
TOLERANCE = 1e-3
# Errors below are those of rounding.
EXACT = 1e-4
BUDGET = ('median over the other families of the time of their fastest '
          'setting')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Errors and times of approximations of full attention')
    parser.add_argument(
        '--config',
        default=f'configs/lm/{NAME}.py',
        help='language model on full attention (default: %(default)s)')
    parser.add_argument(
        '--checkpoint',
        default=f'work_dirs/{NAME}/iter_40.pth',
        help='its weights (default: %(default)s)')
    parser.add_argument(
        '--text',
        type=Path,
        default=Path('data/books/valid.txt'),
        help='bytes to read (default: %(default)s)')
    parser.add_argument(
        '--length',
        type=int,
        default=16384,
        help='tokens, a power of two from 512 (default: %(default)s)')
    parser.add_argument(
        '--layers',
        type=int,
        nargs='+',
        help='blocks to read (default: the two in the middle)')
    parser.add_argument(
        '--modes', nargs='+', choices=MODES, default=list(MODES))
    parser.add_argument(
        '--draws',
        type=int,
        default=2,
        help='seeds of random methods (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument(
        '--repeats',
        type=int,
        default=5,
        help='samples of each time (default: %(default)s)')
    parser.add_argument(
        '--no-timing', action='store_true', help='errors alone')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=RESULT)
    parser.add_argument('--plot', type=Path, default=PICTURE)
    args = parser.parse_args(argv)
    # H-Transformer-1D halves it down to four blocks of 128.
    if args.length < 512 or args.length & (args.length - 1):
        parser.error('--length must be a power of two and at least 512, got '
                     f'{args.length}')
    if min(args.draws, args.repeats) < 1:
        parser.error('--draws and --repeats must be at least 1, got '
                     f'{args.draws} and {args.repeats}')
    return args


def build(config: str, checkpoint: str) -> Tuple[nn.Module, Dict[str, Any]]:
    """The language model in evaluation mode, and how it was trained.

    Args:
        config: Its config.
        checkpoint: Its weights.

    Raises:
        UserError: They cannot be read or do not fit.
    """
    cfg = load_model_config(config)
    model = build_model(cfg)
    if not hasattr(getattr(model, 'net', None), 'blocks'):
        raise UserError(f'{config} describes no language model')
    content = read_checkpoint(checkpoint)
    state = select_state_dict(content, checkpoint)
    check_weights(model, state, checkpoint)
    model.load_state_dict(state)
    size = training_size(cfg)
    return model.net, dict(
        config=config,
        checkpoint=checkpoint,
        iterations=content.get('meta', {}).get('iter'),
        training_length=size and size[0],
        started_from=cfg.get('load_from'))


def check(methods: List[Method], heads: int,
          head_dim: int) -> Dict[str, Dict[str, float]]:
    """Every method against a definition of its own, at a small size.

    Returns:
        Largest absolute differences, by family or form of FMA.

    Raises:
        UserError: One is more than rounding.
    """
    families = {method.family for method in methods}
    found = dict(references=check_references(heads, head_dim))
    for family, run in CHECKS.items():
        if family in families:
            found[family] = run(heads, head_dim)
    for method in methods:
        if method.family == fma_forms.FAMILY:
            found[f'{method.family} {method.name}'] = fma_forms.check(
                method, head_dim)
    for name, differences in found.items():
        if not all(x <= TOLERANCE for x in differences.values()):
            raise UserError(f'{name} differs from its definition: '
                            f'{differences}; nothing was measured')
    return found


class Trial:
    """All methods in one mode.

    Args:
        causal: The mode.
        pieces: Two subjects from texts: to fit and choose on, to report on.
        needles: Two with a needle, likewise.
    """

    def __init__(self, causal: bool, pieces: List[Subject],
                 needles: List[Subject]) -> None:
        self.causal = causal
        self.sets = dict(real=pieces, needle=needles)
        self.exact = {
            name: [self._full(subject) for subject in subjects]
            for name, subjects in self.sets.items()
        }

    def _full(self, subject: Subject) -> Tensor:
        return full_attention(subject.query, subject.key, subject.value,
                              self.causal)

    def _fitted(self, method: Method, name: str) -> Any:
        if method.fit is None:
            return None
        return method.fit(self.sets[name][0], self.exact[name][0], self.causal)

    def _errors(self, method: Method, name: str, index: int) -> Dict[str, Any]:
        """Errors on one subject, means over the draws."""
        subject, exact = self.sets[name][index], self.exact[name][index]
        fitted = self._fitted(method, name)
        found = []
        for seed in range(method.draws):
            given = seed if method.draws > 1 else fitted
            out = method.prepare(subject, self.causal, given)()
            if not torch.isfinite(out).all():
                raise UserError(f'{method.family} {method.name} is not '
                                f'finite on the {name} set')
            found.append(errors(out, exact))
            if subject.needle is not None:
                found[-1]['recovered'] = recovered(out, exact, subject.needle)
        heads = [sum(x) / len(x) for x in zip(*(e['heads'] for e in found))]
        row = {
            key: statistics.fmean(e[key] for e in found)
            for key in found[0] if key != 'heads'
        }
        if method.draws > 1:
            row['spread'] = statistics.stdev(e['mean'] for e in found)
        return dict(row, heads=heads)

    def row(self, method: Method) -> Dict[str, Any]:
        """All errors of a method."""
        return dict(
            family=method.family,
            name=method.name,
            settings=method.settings,
            note=method.note,
            reference=method.reference,
            draws=method.draws,
            choice=self._errors(method, 'real', 0)
            if method.family == fma_forms.FAMILY else None,
            real=self._errors(method, 'real', 1),
            needle=self._errors(method, 'needle', 1))

    def call(self, method: Method) -> Call:
        """What is timed: the method on the piece that is reported."""
        return method.prepare(self.sets['real'][1], self.causal,
                              self._fitted(method, 'real'))


def measure_times(calls: Dict[str, Call], rows: List[Dict[str, Any]],
                  repeats: int) -> None:
    """Adds ``seconds`` and ``peak_bytes`` to rows, in turns."""
    samples = time_interleaved(
        calls, repeats=repeats, warmup=1, least_seconds=.1)
    for row, (name, call) in zip(rows, calls.items()):
        row['seconds'] = summarise(samples[name])
        row['peak_bytes'] = peak_memory(call)


def verdict(rows: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Whether FMA is nearest at no more than the others' median time.

    The form of FMA is the best on the piece to choose on among those within
    the time that the layers offer (so none with the spread of keys); of the
    others, the nearest on the reported piece counts, whatever its time.
    """

    def seconds(row: Dict[str, Any]) -> float:
        return row['seconds']['median']

    others = [
        row for row in rows
        if not row['reference'] and row['family'] != fma_forms.FAMILY
    ]
    fastest: Dict[str, float] = {}
    for row in others:
        known = fastest.get(row['family'], math.inf)
        fastest[row['family']] = min(known, seconds(row))
    budget = statistics.median(fastest.values())
    forms = [
        row for row in rows if row['family'] == fma_forms.FAMILY
        and seconds(row) <= budget and not row['settings'].get('spread')
    ]
    nearest = min(others, key=lambda row: row['real']['mean'])
    found = dict(
        rule=BUDGET,
        fastest_seconds=fastest,
        budget_seconds=budget,
        median_of_all_settings_seconds=statistics.median(map(seconds, others)),
        nearest_other=f'{nearest["family"]}, {nearest["name"]}',
        nearest_other_error=nearest['real']['mean'],
        nearest_other_seconds=seconds(nearest),
        chosen=None,
        reached=False)
    if forms:
        best = min(forms, key=lambda row: row['choice']['mean'])
        found.update(
            chosen=best['name'],
            chosen_error=best['real']['mean'],
            chosen_seconds=seconds(best),
            reached=best['real']['mean'] < nearest['real']['mean'])
    return found


def versions() -> Dict[str, Optional[str]]:
    """Of the packages that hold the other methods."""
    found: Dict[str, Optional[str]] = {}
    for package in PACKAGES.values():
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


@torch.no_grad()
def compare(args: argparse.Namespace) -> Dict[str, Any]:
    """Measures what the command line names.

    Raises:
        UserError: Something cannot be read, or a method is wrong.
    """
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    net, model = build(args.config, args.checkpoint)
    layers = args.layers or middle_layers(net)
    texts = read_pieces(args.text, args.length, 2, args.seed)
    pieces = []
    for text in texts:
        subject, nats = capture(net, text['tokens'], text['targets'], layers)
        pieces.append(subject)
        text['bpc'] = nats / math.log(2) * args.length / text['characters']
    heads, head_dim = pieces[0].query.shape[2:]
    logit = math.log(args.length) + 5
    needles = [
        hide_needle(args.length, heads, head_dim, args.seed + i, logit)
        for i in range(2)
    ]
    others, missing = rivals(args.draws)
    for family, reason in missing.items():
        print(f'{family} is left out: {reason}', flush=True)
    methods = fma_forms.methods(args.length // 8) + others + references()
    checks = check(methods, heads, head_dim)
    modes = {}
    for mode in args.modes:
        trial = Trial(MODES[mode], pieces, needles)
        mine = [m for m in methods if MODES[mode] in m.modes]
        rows = []
        for method in mine:
            rows.append(trial.row(method))
            print(
                f'{mode}: {method.family}, {method.name}: '
                f'{rows[-1]["real"]["mean"]:.4f}',
                flush=True)
        modes[mode] = dict(rows=rows)
        if not args.no_timing:
            calls = {f'{m.family}, {m.name}': trial.call(m) for m in mine}
            measure_times(calls, rows, args.repeats)
            if others:
                modes[mode]['verdict'] = verdict(rows)
    return dict(
        environment=dict(
            collect_environment('cpu', args.seed), compared=versions()),
        model=dict(model, layers=list(layers)),
        setting=dict(
            length=args.length,
            heads=heads,
            head_dim=head_dim,
            batch=1,
            dtype='float32',
            text=str(args.text),
            choice=dict(start=texts[0]['start'], bpc=texts[0]['bpc']),
            report=dict(start=texts[1]['start'], bpc=texts[1]['bpc']),
            needle_logit=logit,
            needle_positions=needles[1].needle.positions,
            needle_first_query=needles[1].needle.first_query,
            repeats=None if args.no_timing else args.repeats),
        checks=checks,
        missing=missing,
        modes=modes)


def table(rows: List[Dict[str, Any]]) -> str:
    """Rows as lines of text."""
    lines = [
        f'{"error":>8}{"worst":>8}{"cosine":>8}{"needle":>8}{"found":>7}'
        f'{"ms":>8}{"MiB":>7}  method'
    ]
    for row in rows:
        real, needle = row['real'], row['needle']
        time = memory = '-'
        if 'seconds' in row:
            time = f'{row["seconds"]["median"] * 1e3:.0f}'
            memory = f'{row["peak_bytes"] / 2**20:.0f}'
        lines.append(f'{real["mean"]:>8.4f}{real["worst"]:>8.4f}'
                     f'{real["cosine"]:>8.3f}{needle["mean"]:>8.4f}'
                     f'{needle["recovered"]:>7.2f}{time:>8}{memory:>7}  '
                     f'{row["family"]}, {row["name"]}')
    return '\n'.join(lines)


def draw(record: Dict[str, Any], path: Path) -> None:
    """Error over time, one panel for each mode."""
    modes = record['modes']
    families = list(
        dict.fromkeys(row['family'] for part in modes.values()
                      for row in part['rows']))
    figure, axes = pyplot.subplots(
        1, len(modes), figsize=(6.5 * len(modes), 5), squeeze=False)
    for axis, (mode, part) in zip(axes[0], modes.items()):
        for number, family in enumerate(families):
            rows = [r for r in part['rows'] if r['family'] == family]
            style = dict(color=f'C{number}', label=family)
            if rows and max(r['real']['mean'] for r in rows) < EXACT:
                # No error has no place on a logarithmic axis.
                axis.axvline(rows[0]['seconds']['median'] * 1e3, **style)
            elif rows:
                axis.plot([r['seconds']['median'] * 1e3 for r in rows],
                          [r['real']['mean'] for r in rows],
                          'osD^vPX'[number % 7],
                          markersize=6 if family == fma_forms.FAMILY else 8,
                          **style)
        if 'verdict' in part:
            axis.axvline(
                part['verdict']['budget_seconds'] * 1e3,
                color='grey',
                linestyle=':',
                label='median time of the others')
        axis.set_xscale('log')
        axis.set_yscale('log')
        axis.set_xlabel('ms')
        axis.set_ylabel('relative error against full attention')
        axis.set_title(mode)
        axis.grid(alpha=.3, which='both')
        axis.spines[['top', 'right']].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    setting = record['setting']
    figure.suptitle(f'{setting["length"]:,} tokens, {setting["heads"]} heads '
                    f'of {setting["head_dim"]}, float32, '
                    f'{record["environment"]["cpu"]}, '
                    f'{record["environment"]["threads"]} threads')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    # About a version check and a deprecated import of the packages.
    warnings.filterwarnings('ignore', message='.*(distutils|torch.cuda.amp)')
    record = compare(args)
    for mode, part in record['modes'].items():
        print(f'\n{mode}\n{table(part["rows"])}')
        if 'verdict' in part:
            print(part['verdict'])
    write_json(args.out, record)
    if not args.no_timing:
        draw(record, args.plot)


if __name__ == '__main__':
    run_tool(main)
