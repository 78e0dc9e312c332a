"""Draws what one query attends to: near tokens, and summaries by level.

    python demo/footprint.py                        # 64 x 64 tokens
    python demo/footprint.py --shape 32 32 --query 12 20 --rank 2
    python demo/footprint.py --shape 128 --query 90 --causal
    python demo/footprint.py --interactive          # click on a token
"""

import argparse
import sys
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from matplotlib import colormaps
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from fma_kernels.geometry import Footprint, Hierarchy, Summary

QUERY_COLOUR = '#111111'
NEAR_COLOUR = '#c51b4a'
GRID_COLOUR = '0.82'
# Hot and strong beside the query, cool and dark far away.
LEVEL_COLOURS = ('#f4854b', '#f6c85f', '#7cc9a2', '#3f97b7', '#5a56a5',
                 '#3b2a63')
MAX_DRAWN = 512  # tokens a side; more would be finer than the picture


class FootprintError(Exception):
    """Something a user can put right; its text is the one line shown."""


def level_colour(level: int) -> str:
    """The colour of a level, 1 being the finest."""
    if level <= len(LEVEL_COLOURS):
        return LEVEL_COLOURS[level - 1]
    return to_hex(colormaps['bone'](1 / (level - len(LEVEL_COLOURS) + 1.5)))


def on_level(footprint: Footprint, level: int) -> List[Summary]:
    """The summaries of one level."""
    return [s for s in footprint.far if s.level == level]


def times(sizes: Sequence[int]) -> str:
    """Sizes as a reader writes them: ``64 × 64``."""
    return ' × '.join(str(size) for size in sizes)


def headline(hierarchy: Hierarchy, footprint: Footprint) -> str:
    """What the query reads, against what full attention would read."""
    seen = len(footprint.near) + len(footprint.far)
    total = hierarchy.num_tokens
    if hierarchy.causal:
        total = footprint.query[0] + 1
    return (f'One query attends to {seen:,} keys instead of {total:,}: '
            f'{len(footprint.near):,} tokens and {len(footprint.far):,} '
            'summaries')


