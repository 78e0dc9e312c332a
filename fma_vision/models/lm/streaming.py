"""Reading a text piece by piece, with a state instead of the past.

States are values: a call returns a new one and leaves the old as it was, so
that a text can be continued from one state in many ways.
"""

from dataclasses import dataclass
from typing import (Any, Dict, List, MutableMapping, NamedTuple, Optional,
                    Sequence, Tuple)
from weakref import WeakKeyDictionary

import torch
import torch.nn as nn

from ...layers import FMAttention1D, FMMformerAttention1D, FullAttention1D
from .cache_stream import CacheState, CacheStream
from .chunk import Chunk, grown
from .fmmformer_stream import FMMformerState, FMMformerStream
from .multipole_state import MultipoleState
from .multipole_stream import MultipoleStream

_KINDS = {
    'cache': CacheState,
    'fmmformer': FMMformerState,
    'multipole': MultipoleState
}


@dataclass(frozen=True, eq=False)
class LMState:
    """What a model keeps of the texts that it has read.

    Attributes:
        lengths (tuple[int]): Tokens read, per row of the batch.
        layers (tuple): One state per block.
    """
    lengths: Tuple[int, ...]
    layers: Tuple[NamedTuple, ...]

    @property
    def batch(self) -> int:
        """Number of texts."""
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for layer in self.layers
                   for x in layer)

    def to(self, *args: Any, **kwargs: Any) -> 'LMState':
        """Move all tensors; see :meth:`torch.Tensor.to`.

        Running sums stay in float32 or wider.
        """

        def moved(x: torch.Tensor, wide: bool) -> torch.Tensor:
            new = x.to(*args, **kwargs)
            if not wide:
                return new
            return x.to(new.device,
                        torch.promote_types(new.dtype, torch.float32))

        return LMState(
            self.lengths,
            tuple(
                type(layer)(*(moved(x, name in layer.wide)
                              for name, x in layer._asdict().items()))
                for layer in self.layers))

    def select(self, rows: Sequence[int]) -> 'LMState':
        """Keep, repeat or reorder texts.

        Args:
            rows (sequence[int]): Their indices.
        """
        rows = list(rows)
        return LMState(
            tuple(self.lengths[row] for row in rows),
            tuple(
                type(layer)(*(x[:, rows] for x in layer))
                for layer in self.layers))

    @staticmethod
    def join(states: Sequence['LMState']) -> 'LMState':
        """Put the texts of several states of one model into one batch.

        Raises:
            ValueError: If they are of different models.
        """
        layers = []
        for parts in zip(*(state.layers for state in states), strict=True):
            if len({type(part) for part in parts}) > 1:
                raise ValueError('states of different models do not join')
            # Axis 2 is longer where more has been read.
            fields = [(max(x.shape[2] for x in same), same)
                      for same in zip(*parts)]
            layers.append(
                type(parts[0])(*(torch.cat([grown(x, size) for x in same], 1)
                                 for size, same in fields)))
        lengths = sum((state.lengths for state in states), ())
        return LMState(lengths, tuple(layers))

    def state_dict(self) -> Dict[str, Any]:
        """Plain types and tensors, for ``torch.save``."""
        names = {cls: name for name, cls in _KINDS.items()}
        # Contiguous: of a view, all of the memory would be saved.
        return dict(
            lengths=list(self.lengths),
            layers=[
                dict(
                    {
                        name: x.contiguous()
                        for name, x in layer._asdict().items()
                    },
                    kind=names[type(layer)]) for layer in self.layers
            ])

    @staticmethod
    def from_state_dict(content: Dict[str, Any]) -> 'LMState':
        """The inverse of :meth:`state_dict`.

        Raises:
            ValueError: If ``content`` is something else.
        """
        try:
            layers = []
            for layer in content['layers']:
                fields = dict(layer)
                kind = _KINDS[fields.pop('kind')]
                if not all(torch.is_tensor(x) for x in fields.values()):
                    raise TypeError('a field is no tensor')
                layers.append(kind(**fields))
            return LMState(
                tuple(int(n) for n in content['lengths']), tuple(layers))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError('not the state of a language model: '
                             f'{type(error).__name__} {error}') from error


