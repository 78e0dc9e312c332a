"""Other approximations, through the packages that their users install.

Of each package only the attention itself is used: its projections become
identities, and a convolution of values that Nystromformer's adds (learned, no
part of the approximation) is off. A package that is missing costs its rows.
"""

import contextlib
import io
import math
from functools import partial
from importlib import import_module
from typing import Any, Dict, List, Tuple

import torch
from torch import Tensor, nn

from fma_vision.layers.baselines.band import banded_attention
from fma_vision.layers.baselines.linear import linear_attention
from fma_vision.utils.errors import one_line

from .measure import full_attention
from .method import BIDIRECTIONAL, CAUSAL, Call, Method, largest_difference
from .subjects import Subject

H_TRANSFORMER = 'H-Transformer-1D'
PERFORMER = 'Performer'
NYSTROMFORMER = 'Nystromformer'
FMMFORMER = 'FMMformer'
# Distributions by family; the others are this project's own.
PACKAGES = {
    H_TRANSFORMER: 'h-transformer-1d',
    PERFORMER: 'performer-pytorch',
    NYSTROMFORMER: 'nystrom-attention'
}
BLOCKS = (16, 64, 128)
FEATURES = (266, 1024)  # 64 log 64 is the package's default
LANDMARKS = (64, 256)
BAND, MAPS = 20, 2

# ------------------------------------------------------- H-Transformer-1D


def h_transformer_call(subject: Subject,
                       causal: bool,
                       _: Any = None,
                       block_size: int = 64,
                       masses: bool = False) -> Call:
    """The package's layer between identities.

    Args:
        subject: Query, key and value; the length is a power of two.
        causal: Attend to the left only.
        block_size: Tokens of a block, the paper's N_r.
        masses: Divide by the weights of tokens. The package sums values of
            coarse tokens, but counts each as one token where it normalises.
            A channel of ones, added here, is summed as values are, and
            dividing by it mends that.
    """
    module = import_module('h_transformer_1d.h_transformer_1d')
    heads, head_dim = subject.query.shape[2:]
    if masses:
        ones = torch.ones_like(subject.value[..., :1])
        subject = Subject(*(torch.cat([x, y], -1)
                            for x, y in ((subject.query,
                                          0 * ones), (subject.key, 0 * ones),
                                         (subject.value, ones))))
    options = dict(
        heads=heads, dim_head=subject.query.shape[-1], block_size=block_size)
    if causal:
        layer = module.CausalHAttention1D(
            1, max_seq_len=subject.length, **options)
    else:
        layer = module.HAttention1D(1, **options)
    layer.to_qkv = layer.to_out = nn.Identity()
    layer.scale = head_dim**-.5
    x = subject.packed

    def call() -> Tensor:
        out = layer(x).unflatten(-1, (heads, -1))
        return out[..., :-1] / out[..., -1:] if masses else out

    return call


