"""What only the kernels in C have: instruction sets, threads, memory.

That they compute the same as the oracle is tested with the other backends, in
``test_cpu_backends.py`` and the files beside it.
"""
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from compare import compare, leaves, missing, run
from native_cases import compare_stream, draw, supported

from fma_kernels import Hierarchy, explain_backend, fma1d, fma2d
from fma_kernels.backends.native import build, call, library
from fma_kernels.ops import attention, pool
from fma_kernels.pooled import far_field, near_field
from fma_kernels.testing import assert_close, random_mask, random_qkv

pytestmark = pytest.mark.skipif(
    missing('native') is not None, reason=str(missing('native')))
FOLDER = Path(__file__).parent
needs_fork = pytest.mark.skipif(
    'fork' not in multiprocessing.get_all_start_methods(),
    reason='this system does not fork')


@pytest.fixture
def isa(request, monkeypatch) -> str:
    """The instruction set of all calls to come."""
    if request.param not in supported():
        pytest.skip(f'this processor has no {request.param}')
    monkeypatch.setenv('FMA_KERNELS_ISA', request.param)
    return request.param


isas = pytest.mark.parametrize('isa', library.ISAS, indirect=True)


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# --------------------------------------------------------- instruction sets
@isas
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('head_dim', [1, 3, 4, 16, 24, 32, 33, 64, 80, 128])
def test_head_dims(head_dim, dtype, isa) -> None:
    """Multiples of a vector, less than one, and what is left over."""
    compare('native', (11, 9), 4, head_dim=head_dim, dtype=dtype)


@isas
@pytest.mark.parametrize('cell_size', range(1, 21))
def test_cells(cell_size, isa) -> None:
    """Tiles of 1 to 400 queries: of 1, 2 or 4 vectors, several at a time."""
    compare('native', (50, ), cell_size, heads=1, causal=True)
    compare('native', (23, 18), cell_size, heads=1)


@isas
@pytest.mark.parametrize(
    'options', [
        dict(rank=2, mask=random_mask((22, 13), 2, 0.4), summaries=True),
        dict(biases=True, dropout_p=0.3, dropout_seed=5),
        dict(pool_queries=True, rank=2, mask=random_mask((22, 13), 2, 0.4)),
        dict(pool_queries=True, num_levels=1, dropout_p=0.3, dropout_seed=2),
        dict(num_levels=0, scale=-0.5),
        dict(mass=False, dtype=torch.float16),
        dict(pool_queries=True, dtype=torch.bfloat16),
    ],
    ids=lambda x: '-'.join(x))
@pytest.mark.parametrize('cell_size', [2, 4])
def test_core_cases(cell_size, options, isa) -> None:
    compare('native', (22, 13), cell_size, batch=2, heads=3, **options)


@pytest.mark.sampled
@isas
@pytest.mark.parametrize('seed', range(0, 300, 10))
def test_random_cases(seed, isa) -> None:
    for i in range(seed, seed + 10):
        compare('native', **draw(i))


@pytest.mark.parametrize('name', ['sse9', 'AVX2'])
def test_unknown_instruction_set(name, monkeypatch) -> None:
    """An error at the call, and where the choice is explained."""
    qkv = random_qkv((9, ), dtype=torch.float32)
    monkeypatch.setenv('FMA_KERNELS_ISA', name)
    for backend in ('native', 'auto'):
        with pytest.raises(ValueError, match=f'FMA_KERNELS_ISA .*{name}'):
            fma1d(*qkv, cell_size=2, backend=backend)
    with pytest.raises(ValueError, match=f'FMA_KERNELS_ISA .*{name}'):
        explain_backend(qkv[0])
    # Nobody asks for it where C does not run.
    fma1d(*qkv, cell_size=2, backend='torch')
    assert explain_backend(qkv[0].double()).endswith('torch: chosen')


def test_instruction_set_that_the_processor_lacks(monkeypatch) -> None:
    monkeypatch.setattr(library, '_best_isa', lambda: 0)
    monkeypatch.setenv('FMA_KERNELS_ISA', 'avx512')
    with pytest.raises(ValueError, match='FMA_KERNELS_ISA .*avx512'):
        library.chosen_isa()
    monkeypatch.delenv('FMA_KERNELS_ISA')
    assert library.chosen_isa() == 0