def legend_handles(hierarchy: Hierarchy, footprint: Footprint) -> List[Patch]:
    """One entry for the query, the near field and each level in use."""
    handles = [
        Patch(
            facecolor=QUERY_COLOUR,
            label=f'query {times(footprint.query).replace(" × ", ", ")}'),
        Patch(
            facecolor=NEAR_COLOUR,
            label=f'near field: {len(footprint.near)} tokens, one by one')
    ]
    for level, width in enumerate(hierarchy.widths, 1):
        count = len(on_level(footprint, level))
        side = times([width // hierarchy.rank] * hierarchy.ndim)
        tokens = 'token' if side == '1' else 'tokens'
        handles.append(
            Patch(
                facecolor=level_colour(level),
                label=f'level {level}: {count} summaries of {side} {tokens}'))
    return handles


def _boxes(corners: Sequence[Tuple[float, float, float, float]],
           **style: Any) -> PatchCollection:
    """Rectangles given as (x, y, width, height), drawn as one artist."""
    return PatchCollection([Rectangle((x, y), w, h) for x, y, w, h in corners],
                           **style)


def draw_2d(axes: Any, hierarchy: Hierarchy, footprint: Footprint) -> None:
    """Draws a footprint on an image grid, rows downwards."""
    rows, columns = hierarchy.shape
    # Thin enough that the smallest box still shows its colour.
    hair = min(0.5, 24 / max(rows, columns))
    for level in range(1, hierarchy.num_levels + 1):
        seen = on_level(footprint, level)
        boxes = [(s.start[1], s.start[0], s.stop[1] - s.start[1],
                  s.stop[0] - s.start[0]) for s in seen]
        axes.add_collection(
            _boxes(
                boxes,
                facecolor=level_colour(level),
                edgecolor='white',
                linewidth=0.8 + 0.25 * level))
        # A dot for what is read: one key and one value, however large.
        axes.scatter([x + w / 2 for x, _, w, _ in boxes],
                     [y + h / 2 for _, y, _, h in boxes],
                     s=3 + 3 * level,
                     color=QUERY_COLOUR,
                     alpha=0.55,
                     linewidths=0,
                     zorder=3)
    near = [(column, row, 1, 1) for row, column in footprint.near]
    axes.add_collection(
        _boxes(near, facecolor=NEAR_COLOUR, edgecolor='white', linewidth=hair))
    row, column = footprint.query
    axes.add_collection(
        _boxes([(column, row, 1, 1)],
               facecolor=QUERY_COLOUR,
               edgecolor='white',
               linewidth=hair,
               zorder=4))
    axes.add_collection(
        _boxes([(0, 0, columns, rows)],
               facecolor='none',
               edgecolor='0.3',
               linewidth=0.8,
               zorder=5))
    # The leaf cells, so that the near field reads as 3 x 3 of them.
    cell = hierarchy.cell_size
    inside = dict(color='white', linewidth=1.4, zorder=3.5)
    top = min(r for r, _ in footprint.near)
    left = min(c for _, c in footprint.near)
    bottom = max(r for r, _ in footprint.near) + 1
    right = max(c for _, c in footprint.near) + 1
    if hierarchy.num_levels:
        axes.vlines(range(left, right, cell), top, bottom, **inside)
        axes.hlines(range(top, bottom, cell), left, right, **inside)
    axes.set_xlim(-0.3, columns + 0.3)
    axes.set_ylim(rows + 0.3, -0.3)
    axes.set_aspect('equal')
    axes.axis('off')


def draw_1d(axes: Any, hierarchy: Hierarchy, footprint: Footprint) -> None:
    """Draws a footprint on a sequence: tokens below, levels above."""
    length = hierarchy.shape[0]
    query = footprint.query[0]
    height = 0.72
    # Everything that exists, in outline; what is read is filled.
    outline = dict(facecolor='none', edgecolor=GRID_COLOUR, linewidth=0.6)
    axes.add_collection(
        _boxes([(t, 0, 1, height) for t in range(length)], **outline))
    for level, width in enumerate(hierarchy.widths, 1):
        side = width // hierarchy.rank
        axes.add_collection(
            _boxes([(start, level, min(side, length - start), height)
                    for start in range(0, length, side)], **outline))
        seen = [(s.start[0], level, s.stop[0] - s.start[0], height)
                for s in on_level(footprint, level)]
        shadow = [(x, 0, w, height) for x, _, w, _ in seen]
        axes.add_collection(
            _boxes(
                shadow, facecolor=level_colour(level), alpha=0.28,
                linewidth=0))
        axes.add_collection(
            _boxes(
                seen,
                facecolor=level_colour(level),
                edgecolor='white',
                linewidth=1.2))
    axes.add_collection(
        _boxes([(t, 0, 1, height) for t, in footprint.near],
               facecolor=NEAR_COLOUR,
               edgecolor='white',
               linewidth=0.6))
    axes.add_collection(
        _boxes([(query, 0, 1, height)],
               facecolor=QUERY_COLOUR,
               edgecolor='white',
               linewidth=0.6,
               zorder=4))
    if hierarchy.causal:
        axes.axvspan(
            query + 1, length, color='0.5', alpha=0.08, linewidth=0, zorder=0)
        axes.text(
            (query + 1 + length) / 2,
            hierarchy.num_levels + 0.95,
            'later tokens: not seen',
            ha='center',
            fontsize=8,
            color='0.45')
    axes.set_xlim(-0.5, length + 0.5)
    axes.set_ylim(-0.25, hierarchy.num_levels + 1.2)
    axes.set_yticks(
        [row + height / 2
         for row in range(hierarchy.num_levels + 1)], ['tokens'] +
        [f'level {level}' for level in range(1, hierarchy.num_levels + 1)])
    axes.set_xlabel('position')
    axes.tick_params(left=False)
    axes.spines[['top', 'left', 'right', 'bottom']].set_visible(False)


def render(figure: Figure, hierarchy: Hierarchy,
           query: Tuple[int, ...]) -> Footprint:
    """Clears a figure and draws one query's footprint on it.

    Args:
        figure: Any matplotlib figure.
        hierarchy: The token grid and its levels.
        query: Token coordinates, one per axis.

    Returns:
        What was drawn.

    Raises:
        ValueError: If the query lies outside the grid.
    """
    footprint = hierarchy.footprint(query)
    figure.clear()
    axes = figure.add_subplot()
    if hierarchy.ndim == 2:
        draw_2d(axes, hierarchy, footprint)
        where = dict(loc='outside right center')
    else:
        draw_1d(axes, hierarchy, footprint)
        where = dict(loc='outside lower center', ncols=3)
    plural = '' if hierarchy.num_levels == 1 else 's'
    shape = (f'{times(hierarchy.shape)} tokens, cell size '
             f'{hierarchy.cell_size}, rank {hierarchy.rank}, '
             f'{hierarchy.num_levels} level{plural}')
    figure.suptitle(headline(hierarchy, footprint), fontsize=12)
    axes.set_title(shape, fontsize=9, color='0.35')
    figure.legend(
        handles=legend_handles(hierarchy, footprint),
        frameon=False,
        fontsize=10,
        handlelength=1.1,
        handleheight=1.1,
        **where)
    return footprint


def figure_size(hierarchy: Hierarchy) -> Tuple[float, float]:
    """Inches that suit the grid's proportions."""
    if hierarchy.ndim == 1:
        return 11, 2.4 + 0.42 * (hierarchy.num_levels + 1)
    rows, columns = hierarchy.shape
    width = 6.4 * min(1, max(columns / rows, 0.2))
    height = 6.4 * min(1, max(rows / columns, 0.2))
    return width + 3.8, max(height, 2.4) + 0.7


def follow_clicks(figure: Figure, hierarchy: Hierarchy) -> int:
    """Redraws for the token under each click; returns the connection."""

    def clicked(event: Any) -> None:
        if event.inaxes is None:
            return
        spot = (int(event.xdata // 1), )
        if hierarchy.ndim == 2:
            spot = (int(event.ydata // 1), *spot)
        if all(0 <= s < size for s, size in zip(spot, hierarchy.shape)):
            render(figure, hierarchy, spot)
            figure.canvas.draw_idle()

    return figure.canvas.mpl_connect('button_press_event', clicked)


def interact(hierarchy: Hierarchy, query: Tuple[int, ...]) -> None:
    """Opens a window and follows clicks until it is closed."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.registry import BackendFilter, backend_registry
    windowed = backend_registry.list_builtin(BackendFilter.INTERACTIVE)
    figure = plt.figure(figsize=figure_size(hierarchy), layout='constrained')
    # Asked after a figure exists: that is what settles the backend.
    if plt.get_backend().lower() not in {name.lower() for name in windowed}:
        raise FootprintError('--interactive needs a display and a windowing '
                             'toolkit (e.g. `pip install PyQt6`); without '
                             'them give --query and --out')
    render(figure, hierarchy, query)
    follow_clicks(figure, hierarchy)
    plt.show()


def levels(text: str) -> Optional[int]:
    """``auto`` or a count."""
    if text == 'auto':
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: 'auto' or a whole number") from None


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Draws which tokens and which summaries a query sees.')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        default=[64, 64],
        help='tokens: N, or H W (default: 64 64)')
    parser.add_argument(
        '--query',
        type=int,
        nargs='+',
        help='position of the query, one number an axis (default: off the '
        'centre)')
    parser.add_argument('--cell-size', type=int, default=4)
    parser.add_argument(
        '--levels',
        type=levels,
        default=None,
        metavar='auto|L',
        help="far-field levels (default: auto)")
    parser.add_argument(
        '--rank', type=int, default=1, help='summaries per cell and axis')
    parser.add_argument('--causal', action='store_true', help='sequences only')
    parser.add_argument(
        '--out', default='outputs/footprint.png', help='default: %(default)s')
    parser.add_argument('--dpi', type=int, default=150)
    parser.add_argument(
        '--interactive',
        action='store_true',
        help='open a window; a click chooses the query')
    return parser.parse_args(argv)


def build(args: argparse.Namespace) -> Tuple[Hierarchy, Tuple[int, ...]]:
    """Turns the arguments into a hierarchy and a query inside it."""
    try:
        hierarchy = Hierarchy(
            tuple(args.shape), args.cell_size, args.levels, args.rank,
            args.causal)
        query = tuple(args.query or (size * 2 // 5 for size in args.shape))
        hierarchy.footprint(query)
    except (TypeError, ValueError) as error:
        raise FootprintError(str(error)) from None
    if max(hierarchy.shape) > MAX_DRAWN:
        raise FootprintError(f'--shape is {times(hierarchy.shape)}: more than '
                             f'{MAX_DRAWN} tokens a side cannot be told '
                             'apart in a picture')
    return hierarchy, query


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parse_args(argv)
    try:
        hierarchy, query = build(args)
        if args.interactive:
            interact(hierarchy, query)
            return 0
        figure = Figure(
            figsize=figure_size(hierarchy), dpi=args.dpi, layout='constrained')
        footprint = render(figure, hierarchy, query)
        try:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(args.out)
        except (OSError, ValueError) as error:
            raise FootprintError(f'--out {args.out!r} cannot be written: '
                                 f'{error}') from None
    except FootprintError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(f'{headline(hierarchy, footprint)} -> {args.out}')
    return 0


if __name__ == '__main__':
    # A name that the console cannot show is printed with escapes.
    sys.stdout.reconfigure(errors='backslashreplace')
    sys.exit(main())
