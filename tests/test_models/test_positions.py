"""Position forms of the layers, against a slow definition; absolute tables."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from fma_kernels import Hierarchy, pooling
from fma_vision.layers import (AbsolutePosition, FMAttention1D, FMAttention2D,
                               RelativeBias, build_position, rotate)

CASES = [
    # layer, grid, arguments
    (FMAttention2D, (7, 9), dict(cell_size=2)),
    (FMAttention2D, (5, 9), dict(cell_size=2, rank=2)),
    (FMAttention2D, (11, 3), dict(cell_size=2, num_levels=1, mass=False)),
    (FMAttention2D, (3, 2), dict(cell_size=2)),
    (FMAttention1D, (27, ), dict(cell_size=2, rank=2)),
    (FMAttention1D, (21, ), dict(cell_size=2, causal=True)),
]
# How queries are pooled, and the summaries.
POOLED = [(False, 'avg'), (False, 'grouped_conv'),
          (False, dict(type='hierarchical', shared=True)), (True, 'avg'),
          ('learned', 'conv')]
cases = pytest.mark.parametrize('layer, grid, options', CASES, ids=str)
pooled = pytest.mark.parametrize('pool_queries, summaries', POOLED, ids=str)
form = pytest.mark.parametrize('positions', ['rotary', 'relative'])


def _layer(cls, positions, std=.3, **options):
    """A layer in float64 with all weights at random, tables included."""
    if positions == 'rotary':
        options = dict(rotary_base=30., **options)
    layer = cls(16, 2, positions=positions, **options).double()
    for param in layer.parameters():
        torch.nn.init.normal_(param, std=std)
    return layer


# ---------------------------------------------------------- slow definition
def _turned(layer, x, places):
    """Tokens ``[S, heads, head_dim]`` turned to ``places [S, axes]``.

    Planes are (i, i + head_dim / 2); the first turn by the first axis.
    """
    half, axes = x.shape[-1] // 2, len(places[0])
    share = half // axes  # planes of an axis
    speeds = [layer.rotary_base**(-i / share) for i in range(share)]
    angles = torch.tensor(
        [[where * speed for where in place for speed in speeds]
         for place in places],
        dtype=torch.double)[:, None]
    turn = torch.polar(torch.ones_like(angles), angles)
    plane = torch.complex(x[..., :half], x[..., half:]) * turn
    return torch.cat([plane.real, plane.imag], -1)


def _row_major(offsets, reach):
    """Number of an offset in a table of offsets up to ``reach``."""
    number = 0
    for offset in offsets:
        number = number * (2 * reach + 1) + offset + reach
    return number


def _slow(layer, x, key_mask=None):
    """Every query apart, from the footprint that the geometry gives it."""
    grid, heads, dim = x.shape[1:-1], layer.num_heads, layer.head_dim
    axes = range(len(grid))
    real = torch.ones(x.shape[:-1]).bool() if key_mask is None else key_mask
    x = x.masked_fill(~real[..., None], 0)
    qkv = layer.qkv(x).view(*x.shape[:-1], 3, heads, dim)
    query, key, value = qkv.unbind(-3)
    tree = Hierarchy(grid, layer.cell_size, layer.num_levels, layer.rank,
                     layer.causal)
    keys = pooling.unpack(layer.key_summaries(key, tree, key_mask), tree)
    values = pooling.unpack(layer.value_summaries(value, tree, key_mask), tree)
    if layer.pool_queries:
        pooled = pooling.unpack(
            layer.query_summaries(query, tree, key_mask), tree)
    tables = layer.relative_position_bias_table
    zero = x.new_zeros(heads)

    def ask(image, i, level, side):
        """What asks on a level, and where."""
        if not layer.pool_queries:
            return query[(image, *i)], i
        own = [n // side for n in i]
        part = 0
        for n in own:
            part = part * layer.rank + n % layer.rank
        cell = [n // layer.rank for n in own]
        return (pooled[level][(image, *cell, part)],
                [n * side + (side - 1) / 2 for n in own])

    out = torch.zeros(*x.shape[:-1], heads, dim).to(x)
    for image, i in itertools.product(
            range(len(x)), itertools.product(*map(range, grid))):
        # Of each pair: query, its place, key, its place, bias and value.
        pairs = []
        found = tree.footprint(i)
        for j in found.near:
            if not real[(image, *j)]:
                continue
            bias = zero
            if tables is not None:
                offset = [j[a] - i[a] for a in axes]
                bias = tables.near_bias[:,
                                        _row_major(offset, 2 *
                                                   layer.cell_size - 1)]
            pairs.append((query[(image, *i)], i, key[(image, *j)], j, bias,
                          value[(image, *j)]))
        for part in found.far:
            box = tuple(slice(*ends) for ends in zip(part.start, part.stop))
            mass = real[(image, *box)].sum().item()
            if not mass:
                continue
            level, width = part.level - 1, tree.widths[part.level - 1]
            side = width // layer.rank
            bias = zero + math.log(mass) if layer.mass else zero
            if tables is not None:
                offset = [part.cell[a] - i[a] // width for a in axes]
                index = _row_major([min(max(n, -3), 3) for n in offset], 3)
                last = min(level, len(tables.far_bias) - 1)
                bias = bias + tables.far_bias[last, :, part.part, index]
            place = (image, *part.cell, part.part)
            centre = [start + (side - 1) / 2 for start in part.start]
            pairs.append((*ask(image, i, level, side), keys[level][place],
                          centre, bias, values[level][place]))
        if not pairs:
            continue
        q, at_q, k, at_k, bias, v = zip(*pairs)
        q, k = torch.stack(q), torch.stack(k)
        if layer.positions == 'rotary':
            q, k = _turned(layer, q, at_q), _turned(layer, k, at_k)
        logits = (q * k).sum(-1) * dim**-.5 + torch.stack(bias)
        weights = logits.softmax(0)[..., None]  # [S, heads, 1]
        out[(image, *i)] = (weights * torch.stack(v)).sum(0)
    return layer.proj(out.flatten(-2))


def _compare(layer, x, key_mask=None):
    """Outputs and all gradients, of the layer and of the definition."""
    found = []
    names = [name for name, _ in layer.named_parameters()]
    real = slice(None) if key_mask is None else key_mask
    weight = torch.randn_like(x)[real]
    for run in (layer, lambda *args: _slow(layer, *args)):
        tokens = x.clone().requires_grad_()
        out = run(tokens, key_mask)[real]
        layer.zero_grad()
        (out * weight).sum().backward()
        grads = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for p in layer.parameters()
        ]
        found.append((out, tokens.grad, *grads))
    for name, got, expected in zip(['out', 'x', *names], *found, strict=True):
        torch.testing.assert_close(got, expected, msg=lambda m: f'{name}: {m}')


@form
@pytest.mark.parametrize('masked', [False, True])
@cases
def test_layer_equals_definition(layer, grid, options, masked, positions):
    layer = _layer(layer, positions, **options)
    x = torch.randn(1, *grid, 16).double()
    mask = None
    if masked:
        mask = torch.rand(1, *grid) < .6
        mask[(0, *(slice(0, 4) for _ in grid))] = False
        mask[(0, *(-1 for _ in grid))] = True
        x = x.masked_fill(~mask[..., None], float('nan'))
    _compare(layer, x, mask)


@form
@pooled
@pytest.mark.parametrize('layer, grid', [(FMAttention2D, (5, 7)),
                                         (FMAttention1D, (19, ))])
def test_forms_together_equal_definition(layer, grid, pool_queries, summaries,
                                         positions):
    layer = _layer(
        layer,
        positions,
        cell_size=2,
        rank=2,
        summaries=summaries,
        pool_queries=pool_queries)
    x = torch.randn(1, *grid, 16).double()
    mask = torch.rand(1, *grid) < .7
    _compare(layer, x.masked_fill(~mask[..., None], float('nan')), mask)


@form
@pytest.mark.parametrize('layer, grid', [(FMAttention2D, (5, 6)),
                                         (FMAttention1D, (11, ))])
def test_layer_gradcheck(layer, grid, positions):
    layer = _layer(layer, positions, cell_size=1, summaries='grouped_conv')
    names = [name for name, _ in layer.named_parameters()]
    x = torch.randn(1, *grid, 16).double().requires_grad_()
    mask = torch.rand(1, *grid) < .8

    def run(x, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights)),
                                          (x, mask))

    inputs = (x, *(p.detach().requires_grad_() for p in layer.parameters()))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@form
@pytest.mark.parametrize('layer', [FMAttention1D, FMAttention2D])
def test_bfloat16_autocast_stays_close(layer, positions):
    layer = _layer(layer, positions, std=.15, cell_size=2).float()
    x = torch.randn(1, *(11, 14)[:layer.ndim], 16)
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(x)
    torch.testing.assert_close(out.float(), layer(x), rtol=.05, atol=.05)


@form
def test_every_parameter_gets_a_gradient(positions):
    """Also on grids that need no level, or fewer than there are sets."""
    for grid in [(1, 1), (4, 3), (6, 5), (19, 18)]:
        layer = _layer(
            FMAttention2D,
            positions,
            cell_size=2,
            summaries='hierarchical',
            pool_queries='learned')
        layer(torch.randn(2, *grid, 16).double()).square().sum().backward()
        assert [n for n, p in layer.named_parameters() if p.grad is None] == []


# -------------------------------------------------------------------- rotary
def test_rotate_by_two_axes_equals_complex_numbers():
    x = torch.randn(2, 3, 4, 1, 12).double()
    rows, columns = torch.randn(3).double() * 9, torch.arange(4.) - 1.5
    got = rotate(x, [rows[:, None], columns], base=50.)
    layer = FMAttention2D(12, 1, positions='rotary', rotary_base=50.)
    for i, j in itertools.product(range(3), range(4)):
        place = rows[i].item(), columns[j].item()
        torch.testing.assert_close(got[:, i, j],
                                   _turned(layer, x[:, i, j], [place] * 2))


def test_half_of_the_channels_turn_by_each_axis():
    x = torch.randn(1, 1, 8).double()
    row = rotate(x, [torch.ones(1), torch.zeros(1)])
    column = rotate(x, [torch.zeros(1), torch.ones(1)])
    moved = [(turned != x).flatten().tolist() for turned in (row, column)]
    assert moved == [[True, True, False, False] * 2,
                     [False, False, True, True] * 2]


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_rotate_by_two_axes_is_precise_far_away(dtype):
    x = torch.randn(1, 3, 4, 2, 16).to(dtype)
    at = torch.arange(3)[:, None], torch.arange(4)
    near, far = rotate(x, at), rotate(x, [a + 10**6 for a in at])
    assert near.dtype == far.dtype == dtype
    products = [
        torch.einsum('bqhd,bkhd->bhqk', *[y.float().flatten(1, 2)] * 2)
        for y in (near, far)
    ]
    tight = 1e-5 if dtype == torch.float32 else .1
    torch.testing.assert_close(*products, rtol=tight, atol=tight)


@pooled
def test_shift_of_the_whole_grid_changes_nothing(pool_queries, summaries):
    layer = _layer(
        FMAttention2D,
        'rotary',
        cell_size=2,
        rank=2,
        summaries=summaries,
        pool_queries=pool_queries)
    x = torch.randn(1, 13, 10, 16).double()
    mask = torch.rand(1, 13, 10) < .7
    expected = layer(x, mask)
    for offset in [(1, 0), (0, -3), (1000, 7), (2**20 + 3, 2**18)]:
        torch.testing.assert_close(
            layer(x, mask, offset=offset), expected, rtol=1e-6, atol=1e-8)
    layer = layer.float()
    torch.testing.assert_close(
        layer(x.float(), mask, offset=(10**6, 10**5)),
        expected.float(),
        rtol=1e-3,
        atol=1e-4)


def test_rows_are_not_columns():
    """A transposed map does not give the transposed output, as it would."""
    layer = _layer(FMAttention2D, 'rotary', cell_size=2)
    x = torch.randn(1, 8, 8, 16).double()
    turned = layer(x.transpose(1, 2)).transpose(1, 2)
    assert not torch.allclose(turned, layer(x))
    plain = FMAttention2D(16, 2, cell_size=2).double()
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(
        plain(x.transpose(1, 2)).transpose(1, 2), plain(x))


def test_masked_cells_before_a_map_shift_it():
    layer = _layer(FMAttention2D, 'rotary', cell_size=2, rank=2, num_levels=2)
    x = torch.randn(1, 16, 20, 16).double()
    mask = torch.zeros(1, 16, 20).bool()
    mask[:, 8:, 4:] = True
    torch.testing.assert_close(layer(x, mask)[:, 8:, 4:], layer(x[:, 8:, 4:]))


@pytest.mark.parametrize('kwargs, message', [
    (dict(dim=12), 'head_dim must be a multiple of 4, got 6'),
    (dict(rotary_base=0.), 'rotary_base must be positive, got 0'),
    (dict(positions='sine'),
     "positions must be None, 'rotary' or 'relative', got 'sine'"),
    (dict(positions='relative', num_levels=0), 'num_levels must be .* got 0'),
    (dict(positions='relative', max_levels=0), 'max_levels .* got 0'),
])
def test_layer_refuses(kwargs, message):
    options = dict(dim=16, num_heads=2, positions='rotary')
    with pytest.raises(ValueError, match=message):
        FMAttention2D(**{**options, **kwargs})
    # What rotary positions need is nobody else's concern.
    FMAttention2D(dim=12, num_heads=2, positions='relative')


def test_layer_refuses_a_bare_offset():
    layer = FMAttention2D(16, 2, positions='rotary')
    with pytest.raises(ValueError, match=r'offset must be \(row, column\)'):
        layer(torch.randn(1, 3, 3, 16), offset=3)


def test_default_bases_and_repr():
    layer = FMAttention2D(16, 2, positions='rotary')
    assert layer.rotary_base == 100 and "positions='rotary'" in repr(layer)
    assert FMAttention1D(16, 2, positions='rotary').rotary_base == 10000


@form
def test_compiled_layer_has_no_graph_break(positions):
    layer = _layer(FMAttention2D, positions, cell_size=1)
    x = torch.randn(1, 3, 5, 16).double()
    # Without code generation: this asks what can be traced.
    compiled = torch.compile(layer, fullgraph=True, backend='aot_eager')
    found = []
    for run in (layer, compiled):
        layer.zero_grad()
        out = run(x)
        out.square().sum().backward()
        found.append((out, *[p.grad.clone() for p in layer.parameters()]))
    torch.testing.assert_close(*found)


# ------------------------------------------------------------------ relative
@pytest.mark.parametrize('layer', [FMAttention1D, FMAttention2D])
def test_relative_tables_start_at_zero(layer):
    torch.manual_seed(1)
    relative = layer(16, 2, cell_size=2, positions='relative').double()
    torch.manual_seed(1)
    plain = layer(16, 2, cell_size=2).double()
    x = torch.randn(1, *(9, 12)[:layer.ndim], 16).double()
    torch.testing.assert_close(relative(x), plain(x))
    names = dict(relative.named_parameters()).keys() - dict(
        plain.named_parameters()).keys()
    d, table = layer.ndim, relative.relative_position_bias_table
    prefix = 'relative_position_bias_table.'
    assert names == {prefix + 'near_bias', prefix + 'far_bias'}
    assert table.near_bias.shape == (2, 7**d)
    assert table.far_bias.shape == ({1: 8, 2: 4}[d], 2, 1, 7**d)
    assert table.no_weight_decay() == {'near_bias', 'far_bias'}


def test_relative_tables_have_a_set_for_each_level():

    def sets(**kwargs):
        layer = FMAttention2D(16, 2, positions='relative', **kwargs)
        return len(layer.relative_position_bias_table.far_bias)

    assert sets(max_levels=6) == 6
    assert sets(num_levels=2) == 2
    assert sets(num_levels=9) == 4
    assert sets(num_levels=3, max_levels=2) == 2


@pytest.mark.parametrize('grid, levels', [((33, ), 4), ((6, 33), 4)])
def test_the_last_set_serves_the_levels_above(grid, levels):
    cls = FMAttention1D if len(grid) == 1 else FMAttention2D
    layer = _layer(cls, 'relative', cell_size=2, max_levels=2)
    assert layer.hierarchy(*grid).num_levels == levels
    x = torch.randn(1, *grid, 16).double()
    torch.testing.assert_close(layer(x), _slow(layer, x))
    # A layer with sets of its own for these levels, which are equal.
    more = _layer(cls, 'relative', cell_size=2, max_levels=levels)
    more.load_state_dict(layer.state_dict())
    torch.testing.assert_close(more(x), layer(x))
    with torch.no_grad():
        more.relative_position_bias_table.far_bias[-1] += torch.randn(2, 1, 1)
    assert not torch.allclose(more(x), layer(x))


@pytest.mark.parametrize('ndim', [1, 2])
@pytest.mark.parametrize('rank', [1, 2])
def test_slopes_fall_with_the_distance(ndim, rank):
    bias = RelativeBias(ndim, 4, 4, rank, 3, slope=.5)
    falls = [.5, .5 / 4, .5 / 16, .5 / 64]
    near = bias.near_bias.view(4, *[15] * ndim)
    for offset in itertools.product(range(-7, 8), repeat=ndim):
        at = tuple(x + 7 for x in offset)
        expected = [-fall * math.hypot(*offset) for fall in falls]
        torch.testing.assert_close(near[(slice(None), *at)],
                                   torch.tensor(expected))
    far = bias.far_bias.view(3, 4, *[rank] * ndim, *[7] * ndim)
    for level, part, cell in itertools.product(
            range(3), itertools.product(range(rank), repeat=ndim),
            itertools.product(range(-3, 4), repeat=ndim)):
        # Centres, in cells: of a key's sub-cell against the query's cell.
        centre = [c + (a + .5) / rank - .5 for a, c in zip(part, cell)]
        distance = math.hypot(*centre) * 4 * 2**level
        at = (level, slice(None), *part, *(c + 3 for c in cell))
        torch.testing.assert_close(
            far[at], torch.tensor([-fall * distance for fall in falls]))


@pytest.mark.parametrize('cls, grid', [(FMAttention1D, (64, )),
                                       (FMAttention2D, (32, 24))])
def test_slopes_keep_a_new_layer_near(cls, grid):
    x = torch.randn(1, *grid, 16)
    other = x.clone()
    other[(0, *[-1] * len(grid))] += 100  # the token farthest from the first
    moved = []
    for slope in (0., 2.):
        torch.manual_seed(0)
        layer = cls(16, 2, positions='relative', relative_slope=slope)
        layer.qkv.weight.data[16:32] = 0  # keys all alike
        out, changed = layer(x), layer(other)
        first = (0, *[0] * len(grid))
        moved.append((changed[first] - out[first]).abs().max())
    assert 0 < moved[1] < .5 * moved[0]
    for value in (-1., math.nan, math.inf):
        with pytest.raises(ValueError, match='slope must be finite'):
            cls(16, 2, positions='relative', relative_slope=value)
    with pytest.raises(ValueError, match="needs positions='relative'"):
        cls(16, 2, positions='rotary', relative_slope=1.)


def test_triton_refuses_relative_biases():
    layer = FMAttention2D(16, 2, positions='relative', backend='triton')
    with pytest.raises(ValueError, match="backend='triton' cannot run: "):
        layer(torch.randn(1, 20, 20, 16))


def _bias(ndim, cell_size, rank, levels, heads=3):
    bias = RelativeBias(ndim, heads, cell_size, rank, levels).double()
    for table in bias.parameters():
        torch.nn.init.normal_(table)
    return bias


@pytest.mark.parametrize('ndim', [1, 2])
@pytest.mark.parametrize('old, new', [(2, 4), (4, 2), (4, 3), (1, 8)])
def test_near_table_is_resized_centre_to_centre(ndim, old, new):
    """Keys' cubic convolution, separable, half a sample from each border."""
    source, target = _bias(ndim, old, 1, 2), _bias(ndim, new, 1, 2)
    assert str(target.load_state_dict(source.state_dict(), strict=True)) == \
        '<All keys matched successfully>'
    before, after = 4 * old - 1, 4 * new - 1

    def cubic(t):
        t, a = abs(t), -.75
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.

    weights = torch.zeros(after, before).double()
    for i in range(after):
        at = (i + .5) * before / after - .5
        for j in range(math.floor(at) - 1, math.floor(at) + 3):
            weights[i, min(max(j, 0), before - 1)] += cubic(at - j)
    table = source.near_bias.view(3, *[before] * ndim)
    for axis in range(ndim):
        table = (table.movedim(1 + axis, -1) @ weights.T).movedim(-1, 1 + axis)
    torch.testing.assert_close(target.near_bias, table.flatten(1))
    # The zero offset stays what it was.
    middle = (before**ndim) // 2, (after**ndim) // 2
    torch.testing.assert_close(source.near_bias[:, middle[0]],
                               target.near_bias[:, middle[1]])
    # Far tables do not know the cell.
    assert torch.equal(target.far_bias, source.far_bias)