# ------------------------------------------------------------------- inputs
@isas
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_half_precision(dtype, isa) -> None:
    """Subnormal, infinite or NaN: a lone token's output is its value."""
    bits = torch.arange(-2**15, 2**15, dtype=torch.int16)
    value = bits.view(dtype).view(1, 1, 1, -1)
    zeros = torch.zeros_like(value)
    out = fma1d(zeros, zeros, value, cell_size=1, backend='native')
    torch.testing.assert_close(out, value, rtol=0, atol=0, equal_nan=True)
    # Averages of one token likewise.
    average = pool(value, None, 1, 1, 1, 'native')
    torch.testing.assert_close(average, value, rtol=0, atol=0, equal_nan=True)


@isas
@pytest.mark.parametrize('token', [0, 30, 69])
@pytest.mark.parametrize('cell_size', [1, 2, 16, 40])
@pytest.mark.parametrize(
    'options', [dict(), dict(causal=True),
                dict(pool_queries=True)], ids=str)
def test_nan_of_a_real_key_shows(options, cell_size, token, isa) -> None:
    q, k, v = (x.detach() for x in random_qkv((70, ), dtype=torch.float32))
    k[:, token] = torch.nan
    out, lse = fma1d(
        q,
        k,
        v,
        cell_size=cell_size,
        backend='native',
        return_lse=True,
        **options)
    first = token if options.get('causal') else 0
    assert out[:, first:].isnan().all() and lse[:, first:].isnan().all()
    assert out[:, :first].isfinite().all()


def test_projections_are_not_copied(monkeypatch) -> None:
    """C gets pointers into the tensor that one projection gave."""
    qkv = torch.randn(2, 9, 13, 3, 2, 8)
    expected = [x.data_ptr() for x in qkv.unbind(-3)]
    calls, plain = [], call.run
    monkeypatch.setattr('fma_kernels.backends.native.run',
                        lambda *args: calls.append(args) or plain(*args))
    leaf = qkv.requires_grad_()
    out = fma2d(*leaf.unbind(-3), cell_size=2, backend='native')
    wide = torch.randn(2, 9, 13, 2, 16)[..., :8]  # of a larger tensor
    out.backward(wide)
    seen = {
        name: [x.query.data, x.key.data, x.value.data]
        for name, x in calls if not name.startswith('fma_pool')
    }
    assert seen == dict(fma_forward=expected, fma_backward=expected)
    assert calls[-3][1].grad_out.data == wide.data_ptr()


@pytest.mark.parametrize('pool_queries', [False, True])
def test_any_strides(pool_queries) -> None:
    """Expanded and transposed inputs, summaries and gradients."""
    h = Hierarchy((12, 10), 2)
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator)

    packed = rand(2, 3, h.num_summaries, 4).transpose(1, 2)
    inputs = [
        rand(1, 12, 1, 3, 4).expand(2, 12, 10, 3, 4),
        rand(2, 10, 12, 3, 4).transpose(1, 2),
        rand(2, 12, 10, 4, 3).transpose(3, 4),
        packed,
        packed[:1].expand(2, -1, -1, -1),
    ]
    slope = rand(1, 1, 1, 1, 1).expand(2, 12, 10, 3, 4)
    mask = random_mask((10, 12), 2).transpose(1, 2)
    results = []
    for change in (lambda x: x, lambda x: x.contiguous()):
        leaves = [change(x).detach().requires_grad_() for x in inputs]
        q, k, v, *given = leaves
        out = fma2d(
            q,
            k,
            v,
            cell_size=2,
            key_mask=change(mask),
            key_summaries=given[0],
            value_summaries=given[1],
            pool_queries=pool_queries,
            backend='native')
        results.append([out, *torch.autograd.grad(out, leaves, change(slope))])
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_misaligned_memory() -> None:
    """Of a buffer whose numbers do not start at a multiple of four bytes."""
    qkv = random_qkv((9, ), dtype=torch.float32)
    buffer = bytearray(2 + qkv[0].numel() * 4)
    shifted = torch.frombuffer(buffer, dtype=torch.float32, offset=2)
    shifted = shifted.view_as(qkv[0]).copy_(qkv[0].detach())
    options = dict(cell_size=2, backend='native')
    assert torch.equal(
        fma1d(shifted, shifted, shifted, **options),
        fma1d(*[qkv[0].detach()] * 3, **options))


