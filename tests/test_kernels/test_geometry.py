"""Who is near, who is far: every token is covered exactly once."""
import dataclasses
from itertools import product
from math import prod

import numpy as np
import pytest
import torch
from slow_reference import box, brute_force_pairs

from fma_kernels import Hierarchy, auto_num_levels
from fma_kernels.naive import visibility
from fma_kernels.pooling import masses

# shape, cell_size, num_levels, rank, causal
CASES = [
    ((1, ), 1, None, 1, False),
    ((1, ), 4, 2, 2, True),
    ((7, ), 1, None, 1, False),
    ((19, ), 2, None, 2, True),
    ((33, ), 4, None, 2, False),
    ((33, ), 4, 1, 4, True),
    ((40, ), 3, 6, 3, True),
    ((21, ), 3, 0, 1, True),
    ((1, 1), 2, None, 1, False),
    ((1, 23), 2, None, 2, False),
    ((23, 1), 2, 3, 1, False),
    ((3, 3), 8, None, 1, False),
    ((9, 14), 1, None, 1, False),
    ((13, 11), 2, None, 1, False),
    ((13, 18), 2, 1, 2, False),
    ((16, 16), 4, 2, 4, False),
    ((12, 17), 3, 6, 3, False),
    ((5, 6), 2, 0, 2, False),
]


def hierarchy_id(case) -> str:
    shape, cell, levels, rank, causal = case
    grid = 'x'.join(map(str, shape))
    return f'{grid}-m{cell}-L{levels}-r{rank}' + '-causal' * causal


@pytest.fixture(params=CASES, ids=hierarchy_id)
def case(request) -> Hierarchy:
    return Hierarchy(*request.param)


def test_coverage_is_one_everywhere(case) -> None:
    for query in product(*map(range, case.shape)):
        covered = torch.zeros(case.shape, dtype=torch.int64)
        footprint = case.footprint(query)
        assert footprint.query == query
        for token in footprint.near:
            covered[token] += 1
        for s in footprint.far:
            region = covered[box(s.start, s.stop)]
            assert region.numel() == s.mass > 0
            region += 1
        expected = torch.ones_like(covered)
        if case.causal:
            expected[query[0] + 1:] = 0
        assert torch.equal(covered, expected)


