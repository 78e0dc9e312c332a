"""demo/footprint.py: the picture shows what the hierarchy says."""

import pytest
from matplotlib.backend_bases import MouseEvent
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from fma_kernels.geometry import Hierarchy


@pytest.fixture(scope='module')
def script(load_script):
    return load_script('demo/footprint.py')


def drawn_boxes(figure, colour):
    """The (x0, y0, x1, y1) boxes filled with a colour."""
    boxes = []
    for artist in figure.axes[0].collections:
        if not isinstance(artist, PatchCollection):
            continue
        face = artist.get_facecolor()
        if len(face) and face[0][3] == 1 and to_hex(face[0]) == colour:
            boxes += [
                tuple(path.get_extents().extents)
                for path in artist.get_paths()
            ]
    return boxes


@pytest.mark.parametrize('shape, query, cell_size, rank', [
    ((32, 32), (12, 20), 4, 1),
    ((30, 47), (29, 0), 4, 2),
    ((5, 40), (2, 39), 2, 1),
    ((3, 3), (1, 1), 4, 1),
])
def test_every_token_is_drawn_once_in_2d(script, shape, query, cell_size,
                                         rank):
    hierarchy = Hierarchy(shape, cell_size, rank=rank)
    figure = Figure()
    footprint = script.render(figure, hierarchy, query)
    colours = [script.NEAR_COLOUR] + [
        script.level_colour(level)
        for level in range(1, hierarchy.num_levels + 1)
    ]
    painted = [[0] * shape[1] for _ in range(shape[0])]
    for colour in colours:
        for x0, y0, x1, y1 in drawn_boxes(figure, colour):
            for row in range(round(y0), round(y1)):
                for column in range(round(x0), round(x1)):
                    painted[row][column] += 1
    assert painted == [[1] * shape[1] for _ in range(shape[0])]
    assert len(drawn_boxes(figure, script.NEAR_COLOUR)) == len(footprint.near)
    row, column = query
    assert drawn_boxes(figure, script.QUERY_COLOUR) == [(column, row,
                                                         column + 1, row + 1)]


@pytest.mark.parametrize('causal', [False, True])
def test_rows_of_a_sequence(script, causal):
    hierarchy = Hierarchy((100, ), 4, rank=2, causal=causal)
    figure = Figure()
    footprint = script.render(figure, hierarchy, (57, ))
    for level in range(1, hierarchy.num_levels + 1):
        seen = script.on_level(footprint, level)
        boxes = drawn_boxes(figure, script.level_colour(level))
        assert [(s.start[0], s.stop[0])
                for s in seen] == [(round(b[0]), round(b[2])) for b in boxes]
        assert all(round(b[1]) == level for b in boxes)
        if causal:
            assert all(b[2] <= 57 for b in boxes)
    keys = len(footprint.near) + len(footprint.far)
    assert f'attends to {keys} keys' in figure.get_suptitle()


def test_legend_counts(script):
    figure = Figure()
    script.render(figure, Hierarchy((64, 64), 4), (25, 25))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        'query 25, 25', 'near field: 144 tokens, one by one',
        'level 1: 27 summaries of 4 × 4 tokens',
        'level 2: 27 summaries of 8 × 8 tokens',
        'level 3: 7 summaries of 16 × 16 tokens'
    ]


def test_a_click_chooses_the_query(script):
    figure = Figure()
    canvas = FigureCanvasAgg(figure)
    hierarchy = Hierarchy((32, 32), 4)
    script.render(figure, hierarchy, (0, 0))
    script.follow_clicks(figure, hierarchy)

    def click(x, y):
        canvas.draw()  # settles the layout that a click refers to
        spot = figure.axes[0].transData.transform((x, y))
        canvas.callbacks.process(
            'button_press_event',
            MouseEvent('button_press_event', canvas, *spot, button=1))
        return drawn_boxes(figure, script.QUERY_COLOUR)[0][:2]

    assert click(20.5, 9.5) == (20, 9)
    assert click(32.2, 5.5) == (20, 9)  # the margin is no token


@pytest.mark.parametrize('args', [
    ['--shape', '32', '32', '--query', '12', '20', '--rank', '2'],
    ['--shape', '128', '--causal'],
    ['--shape', '48', '48', '--levels', '1'],
])
def test_main_writes_a_picture(script, tmp_path, capsys, args):
    target = tmp_path / 'new' / 'picture.png'
    assert script.main([*args, '--out', str(target), '--dpi', '50']) == 0
    assert str(target) in capsys.readouterr().out
    with Image.open(target) as picture:
        assert min(picture.size) > 50


@pytest.mark.parametrize('args, words', [
    (['--shape', '32', '32', '--query', '40', '1'], '40'),
    (['--shape', '32', '32', '--query', '4'], 'query'),
    (['--shape', '2', '3', '4'], 'shape'),
    (['--shape', '32', '32', '--rank', '3'], 'rank'),
    (['--shape', '32', '32', '--causal'], 'causal'),
    (['--shape', '4096', '4096'], '--shape'),
    (['--out', 'picture.nothing'], '--out'),
    (['--interactive'], 'needs a display'),
])
def test_bad_arguments(script, capsys, monkeypatch, tmp_path, args, words):
    monkeypatch.chdir(tmp_path)
    assert script.main(args) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('error: ') and len(error.splitlines()) == 1
    assert words in error
    assert not list(tmp_path.iterdir())