# ------------------------------------------------------------------ threads
# Tiles in several bands, of which each has its own sums.
KINDS = [
    dict(shape=(70, 10)),
    dict(shape=(130, ), causal=True),
    dict(shape=(70, 10), pool_queries=True),
    dict(shape=(70, 10), biases=True),
    dict(shape=(70, 10), dropout_p=0.2, dropout_seed=5),
    dict(shape=(130, ), num_levels=0),
]


@pytest.mark.parametrize('batch, heads', [(1, 1), (2, 1), (1, 3), (1, 7),
                                          (2, 4), (5, 3), (4, 4), (4, 5)])
@pytest.mark.parametrize('kind', KINDS, ids=str)
def test_any_number_of_threads(kind, batch, heads, threads) -> None:
    options = dict(kind, cell_size=4)
    shape, biases = options.pop('shape'), options.pop('biases', False)
    h = Hierarchy(shape, 4, options.get('num_levels'))
    inputs = leaves(h, torch.float32, batch, heads, biases=biases)
    threads(1)
    expected = run('native', inputs, shape, False, **options)
    for count in (2, 3, 8):
        threads(count)
        found = run('native', inputs, shape, False, **options)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def train() -> list:
    """Output and gradients of a fixed problem."""
    inputs = list(random_qkv((40, 24), heads=3, dtype=torch.float32))
    return run('native', inputs, (40, 24), False, cell_size=4)


def test_two_threads_of_python(threads) -> None:
    threads(2)
    expected = train()
    with ThreadPoolExecutor(3) as executor:
        found = [executor.submit(train) for _ in range(12)]
    for future in found:
        assert all(
            torch.equal(a, b) for a, b in zip(future.result(), expected))


def agree(expected) -> None:
    """In a child: its exit code says whether."""
    torch.set_num_threads(2)
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(train(), expected))


def fork(expected) -> None:
    child = multiprocessing.get_context('fork').Process(
        target=agree, args=(expected, ))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        raise AssertionError('the child hangs')
    assert child.exitcode == 0


@needs_fork
def test_a_forked_child(threads) -> None:
    threads(2)
    expected = train()
    for _ in range(3):
        fork(expected)
    assert all(torch.equal(a, b) for a, b in zip(train(), expected))


@needs_fork
def test_a_child_forked_at_work(threads) -> None:
    """While another thread of the parent is inside a call."""
    threads(2)
    expected = train()
    stop = threading.Event()

    def work():
        while not stop.is_set():
            train()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(5):
            fork(expected)
    finally:
        stop.set()
        worker.join()