def stream_of(attn: nn.Module) -> Any:
    """The streaming form of an attention layer.

    Args:
        attn (nn.Module): A causal layer. A layer of another kind may have a
            method ``stream()`` that returns an object like
            :class:`.cache_stream.CacheStream`.

    Raises:
        TypeError: If the layer has none.
        ValueError: If the layer is not causal.
    """
    if not getattr(attn, 'causal', False):
        raise ValueError('only a causal model reads token by token; '
                         f'{type(attn).__name__} has causal=False')
    if hasattr(attn, 'stream'):
        return attn.stream()
    if getattr(attn, 'positions', None) == 'relative':
        raise TypeError(f"{type(attn).__name__} with positions='relative' has "
                        'no streaming form: a model that reads token by token '
                        "needs 'rotary' or no positions in its layers")
    if isinstance(attn, FMAttention1D):
        return CacheStream(attn) if attn.num_levels == 0 else \
            MultipoleStream(attn)
    if isinstance(attn, FullAttention1D):
        return CacheStream(attn)
    if isinstance(attn, FMMformerAttention1D):
        return FMMformerStream(attn)
    raise TypeError(f'{type(attn).__name__} has no streaming form; it needs '
                    'a method stream()')


def _streams(model: nn.Module) -> List[Any]:
    if model.training:
        raise RuntimeError('streaming draws no dropout: call model.eval() '
                           'first')
    return [stream_of(block.attn) for block in model.blocks]


# The streams that made a state: to go on with them, nothing needs a check.
_MADE: MutableMapping[LMState, List[Any]] = WeakKeyDictionary()


def _streams_for(model: nn.Module, state: LMState, batch: int) -> List[Any]:
    """The streams of a model, which fit a state of so many texts."""
    made = _MADE.get(state, ())
    attns = [block.attn for block in model.blocks]
    if (batch == state.batch and not model.training
            and attns == [getattr(x, 'attn', None) for x in made]):
        return made
    streams = _streams(model)
    _check_state(streams, state, batch)
    return streams


def _check_state(streams: List[Any], state: LMState, batch: int) -> None:
    """Refuse a state that another kind of model has made."""
    if len(state.layers) != len(streams) or state.batch != batch:
        raise ValueError(
            f'the state has {len(state.layers)} layers and {state.batch} '
            f'texts, the model {len(streams)} layers and the tokens '
            f'{batch} texts')
    for index, (stream, layer) in enumerate(zip(streams, state.layers)):
        fresh = stream.init(0, torch.device('cpu'), torch.float32)  # empty
        if type(fresh) is not type(layer):
            raise ValueError(f'layer {index} of the state is a '
                             f'{type(layer).__name__}, the model\'s a '
                             f'{type(fresh).__name__}: it is of another model')
        for name, own in fresh._asdict().items():
            given = getattr(layer, name)
            first = 3 if name in fresh.growing else 2
            if given.shape[first:] != own.shape[first:]:
                raise ValueError(
                    f'{name} of layer {index} of the state is '
                    f'{tuple(given.shape)}, the model\'s ends in '
                    f'{tuple(own.shape[first:])}: it is of another model')


def init_state(model: nn.Module,
               batch: int = 1,
               dtype: Optional[torch.dtype] = None) -> LMState:
    """The state before the first token.

    Args:
        model (FMALanguageModel): Causal, in eval mode.
        batch (int): Number of texts.
        dtype (torch.dtype, optional): Of keys and values; that of the
            model's weights by default.

    Returns:
        LMState: On the device of the model.

    Raises:
        ValueError: If the model is not causal.
    """
    weight = model.embed.weight
    return LMState((0, ) * batch,
                   tuple(
                       stream.init(batch, weight.device, dtype or weight.dtype)
                       for stream in _streams(model)))


def _advance(model: nn.Module, streams: List[Any], tokens: torch.Tensor,
             counts: Sequence[int],
             state: LMState) -> Tuple[torch.Tensor, LMState]:
    """Read one chunk ``[B, T]``: features ``[B, T, C]`` and the state."""
    chunk = Chunk(state.lengths, counts, tokens.shape[1], tokens.device)
    tokens = model.check_tokens(tokens, max(chunk.ends))
    limit = model.max_length
    at = chunk.at if limit is None else chunk.at.clamp(max=limit - 1)
    x = model.embed_tokens(tokens, at)
    layers = []
    for block, stream, layer in zip(model.blocks, streams, state.layers):
        fused = getattr(stream, 'block', None)
        found = fused(block, x, layer, chunk) if fused else None
        x, layer = found or _apply(block, stream, x, layer, chunk)
        layers.append(layer)
    state = LMState(chunk.ends, tuple(layers))
    _MADE[state] = streams
    return x, state