@pytest.mark.parametrize('ndim', [1, 2])
def test_far_tables_are_resized_by_rank_and_levels(ndim):
    one, two = _bias(ndim, 4, 1, 2), _bias(ndim, 4, 2, 4)
    two.load_state_dict(one.state_dict())
    # All sub-cells as the cell was; missing sets are the last.
    for level in range(4):
        expected = one.far_bias[min(level, 1)].expand(3, 2**ndim, 7**ndim)
        torch.testing.assert_close(two.far_bias[level], expected)
    assert torch.equal(two.near_bias, one.near_bias)
    # The mean of sub-cells; sets beyond the own are left out.
    torch.nn.init.normal_(two.far_bias)
    one.load_state_dict(two.state_dict())
    torch.testing.assert_close(one.far_bias,
                               two.far_bias[:2].mean(2, keepdim=True))
    # Sub-cells keep their order, row-major.
    four = _bias(ndim, 4, 4, 4)
    four.load_state_dict(two.state_dict())
    corners = [0, -1] if ndim == 1 else [0, 3, 12, 15]
    torch.testing.assert_close(four.far_bias[:, :, corners], two.far_bias)


def test_tables_of_other_heads_are_refused():
    source = _bias(2, 2, 1, 2).state_dict()
    with pytest.raises(RuntimeError, match='size mismatch for near_bias'):
        _bias(2, 4, 1, 2, heads=2).load_state_dict(source)
    for wrong in (torch.zeros(3, 48), torch.zeros(3, 81), torch.zeros(3)):
        with pytest.raises(RuntimeError, match='size mismatch for near_bias'):
            _bias(2, 4, 1, 2).load_state_dict(dict(source, near_bias=wrong))
    for wrong in (torch.zeros(2, 3, 3, 49), torch.zeros(0, 3, 1, 49),
                  torch.zeros(2, 3, 1, 25), torch.zeros(3)):
        with pytest.raises(RuntimeError, match='size mismatch for far_bias'):
            _bias(2, 4, 1, 2).load_state_dict(dict(source, far_bias=wrong))