class Trained(torch.utils.data.Dataset):
    """Items that the op computes."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        torch.set_num_threads(2)
        return [x.detach() for x in train()]


@needs_fork
def test_workers_of_a_data_loader(threads) -> None:
    threads(2)
    expected = train()
    loader = torch.utils.data.DataLoader(
        Trained(),
        batch_size=None,
        num_workers=2,
        timeout=60,
        multiprocessing_context='fork')
    for found in loader:
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


# ------------------------------------------------------- checks of the core
def attention_args(**changes) -> list:
    """Of ``fma_kernels::attention``, on a grid of 9 x 10."""
    q, k, v = (x.detach() for x in random_qkv((9, 10), dtype=torch.float32))
    h = Hierarchy((9, 10), 2)
    summaries = torch.randn(1, h.num_summaries, 2, 4)
    args = dict(
        query=q,
        key=k,
        value=v,
        key_summaries=summaries,
        value_summaries=summaries.clone(),
        key_mask=torch.ones(1, 9, 10, dtype=torch.bool),
        seed=torch.tensor(3),
        near_bias=torch.randn(2, 49),
        far_bias=torch.randn(2, h.num_levels, 1, 49),
        cell_size=2,
        num_levels=h.num_levels,
        rank=1,
        causal=False,
        mass=True,
        scale=0.5,
        dropout_p=0.1,
        backend='native')
    assert changes.keys() <= args.keys()
    return list({**args, **changes}.values())


WRONG = [
    dict(key=torch.randn(1, 9, 9, 2, 4)),
    dict(value=torch.randn(1, 9, 10, 2, 3)),
    dict(value=torch.randn(2, 9, 10, 2, 4)),
    dict(key=torch.randn(1, 9, 10, 2, 4).bfloat16()),
    dict(key=torch.randn(1, 9, 10, 2, 4).double()),
    dict(key_summaries=torch.randn(1, 3, 2, 4)),
    dict(value_summaries=torch.randn(1, 29, 1, 4)),
    dict(key_summaries=torch.randn(1, 29, 2, 4).half()),
    dict(key_mask=torch.ones(1, 9, 9, dtype=torch.bool)),
    dict(key_mask=torch.ones(9, 10, dtype=torch.bool)),
    dict(key_mask=torch.ones(1, 9, 10)),
    dict(near_bias=torch.randn(2, 48)),
    dict(near_bias=torch.randn(1, 49)),
    dict(near_bias=torch.ones(2, 49, dtype=torch.int32)),
    dict(far_bias=torch.randn(2, 1, 1, 49)),
    dict(far_bias=torch.randn(2, 2, 1, 7)),
    dict(seed=None),
    dict(dropout_p=1.5),
    dict(near_bias=torch.randn(2, 49), num_levels=0),
]


@pytest.mark.parametrize('change', WRONG, ids=lambda x: '-'.join(x))
def test_arguments_of_the_core_op(change) -> None:
    if 'num_levels' in change:
        change = dict(
            change, key_summaries=None, value_summaries=None, far_bias=None)
    with torch.no_grad():
        attention(*attention_args())  # right as they stand
        name = next(iter(change))
        with pytest.raises((TypeError, ValueError), match=name):
            attention(*attention_args(**change))


def test_dtypes_of_the_core_op() -> None:
    q = torch.randn(1, 9, 10, 2, 4).double()
    args = dict(query=q, key=q, value=q)
    with pytest.raises(TypeError, match='float64'):
        attention(*attention_args(**args))


@pytest.mark.parametrize(
    'name, wrong, match',
    [('grad_out', torch.randn(1, 9, 10, 2, 3), 'grad_out'),
     ('grad_out', torch.randn(1, 9, 10, 2, 4).half(), 'grad_out'),
     ('grad_lse', torch.randn(1, 9, 10, 3), 'size'),
     ('grad_lse', torch.randn(2, 9, 10, 2), 'grad_lse'),
     ('out', torch.randn(1, 9, 10, 1, 4), 'out'),
     ('lse', torch.randn(1, 10, 9, 2), 'size')])
def test_arguments_of_the_backward_op(name, wrong, match) -> None:
    args = attention_args()
    with torch.no_grad():
        out, lse = attention(*args)
    given = dict(grad_out=out, grad_lse=lse, out=out, lse=lse)
    backward = torch.ops.fma_kernels.attention_backward
    backward(*given.values(), *args)
    given[name] = wrong
    # The two lse meet in PyTorch before.
    with pytest.raises((TypeError, ValueError, RuntimeError), match=match):
        backward(*given.values(), *args)


def test_arguments_of_pooled_queries() -> None:
    h = Hierarchy((9, 10), 2)
    packed = torch.randn(1, h.num_summaries, 2, 4)
    mask = torch.ones(1, 9, 10, dtype=torch.bool)
    sizes = [9, 10], 2, h.num_levels, 1, True, 0.5, 0.0, 'native'
    good = [packed, packed.clone(), packed.clone(), mask, None]
    out, lse = far_field(*good, *sizes)
    backward = torch.ops.fma_kernels.far_field_backward
    backward(out, lse, out, lse, *good, *sizes)
    short = packed[:, 1:]
    for place, kind in enumerate(('query', 'key', 'value')):
        wrong = list(good)
        wrong[place] = short
        with pytest.raises(ValueError, match=f'{kind}_summaries'):
            far_field(*wrong, *sizes)
    with pytest.raises(ValueError, match='key_mask'):
        far_field(*good[:3], mask[:, 1:], None, *sizes)
    with pytest.raises(ValueError, match='summaries'):
        far_field(*good, [9, 14], *sizes[1:])
    with pytest.raises(ValueError, match='grad_out'):
        backward(short, lse, out, lse, *good, *sizes)
    with pytest.raises(ValueError, match='out'):
        backward(out, lse, short, lse, *good, *sizes)

    qkv = random_qkv((9, 10), dtype=torch.float32)
    leaves = h.level_sizes[0]
    far = out[:, :leaves], lse[:, :leaves]
    sizes = 2, 1, 0.5, 0.0, 'native'
    near_field(*qkv, *far, mask, None, *sizes)
    near_field(*qkv, out, lse, mask, None, *sizes)  # coarser levels: unread
    for wrong, name in (((far[0][:, 1:], lse), 'out'), ((out, far[1][:, 1:]),
                                                        'lse')):
        with pytest.raises(ValueError, match=name):
            near_field(*qkv, *wrong, mask, None, *sizes)
    with pytest.raises(ValueError, match='key_mask'):
        near_field(*qkv, *far, mask[:, 1:], None, *sizes)


def test_arguments_of_averages() -> None:
    x = torch.randn(1, 9, 10, 2, 4)
    mask = torch.ones(1, 9, 10, dtype=torch.bool)
    packed = pool(x, mask, 2, 2, 1, 'native')
    for wrong in (mask[:, 1:], mask.float(), mask.expand(2, 9, 10)):
        with pytest.raises((TypeError, ValueError), match='key_mask'):
            pool(x, wrong, 2, 2, 1, 'native')
    with pytest.raises(TypeError, match='float64'):
        pool(x.double(), mask, 2, 2, 1, 'native')
    backward = torch.ops.fma_kernels.pool_backward
    backward(packed, mask, list(x.shape), 2, 2, 1, 'native')
    with pytest.raises(ValueError, match='grad'):
        backward(packed[:, 1:], mask, list(x.shape), 2, 2, 1, 'native')
    with pytest.raises(ValueError, match='key_mask'):
        backward(packed, mask[:, 1:], list(x.shape), 2, 2, 1, 'native')


def test_levels_beyond_need_of_the_core_op() -> None:
    """The public functions trim them; the op takes them as well."""
    q, k, v = random_qkv((21, ), dtype=torch.float32)
    rest = (False, True, 0.5, 0.0, 'native')
    none = [None] * 6
    for levels in (3, 4, 9, 32):
        out, lse = attention(q, k, v, *none, 2, levels, 1, *rest)
        if levels == 3:
            expected = out, lse
        assert_close(out, expected[0])
        assert_close(lse, expected[1])


# --------------------------------------------------------------- the library
def python(*args, **environment) -> subprocess.CompletedProcess:
    """A new process with this one's modules."""
    path = os.pathsep.join([str(FOLDER), *filter(None, sys.path)])
    env = dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS='1')
    env.update(environment)
    return subprocess.run([sys.executable, *args],
                          env=env,
                          capture_output=True,
                          text=True,
                          timeout=1800)