def _apply(block: nn.Module, stream: Any, x: torch.Tensor, layer: NamedTuple,
           chunk: Chunk) -> Tuple[torch.Tensor, NamedTuple]:
    """A block by its layers: ``[B, T, C]`` and the state after."""
    # [B * T, C]: for a single token, products of two axes are faster.
    rows = x.flatten(0, 1)
    out, layer = stream(block.norm1(rows).view(x.shape), layer, chunk)
    rows = rows + out.reshape(rows.shape)
    return (rows + block.mlp(block.norm2(rows))).view(x.shape), layer


@torch.no_grad()
def step(model: nn.Module, token: torch.Tensor,
         state: LMState) -> Tuple[torch.Tensor, LMState]:
    """Read one token of each text.

    Args:
        model (FMALanguageModel): Causal, in eval mode.
        token (Tensor): int ``[B]``.
        state (LMState): What was read before; it is not changed.

    Returns:
        tuple[Tensor, LMState]: Logits of the next token ``[B, vocab_size]``,
        those that the parallel form gives at this position, and the state
        after.

    Raises:
        TypeError, ValueError: If token or state do not fit the model.
        RuntimeError: If the model is in training mode.
    """
    if token.ndim != 1:
        raise ValueError(f'token must be [B], got {tuple(token.shape)}')
    streams = _streams_for(model, state, len(token))
    x, state = _advance(model, streams, token[:, None], (1, ) * len(token),
                        state)
    return model.logits(x[:, 0]), state


@torch.no_grad()
def prefill(model: nn.Module,
            tokens: torch.Tensor,
            lengths: Optional[Sequence[int]] = None,
            state: Optional[LMState] = None,
            chunk_size: int = 4096,
            return_all: bool = False) -> Tuple[torch.Tensor, LMState]:
    """Read many tokens of each text, in chunks of bounded memory.

    Args:
        model (FMALanguageModel): Causal, in eval mode.
        tokens (Tensor): int ``[B, N]``, filled at the end with any token
            where texts differ in length.
        lengths (sequence[int], optional): Real tokens per row, at least 1;
            N by default.
        state (LMState, optional): What was read before; nothing by default.
        chunk_size (int): Most tokens of a row at once. Defaults to 4096.
        return_all (bool): Return the logits of all tokens.

    Returns:
        tuple[Tensor, LMState]: Logits after the last real token of each row
        ``[B, vocab_size]``, or ``[B, N, vocab_size]`` with ``return_all``
        (0 beyond the length of a row), and the state after.

    Raises:
        TypeError, ValueError: If an argument does not fit.
        RuntimeError: If the model is in training mode.
    """
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise ValueError('tokens must be [B, N] with B, N >= 1, got '
                         f'{tuple(tokens.shape)}')
    if chunk_size < 1:
        raise ValueError(f'chunk_size must be at least 1, got {chunk_size}')
    batch, size = tokens.shape
    lengths = [size] * batch if lengths is None else [int(n) for n in lengths]
    if len(lengths) != batch or not 1 <= min(lengths) <= max(lengths) <= size:
        raise ValueError(f'lengths must be {batch} numbers in [1, {size}], '
                         f'got {lengths}')
    state = init_state(model, batch) if state is None else state
    streams = _streams_for(model, state, batch)
    if len(set(state.lengths)) > 1:
        # Their cells lie differently: one row at a time.
        rows = [
            prefill(model, tokens[row, None], [lengths[row]],
                    state.select([row]), chunk_size, return_all)
            for row in range(batch)
        ]
        logits, states = zip(*rows)
        return torch.cat(logits), LMState.join(states)
    begin, found, last = state.lengths[0], [], None
    done = 0
    while done < max(lengths):
        rooms = [stream.room(begin + done) for stream in streams]
        rooms = [room for room in rooms if room is not None]
        width = min([chunk_size, max(lengths) - done, *rooms])
        counts = [min(max(n - done, 0), width) for n in lengths]
        x, state = _advance(model, streams, tokens[:, done:done + width],
                            counts, state)
        if return_all:
            real = torch.arange(width) < torch.tensor(counts)[:, None]
            logits = model.logits(x)
            found.append(logits.masked_fill(~real.to(x.device)[..., None], 0))
        else:
            # Rows whose last token is in this chunk.
            index = torch.tensor(counts, device=x.device).clamp(min=1) - 1
            at = x[torch.arange(batch, device=x.device), index]  # [B, C]
            going = torch.tensor([n > 0 for n in counts], device=x.device)
            last = at if last is None else torch.where(going[:,
                                                             None], at, last)
        done += width
    if return_all:
        if done < size:
            found.append(found[0].new_zeros(batch, size - done,
                                            found[0].shape[-1]))
        return torch.cat(found, dim=1), state
    return model.logits(last), state