def test_loading_leaves_the_checkpoint_as_it_was():
    source = _bias(2, 2, 1, 2).half().state_dict()
    shapes = {name: table.shape for name, table in source.items()}
    target = _bias(2, 4, 2, 3)
    target.load_state_dict(source)
    assert {name: table.shape for name, table in source.items()} == shapes
    assert target.near_bias.dtype == torch.double
    target.load_state_dict(source, assign=True)
    assert {x.dtype for x in target.parameters()} == {torch.half}


# ------------------------------------------------------------------ absolute
def test_absolute_position_adds_its_table():
    layer = AbsolutePosition(5, (4, 6))
    table = layer.absolute_pos_embed
    assert table.shape == (1, 4, 6, 5)
    assert AbsolutePosition(5, 3).absolute_pos_embed.shape == (1, 3, 3, 5)
    assert .01 < table.std() < .03 and table.abs().max() < .2
    x = torch.randn(2, 4, 6, 5)
    assert torch.equal(layer(x), x + table)
    assert layer.no_weight_decay() == {'absolute_pos_embed'}


@pytest.mark.parametrize('grid', [(8, 12), (3, 4), (1, 1), (5, 2)])
def test_absolute_position_is_interpolated(grid):
    layer = AbsolutePosition(5, (4, 6))
    table = layer.absolute_pos_embed
    expected = F.interpolate(
        table.permute(0, 3, 1, 2), grid, mode='bicubic',
        antialias=True).permute(0, 2, 3, 1)
    x = torch.randn(2, *grid, 5)
    torch.testing.assert_close(layer(x), x + expected)
    # What is the same everywhere stays so, and so does its gradient.
    layer(x).sum().backward()
    torch.testing.assert_close(table.grad.sum(),
                               torch.tensor(2. * 5 * math.prod(grid)))
    torch.nn.init.constant_(table, 3.)
    torch.testing.assert_close(layer(x), x + 3)
    # Half precision is not interpolated in.
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16