EXPLAIN = ('import torch, fma_kernels as f; '
           'x = torch.randn(1, 9, 2, 4); '
           'print(f.explain_backend(x)); f.fma1d(x, x, x, cell_size=2)')


def test_explain_backend() -> None:
    assert 'native: chosen' in python('-c', EXPLAIN).stdout


def test_explain_backend_without_a_compiler(tmp_path) -> None:
    result = python(
        '-c', EXPLAIN, PATH='', CC='', FMA_KERNELS_CACHE=str(tmp_path))
    if (build.FOLDER / build.NAME).exists():
        pytest.skip('the library lies beside the package')
    assert 'native: there is no C compiler' in result.stdout
    assert 'install gcc' in result.stdout or 'install clang' in result.stdout
    assert 'torch: chosen' in result.stdout and not result.returncode


def test_explain_backend_with_a_wrong_switch() -> None:
    result = python('-c', EXPLAIN, FMA_KERNELS_NATIVE='maybe')
    assert result.returncode and not result.stdout
    assert result.stderr.splitlines()[-1] == (
        "ValueError: FMA_KERNELS_NATIVE must be one of ['1', 'true', 'on', "
        "'yes', '0', 'false', 'off', 'no'] or unset, got 'maybe'")


def test_explain_backend_where_it_is_turned_off() -> None:
    result = python('-c', EXPLAIN, FMA_KERNELS_NATIVE='0')
    assert 'native: FMA_KERNELS_NATIVE=0 turns it off' in result.stdout
    assert 'torch: chosen' in result.stdout and not result.returncode
    explicit = EXPLAIN.replace('cell_size=2', "cell_size=2, backend='native'")
    result = python('-c', explicit, FMA_KERNELS_NATIVE='0')
    assert "backend='native' cannot run: FMA_KERNELS_NATIVE=0" in result.stderr