def h_transformer_pairs(length: int, block: int, causal: bool) -> Tensor:
    """Which pairs the package's layer covers: bool ``[N, N]``.

    Blocks of level l hold ``block * 2**l`` tokens. It attends inside the
    block and to its twin, at each level that it has. That leaves out the
    other half of the text; if causal, it also leaves out the twin at level
    0, and at level l all queries but the last of each 2**l tokens.
    """
    at = torch.arange(length)
    own = at // block
    pairs = own[:, None] == own
    top = int(math.log2(length // block))
    if causal:
        pairs = pairs.tril()
        for level in range(1, top):
            mine = at // (block * 2**level)
            left = (mine[:, None] % 2 == 1) & (mine == mine[:, None] - 1)
            pairs |= left & ((at + 1) % 2**level == 0)[:, None]
        return pairs
    for level in range(top - 1):
        mine = at // (block * 2**level)
        pairs |= mine == (mine ^ 1)[:, None]
    return pairs


def check_h_transformer(heads: int, head_dim: int) -> Dict[str, float]:
    """With equal logits, a mean over the pairs covered."""
    length, block = 128, 8
    query, key, value = torch.randn(3, 1, length, heads, head_dim)
    subject = Subject(0 * query, key, value)
    found = {}
    for causal in (CAUSAL, BIDIRECTIONAL):
        pairs = h_transformer_pairs(length, block, causal).float()
        mean = torch.einsum('ij,bjhd->bihd', pairs / pairs.sum(1, True), value)
        out = h_transformer_call(
            subject, causal, block_size=block, masses=True)()
        found[f'mean, causal={causal}'] = largest_difference(out, mean)
    # Inside its blocks, the causal form is exact.
    subject = Subject(query[:, :2 * block], key[:, :2 * block],
                      value[:, :2 * block])
    out = h_transformer_call(subject, CAUSAL, block_size=block)()
    halves = [
        full_attention(*(x[:, s:s + block]
                         for x in (query, key, value)), CAUSAL)
        for s in (0, block)
    ]
    found['block'] = largest_difference(out, torch.cat(halves, 1))
    return found


def h_transformer() -> List[Method]:
    import_module('h_transformer_1d')
    note = ('the package leaves out pairs: bidirectional, half of them; '
            'causal, most of the far ones')
    return [
        Method(
            H_TRANSFORMER,
            f'block {block}' + (', masses mended' if masses else ''),
            partial(h_transformer_call, block_size=block, masses=masses),
            dict(block_size=block, masses=masses),
            note=note) for masses in (False, True) for block in BLOCKS
    ]


# -------------------------------------------------------------- Performer


def performer_layer(features: int, head_dim: int, causal: bool,
                    seed: int) -> nn.Module:
    """The package's attention with a random projection of its own."""
    module = import_module('performer_pytorch.performer_pytorch')
    with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(seed)
        # It prints that it has no CUDA code for the causal form.
        return module.FastAttention(
            head_dim, nb_features=features, causal=causal)


def performer_call(subject: Subject,
                   causal: bool,
                   seed: Any = None,
                   features: int = 266) -> Call:
    """The package's attention; causal: its form without CUDA code."""
    layer = performer_layer(features, subject.query.shape[-1], causal, seed
                            or 0)
    # Heads first, contiguous: as its own layer hands them on.
    given = subject.heads_first
    return lambda: layer(*given).transpose(1, 2)


def performer_features(layer: nn.Module, query: Tensor,
                       key: Tensor) -> Tuple[Tensor, Tensor]:
    """The package's random features of heads-first queries and keys."""
    module = import_module('performer_pytorch.performer_pytorch')
    return tuple(
        module.softmax_kernel(
            x, projection_matrix=layer.projection_matrix, is_query=asking)
        for x, asking in ((query, True), (key, False)))


def performer_chunked(subject: Subject,
                      causal: bool,
                      seed: Any = None,
                      features: int = 266,
                      chunk: int = 128) -> Call:
    """The package's features, causal sums chunk by chunk.

    Its own causal form without CUDA code writes a matrix for every token;
    this one writes one for every chunk, which is what Performer costs.
    """
    layer = performer_layer(features, subject.query.shape[-1], CAUSAL, seed
                            or 0)
    asking, asked, told = subject.heads_first

    def call() -> Tensor:
        query, key = performer_features(layer, asking, asked)
        value = nn.functional.pad(told, (0, 1), value=1.)
        before, parts = 0, []
        for q, k, v in zip(*(x.split(chunk, 2) for x in (query, key, value))):
            inside = (q @ k.transpose(-2, -1)).tril() @ v
            parts.append(inside + q @ before if parts else inside)
            before = before + k.transpose(-2, -1) @ v
        out = torch.cat(parts, 2).transpose(1, 2)
        return out[..., :-1] / out[..., -1:]

    return call


def check_performer(heads: int, head_dim: int) -> Dict[str, float]:
    """Its linear forms against the weights that they stand for."""
    length, features = 300, 40
    query, key, value = torch.randn(3, 1, length, heads, head_dim)
    subject = Subject(query, key, value)
    found = {}
    for causal in (CAUSAL, BIDIRECTIONAL):
        layer = performer_layer(features, head_dim, causal, 0)
        phi, psi = performer_features(layer, query.transpose(1, 2),
                                      key.transpose(1, 2))
        weights = phi.double() @ psi.double().transpose(-2, -1)
        weights = weights.tril() if causal else weights
        total = weights.sum(-1, keepdim=True)
        sums = (weights @ value.transpose(1, 2).double()).transpose(1, 2)
        # The package's causal form adds 1e-6 to every sum of key features.
        small = 1e-6 * causal * phi.double().sum(-1, keepdim=True)
        for call, norm in ((performer_call, total + small),
                           (performer_chunked, total))[:1 + causal]:
            out = call(subject, causal, features=features)()
            found[f'{call.__name__}, causal={causal}'] = largest_difference(
                out, sums / norm.transpose(1, 2))
    return found


def performer(draws: int) -> List[Method]:
    import_module('performer_pytorch')
    whole = [
        Method(
            PERFORMER,
            f'{features} features',
            partial(performer_call, features=features),
            dict(features=features),
            # The causal form would hold gigabytes with more features.
            modes=(CAUSAL, BIDIRECTIONAL) if features < 512 else
            (BIDIRECTIONAL, ),
            draws=draws) for features in FEATURES
    ]
    chunked = [
        Method(
            PERFORMER,
            f'{features} features, causal sums in chunks',
            partial(performer_chunked, features=features),
            dict(features=features),
            modes=(CAUSAL, ),
            draws=draws,
            note='features of the package, sums of this script')
        for features in FEATURES
    ]
    return whole + chunked


# ---------------------------------------------------------- Nystromformer


def nystromformer_call(subject: Subject,
                       causal: bool,
                       _: Any = None,
                       landmarks: int = 256,
                       iterations: int = 6) -> Call:
    """The package's layer between identities, without its convolution."""
    module = import_module('nystrom_attention')
    heads, head_dim = subject.query.shape[2:]
    layer = module.NystromAttention(
        1,
        dim_head=head_dim,
        heads=heads,
        num_landmarks=landmarks,
        pinv_iterations=iterations,
        residual=False)
    layer.to_qkv = layer.to_out = nn.Identity()
    x = subject.packed
    return lambda: layer(x).unflatten(-1, (heads, head_dim))


def check_nystromformer(heads: int, head_dim: int) -> Dict[str, float]:
    """As many landmarks as tokens give full attention."""
    length = 16
    query, key, value = torch.randn(3, 1, length, heads, head_dim)
    out = nystromformer_call(
        Subject(query, key, value),
        BIDIRECTIONAL,
        landmarks=length,
        iterations=30)()
    exact = full_attention(query, key, value, BIDIRECTIONAL)
    return dict(full=largest_difference(out, exact))


def nystromformer() -> List[Method]:
    import_module('nystrom_attention')
    return [
        Method(
            NYSTROMFORMER,
            f'{landmarks} landmarks',
            partial(nystromformer_call, landmarks=landmarks),
            dict(landmarks=landmarks),
            modes=(BIDIRECTIONAL, ),
            note='has no causal form') for landmarks in LANDMARKS
    ]


# -------------------------------------------------------------- FMMformer


def fields(subject: Subject, causal: bool) -> Tensor:
    """Near and far fields: ``[1 + R, 1, N, heads, head_dim]``."""
    given = subject.query, subject.key, subject.value
    near = banded_attention(*given, BAND, causal)
    far, _ = linear_attention(*given, MAPS, causal)
    return torch.cat([near[None], far])


def fmmformer_call(subject: Subject,
                   causal: bool,
                   weights: Any = None) -> Call:
    """Weighted fields; by default as a new layer weighs them.

    Args:
        subject: Query, key and value.
        causal: Attend to the left only.
        weights: ``[1 + R, heads, head_dim]``.
    """
    if weights is None:
        weights = torch.tensor([0.] + [1 / MAPS] * MAPS)[:, None, None]

    def call() -> Tensor:
        return (weights[:, None, None] * fields(subject, causal)).sum(0)

    return call


def fit_fmmformer(subject: Subject, exact: Tensor, causal: bool) -> Tensor:
    """The layer's weights, by head and channel, with the least error.

    Returns:
        ``[1 + R, heads, head_dim]``.
    """
    # [heads, head_dim, N, 1 + R]
    parts = fields(subject, causal)[:, 0].double().permute(2, 3, 1, 0)
    wanted = exact[0].permute(1, 2, 0)[..., None]
    found = torch.linalg.lstsq(parts, wanted).solution[..., 0]
    return found.permute(2, 0, 1).float()


def check_fmmformer(heads: int, head_dim: int) -> Dict[str, float]:
    """Fields against dense weights."""
    length = 90
    query, key, value = torch.randn(3, 1, length, heads, head_dim)
    subject = Subject(query, key, value)
    at = torch.arange(length)
    away = at[:, None] - at
    phi = (lambda x: nn.functional.elu(x) + 1,
           lambda x: nn.functional.elu(-x) + 1)
    q, k, v = (x[0].transpose(0, 1).double() for x in (query, key, value))
    found = {}
    for causal in (CAUSAL, BIDIRECTIONAL):
        seen = away >= 0 if causal else torch.ones_like(away, dtype=torch.bool)
        logits = q @ k.transpose(1, 2) * head_dim**-.5
        logits = logits.masked_fill(~(seen & (away.abs() <= BAND)), -math.inf)
        dense = [logits.softmax(-1)]
        for f in phi:
            weights = (f(q) @ f(k).transpose(1, 2)) * seen
            dense.append(weights / weights.sum(-1, keepdim=True))
        expected = (torch.stack(dense) @ v).transpose(1, 2)[:, None]
        found[f'fields, causal={causal}'] = largest_difference(
            fields(subject, causal), expected)
    return found


def fmmformer() -> List[Method]:
    setting = dict(band=BAND, feature_maps=MAPS)
    return [
        Method(FMMFORMER, 'weights as at the start', fmmformer_call, setting),
        Method(
            FMMFORMER,
            'weights fitted',
            fmmformer_call,
            setting,
            fit=fit_fmmformer,
            note='weights by head and channel, least squares to full '
            'attention on another piece')
    ]


# -------------------------------------------------------------- reference


def sdpa_call(subject: Subject, causal: bool, _: Any = None) -> Call:
    """PyTorch's attention over all tokens."""
    given = subject.heads_first
    attend = nn.functional.scaled_dot_product_attention
    return lambda: attend(*given, is_causal=causal).transpose(1, 2)


def band_call(subject: Subject,
              causal: bool,
              _: Any = None,
              band: int = 128) -> Call:
    """Attention inside a band, nothing afar."""
    given = subject.query, subject.key, subject.value
    return lambda: banded_attention(*given, band, causal)


def references() -> List[Method]:
    return [
        Method('SDPA', 'all tokens', sdpa_call, reference=True),
        Method(
            'Band',
            'nothing beyond 128 tokens',
            band_call,
            dict(band=128),
            reference=True)
    ]


def check_references(heads: int, head_dim: int) -> Dict[str, float]:
    """Both against the definition; a band that holds all is exact."""
    query, key, value = torch.randn(3, 1, 70, heads, head_dim)
    subject = Subject(query, key, value)
    return {
        f'{call.__name__}, causal={causal}':
        largest_difference(
            call(subject, causal)(), full_attention(query, key, value, causal))
        for call in (sdpa_call, band_call)
        for causal in (CAUSAL, BIDIRECTIONAL)
    }


CHECKS = {
    H_TRANSFORMER: check_h_transformer,
    PERFORMER: check_performer,
    NYSTROMFORMER: check_nystromformer,
    FMMFORMER: check_fmmformer,
}


def rivals(draws: int) -> Tuple[List[Method], Dict[str, str]]:
    """All methods whose package is there, and why others are not.

    Args:
        draws: Seeds of random methods.

    Returns:
        The methods, and the reason for each family that is left out.
    """
    found, missing = [], {}
    for family, make in ((H_TRANSFORMER, h_transformer),
                         (PERFORMER, partial(performer, draws)),
                         (NYSTROMFORMER, nystromformer), (FMMFORMER,
                                                          fmmformer)):
        try:
            found += make()
        except ImportError as error:
            missing[family] = (f'{PACKAGES[family]} cannot be imported '
                               f'({one_line(error)}): '
                               "pip install -e '.[compare]'")
    return found, missing