def test_absolute_position_is_resized_when_loaded():
    source, target = AbsolutePosition(5, (4, 6)), AbsolutePosition(5, (7, 9))
    x = torch.randn(2, 7, 9, 5)
    target.load_state_dict(source.state_dict(), strict=True)
    torch.testing.assert_close(target(x), source(x))
    assert target.absolute_pos_embed.shape == (1, 7, 9, 5)
    for wrong in (AbsolutePosition(4, (4, 6)).state_dict(),
                  dict(absolute_pos_embed=torch.zeros(1, 24, 5))):
        with pytest.raises(RuntimeError, match='size mismatch'):
            target.load_state_dict(wrong)


def test_build_position_by_place():
    cfg = dict(type='AbsolutePosition', size=3)
    assert isinstance(build_position(cfg, 8), AbsolutePosition)
    assert isinstance(build_position(cfg, 8, in_stem=True), AbsolutePosition)
    x = torch.randn(1, 3, 3, 8)
    assert build_position(cfg, 8, in_stem=False)(x) is x
    assert build_position('ConditionalPosition', 8, in_stem=True)(x) is x
    for size in (0, (3, ), (2, 0), 7., (2., 3), '7'):
        with pytest.raises((TypeError, ValueError), match='size must be a'):
            build_position(dict(type='AbsolutePosition', size=size), 8)