@pytest.mark.parametrize('isa', library.ISAS)
def test_stream(isa, monkeypatch) -> None:
    """New tokens from a state of the past, against the whole sequence."""
    if isa not in supported():
        pytest.skip(f'this processor has no {isa}')
    monkeypatch.setenv('FMA_KERNELS_ISA', isa)
    for seed in range(150):
        compare_stream(seed)


@pytest.mark.slow
def test_sanitizers(tmp_path) -> None:
    """No read or write out of bounds, no undefined behaviour."""
    command, found = build.compiler(), []
    # The latter is loaded first as well: it brings libstdc++, whose
    # exceptions the former must know.
    for name in ('libasan.so', 'libubsan.so'):
        path = subprocess.run([*command, f'-print-file-name={name}'],
                              capture_output=True,
                              text=True).stdout.strip()
        if not os.path.isabs(path):
            pytest.skip(f'{command[0]} has no {name}')
        found.append(path)
    flags = '-fsanitize=address,undefined -fno-sanitize-recover=all -g -O1'
    result = python(
        str(FOLDER / 'native_cases.py'),
        '2000',
        FMA_KERNELS_CFLAGS=flags,
        FMA_KERNELS_CACHE=str(tmp_path),
        LD_PRELOAD=' '.join(found),
        ASAN_OPTIONS='detect_leaks=0',
        UBSAN_OPTIONS='print_stacktrace=1')
    assert result.returncode == 0 and result.stdout.endswith('done\n'), (
        result.stdout[-200:] + result.stderr[-8000:])
    assert 'runtime error' not in result.stderr
    assert list(tmp_path.glob(f'*{build.SUFFIX}'))


def compiled(command, target: Path) -> str:
    """``native_program.c`` with the kernels: the path of the program."""
    subprocess.run([
        *command, '-O2', '-std=gnu11', '-fno-math-errno', '-pthread',
        '-DFMA_KEY=""', f'-I{build.FOLDER}', '-o',
        str(target),
        str(FOLDER / 'native_program.c'), *map(str, build.sources()), '-lm'
    ],
                   check=True)
    return str(target)


@pytest.mark.slow
def test_program(tmp_path) -> None:
    """Without Python, against plain loops in C."""
    program = compiled(build.compiler(), tmp_path / 'program')
    result = subprocess.run([program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_program_on_arm(tmp_path) -> None:
    """Vectors of NEON, under emulation."""
    tools = [
        shutil.which(name)
        for name in ('aarch64-linux-gnu-gcc', 'qemu-aarch64')
    ]
    if None in tools:
        pytest.skip('needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: '
                    'gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user)')
    program = compiled([tools[0], '-static'], tmp_path / 'program')
    result = subprocess.run([tools[1], program],
                            capture_output=True,
                            text=True)
    assert result.returncode == 0, result.stdout


def test_bias_entries_far_from_the_origin() -> None:
    """Rows times the width of the table exceed 31 bits."""
    size, m = 560000, 1000
    query = torch.randn(1, size, 1, 1, 1)
    table = torch.zeros(1, (4 * m - 1)**2)
    options = dict(cell_size=m, backend='native')
    out = fma2d(query, query, query, near_bias=table, **options)
    assert torch.equal(out, fma2d(query, query, query, **options))