def test_near_field_is_tokens_of_adjacent_leaf_cells(case) -> None:
    m = case.cell_size
    for query in product(*map(range, case.shape)):
        expected = [
            token for token in product(*map(range, case.shape))
            if case.num_levels == 0 or all(
                abs(t // m - q // m) <= 1 for t, q in zip(token, query))
        ]
        if case.causal:
            expected = [token for token in expected if token <= query]
        assert sorted(case.footprint(query).near) == expected


def test_interaction_lists_are_symmetric_when_not_causal(case) -> None:
    for level, grid in enumerate(case.grids, 1):
        cells = list(product(*map(range, grid)))
        lists = {
            cell: set(case.interaction_list(level, cell))
            for cell in cells
        }
        for a, b in product(cells, cells):
            if case.causal:
                assert not (b in lists[a] and b >= a)
            else:
                assert (b in lists[a]) == (a in lists[b])


def test_interaction_list_is_bounded_below_the_top(case) -> None:
    bound = {1: 3, 2: 27}[case.ndim]
    for level, grid in list(enumerate(case.grids, 1))[:-1]:
        sizes = [
            len(case.interaction_list(level, cell))
            for cell in product(*map(range, grid))
        ]
        assert max(sizes) <= bound


def test_interaction_list_reaches_its_bound() -> None:
    assert len(Hierarchy((64, ), 1, 5).interaction_list(1, (10, ))) == 3
    assert len(Hierarchy((32, 32), 1, 4).interaction_list(1, (10, 11))) == 27


def test_visited_pairs_are_those_of_the_definition(case) -> None:
    brute = brute_force_pairs(case.shape, case.cell_size, case.num_levels,
                              case.rank, case.causal)
    footprints = 0
    for query in product(*map(range, case.shape)):
        _, near, far = case.footprint(query)
        footprints += len(near) + len(far)
    weight = [torch.ones(case.num_tokens)]
    weight += [level.flatten() for level in masses(case)]
    matrix = visibility(case) & (torch.cat(weight) > 0)
    assert case.visited_pairs == brute == footprints == int(matrix.sum())
    assert case.key_count() == pytest.approx(brute / case.num_tokens)


def test_flops_are_two_products_per_pair(case) -> None:
    assert case.flops(3, 32) == 4 * 3 * 32 * case.visited_pairs
    assert case.flops(3, 32, batch=5) == 5 * case.flops(3, 32)


def test_packed_layout(case) -> None:
    sizes = [prod(grid) * case.rank**case.ndim for grid in case.grids]
    assert list(case.level_sizes) == sizes
    assert list(case.level_starts) == [
        sum(sizes[:level]) for level in range(len(sizes))
    ]
    assert case.num_summaries == sum(sizes)
    assert case.widths == tuple(case.cell_size * 2**level
                                for level in range(case.num_levels))


@pytest.mark.parametrize('side, levels', [(1, 0), (2, 0), (3, 1), (4, 1),
                                          (5, 2), (8, 2), (9, 3), (16, 3),
                                          (17, 4), (32, 4), (33, 5)])
@pytest.mark.parametrize('cell_size', [1, 3, 8])
def test_auto_levels_table(side, levels, cell_size) -> None:
    # The smallest and the largest grid with so many leaf cells.
    for size in ((side - 1) * cell_size + 1, side * cell_size):
        assert auto_num_levels((size, ), cell_size) == levels
        assert auto_num_levels((1, size), cell_size) == levels
        assert auto_num_levels((size, 1), cell_size) == levels
        assert Hierarchy((size, size), cell_size).num_levels == levels


@pytest.mark.parametrize('cell_size', [1, 2, 4, 7])
def test_auto_top_grid_has_at_most_four_cells_a_side(cell_size) -> None:
    for size in range(1, 400):
        h = Hierarchy((size, ), cell_size)
        if not h.num_levels:
            assert h.leaf_grid[0] <= 2
            continue
        assert 2 < h.grids[-1][0] <= 4
        if h.num_levels > 1:  # one level fewer would not do
            assert h.grids[-2][0] > 4


def test_levels_beyond_need_are_empty() -> None:
    for shape in ((37, ), (9, 21)):
        auto = Hierarchy(shape, 2)
        more = Hierarchy(shape, 2, auto.num_levels + 3)
        for level in range(auto.num_levels + 1, more.num_levels + 1):
            grid = more.grids[level - 1]
            assert not any(
                more.interaction_list(level, cell)
                for cell in product(*map(range, grid)))
        assert more.visited_pairs == auto.visited_pairs
        query = tuple(size // 2 for size in shape)
        assert set(more.footprint(query).far) == set(auto.footprint(query).far)


def test_keys_per_query_grow_with_the_logarithm() -> None:
    for side in (64, 128, 256, 512):
        h = Hierarchy((side, side), 4)
        assert h.key_count() < 9 * 4**2 + 27 * h.num_levels
    # Twice the side is one more full interaction list, up to borders.
    small, large = (Hierarchy((side, side), 4) for side in (4096, 8192))
    assert large.key_count() - small.key_count() == pytest.approx(27, abs=1)


def test_footprint_takes_negative_and_bare_indices() -> None:
    h = Hierarchy((37, ), 4)
    assert h.footprint(-1) == h.footprint(36) == h.footprint((36, ))
    h = Hierarchy((5, 9), 2)
    assert h.footprint((-1, -9)) == h.footprint((4, 0))
    for query in ((5, 0), (0, -10), (0, ), 3):
        with pytest.raises(ValueError, match='query'):
            h.footprint(query)


def test_numpy_sizes() -> None:
    shape = tuple(np.array([37, 20]))
    assert auto_num_levels(shape, 4) == Hierarchy((37, 20), 4).num_levels
    assert Hierarchy(shape, 4) == Hierarchy((37, 20), 4)


def test_trimmed_drops_empty_levels_only() -> None:
    deep = Hierarchy((37, 20), 4, num_levels=6)
    assert deep.trimmed() == Hierarchy((37, 20), 4)
    assert deep.trimmed().visited_pairs == deep.visited_pairs
    for levels in (0, 1, 3):
        tree = Hierarchy((37, 20), 4, levels)
        assert tree.trimmed() is tree


def test_frozen_hashable_equal() -> None:
    a, b = Hierarchy((37, 20), 4), Hierarchy([37, 20], 4, 3)
    assert a == b and hash(a) == hash(b) and len({a, b}) == 1
    assert a != Hierarchy((37, 20), 4, rank=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        a.cell_size = 8


@pytest.mark.parametrize('change, error, name', [
    (dict(shape=()), ValueError, 'shape'),
    (dict(shape=(0, 4)), ValueError, 'shape'),
    (dict(shape=(4, 4, 4)), ValueError, 'shape'),
    (dict(shape=(4.5, 4)), TypeError, 'shape'),
    (dict(shape=8), TypeError, 'shape'),
    (dict(cell_size=0), ValueError, 'cell_size'),
    (dict(cell_size=2.0), TypeError, 'cell_size'),
    (dict(cell_size=True), TypeError, 'cell_size'),
    (dict(num_levels=-1), ValueError, 'num_levels'),
    (dict(num_levels='2'), TypeError, 'num_levels'),
    (dict(num_levels=200), ValueError, 'num_levels'),
    (dict(rank=0), ValueError, 'rank'),
    (dict(rank=3), ValueError, 'rank'),
    (dict(causal=True), ValueError, 'causal'),
])
def test_errors_name_the_argument(change, error, name) -> None:
    arguments = {'shape': (8, 8), 'cell_size': 4, **change}
    with pytest.raises(error, match=name):
        Hierarchy(**arguments)
