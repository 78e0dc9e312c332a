"""Continues a text, letter by letter, with a state that hardly grows.

Without arguments: a sentence of an unwritten novel and the weights this
project ships.

    python demo/lm_demo.py
    python demo/lm_demo.py --prompt 'The old house ' --temperature 0.7
    python demo/lm_demo.py --prompt-file book.txt --max-new-tokens 2000
    python demo/lm_demo.py --interactive
    python demo/lm_demo.py CONFIG CHECKPOINT --prompt 'ROMEO:' --seed 1

The continuation alone goes to stdout, all else to stderr. Exit status: 0, 2
after an error, 130 after Ctrl-C.
"""

import argparse
import os
import secrets
import sys
import time
import warnings
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterator, NoReturn, Optional, Sequence, Tuple

import torch

ROOT = Path(__file__).resolve().parents[1]
if __name__ == '__main__':  # so that a checkout works without installing it
    sys.path[:0] = [str(ROOT), str(ROOT / 'kernels')]

from fma_vision.datasets.vocabulary import Vocabulary  # noqa: E402
from fma_vision.datasets.vocabulary import build_vocabulary  # noqa: E402
from fma_vision.engine.errors import one_line  # noqa: E402

# The model of a call without CONFIG and CHECKPOINT; change both together.
DEMO_CONFIG = ROOT / 'configs/lm/fma-lm-nano_1xb2-3k_books-1k.py'
DEMO_CHECKPOINT = ROOT / 'demo/weights/fma-lm-nano_books.pth'

# Of characters that any English text has.
DEMO_PROMPT = (
    'It was late in the autumn of that year when the old physician, who had '
    'not left his house since the death of his wife, was seen to cross the '
    'market-place with a letter in his hand, and those who met him')
PARAGRAPH = '\n\n'
PROMPT_SHOWN = 300  # characters
READ_AT_ONCE = 4 * 4096  # tokens, a multiple of what prefill takes
HELP = ('A line begins a new paragraph, one that starts with a space goes on '
        'in the old; an empty line lets the model go on. /reset forgets the '
        'text, /quit or Ctrl-D ends.')


class DemoError(Exception):
    """Something a user can put right; its text is the one line shown."""


# ----------------------------------------------------------------- model


def saved_vocabulary(content: Any, path: str) -> Vocabulary:
    """The vocabulary that a checkpoint keeps of its training data.

    Args:
        content: The checkpoint.
        path: Its file, for messages.

    Raises:
        DemoError: If it keeps none, or one that cannot be used.
    """
    saved = content
    for key in ('meta', 'dataset_meta', 'vocabulary'):
        saved = saved.get(key) if isinstance(saved, dict) else None
    if not isinstance(saved, dict):
        raise DemoError(f'checkpoint {path} keeps no vocabulary, as one of '
                        'tools/train.py does in meta.dataset_meta.vocabulary')
    try:
        return build_vocabulary(saved)
    except (ImportError, ValueError) as error:
        raise DemoError(f'checkpoint {path}: {error}') from None


def load_model(config: str, checkpoint: str,
               device: str) -> Tuple[torch.nn.Module, Vocabulary]:
    """Builds a causal language model and loads its weights.

    Args:
        config: Path of the config.
        checkpoint: Path of weights that match it.
        device: Where to run, e.g. ``'cpu'`` or ``'cuda:0'``.

    Returns:
        The :class:`FMALanguageModel` in evaluation mode and its vocabulary.

    Raises:
        DemoError, UserError: If any of them cannot be used.
    """
    from fma_vision.engine import (check_weights, read_checkpoint,
                                   select_state_dict)
    from fma_vision.engine.build import build_model, load_model_config
    from fma_vision.models.lm import FMALanguageModel
    cfg = load_model_config(config)
    content = read_checkpoint(checkpoint)
    state = select_state_dict(content, checkpoint)
    task = build_model(cfg)
    model = getattr(task, 'net', None)
    if not isinstance(model, FMALanguageModel):
        raise DemoError(f'config {config} is of no language model: it builds '
                        f'{type(task).__name__}')
    if not model.causal:
        raise DemoError(f'config {config} is of a masked language model '
                        '(causal=False); only a causal one continues a text')
    check_weights(task, state, checkpoint)
    task.load_state_dict(state)  # into float32, whatever the file holds
    vocabulary = saved_vocabulary(content, checkpoint)
    if vocabulary.vocab_size != model.vocab_size:
        raise DemoError(f'checkpoint {checkpoint} keeps a vocabulary of '
                        f'{vocabulary.vocab_size} tokens, the model has '
                        f'{model.vocab_size}')
    try:
        return model.to(device), vocabulary
    except (RuntimeError, AssertionError) as error:
        raise DemoError(f'--device {device!r} cannot be used: '
                        f'{one_line(error, 120)}') from None


# --------------------------------------------------------------- writing


class Writer:
    """A model in the midst of a text.

    Args:
        model: A causal :class:`FMALanguageModel` in evaluation mode.
        vocabulary: Its vocabulary.
        seed: Of all that is drawn.
        options: How to draw: arguments of :func:`fma_vision.models.lm.sample`.

    Attributes:
        state: What the model keeps of the text.
    """

    def __init__(self, model: torch.nn.Module, vocabulary: Vocabulary,
                 seed: int, options: Dict[str, Any]) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.options = options
        self.device = model.embed.weight.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.reset()

    def reset(self) -> None:
        """Forgets the text; what is drawn from now on differs."""
        self.state = self.model.init_state()
        self._logits = torch.empty(1, 0)  # of the next token, [1, vocab_size]
        self._unread = torch.empty(0, dtype=torch.int64, device=self.device)
        self._pieces: Iterator[str] = iter(())

    @property
    def context(self) -> int:
        """Tokens that the state stands for."""
        return self.state.lengths[0]

    @property
    def cache_nbytes(self) -> int:
        """Bytes of all keys and values of these tokens."""
        per_token = 2 * len(self.model.blocks) * self.model.embed_dims
        size = self.model.embed.weight.element_size()
        return self.context * per_token * size

    def encode(self, text: str) -> torch.Tensor:
        """Tokens of a text, int64 ``[N]``.

        Raises:
            DemoError: If it has none, or the vocabulary cannot write it.
        """
        try:
            tokens = self.vocabulary.encode(text)
        except ValueError as error:
            raise DemoError('the model cannot read this text: '
                            f'{one_line(error)}') from None
        if not len(tokens):
            raise DemoError(f'the text {text[:20]!r} has no tokens')
        return tokens

    def read(self, tokens: torch.Tensor) -> None:
        """Reads tokens ``[N]``, N >= 1, after what there is."""
        new = torch.cat([self._unread, tokens.to(self.device)])
        self._logits, self.state = self.model.prefill(
            new[None], state=self.state)
        self._unread = new[:0]
        # Half a character that was drawn before stays one.
        self._pieces = self.vocabulary.decode_stream(self._tokens())
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def write(self, count: int) -> Iterator[str]:
        """Goes on with the text.

        Args:
            count: Tokens to draw.

        Yields:
            What can be shown after each token. A character that is not
            complete at the end is shown by the next call.
        """
        return islice(self._pieces, count)

    def _tokens(self) -> Iterator[int]:
        """Draws tokens, each read when the next is asked for."""
        from fma_vision.models.lm import sample
        while True:
            if len(self._unread):
                self._logits, self.state = self.model.step(
                    self._unread, self.state)
            self._unread = sample(
                self._logits, generator=self.generator, **self.options)
            yield int(self._unread)


def until(pieces: Iterator[str], stop: Optional[str]) -> Iterator[str]:
    """Pieces of a text up to the first ``stop``, which ends the last."""
    tail = ''  # what may be the beginning of `stop`
    for piece in pieces:
        seen = tail + piece
        if stop and stop in seen:
            yield seen[len(tail):seen.index(stop) + len(stop)]
            return
        yield piece
        if stop:
            tail = seen[max(len(seen) - len(stop) + 1, 0):]


def megabytes(count: int) -> str:
    return f'{count / 1e6:.2f} MB'


def read_long(writer: Writer, tokens: torch.Tensor) -> None:
    """Reads tokens ``[N]``; shows on a terminal how far it has come."""
    parts = tokens.split(READ_AT_ONCE)
    shows = len(parts) > 1 and sys.stderr.isatty()
    for number, part in enumerate(parts, 1):
        writer.read(part)
        if shows:
            line = f'read {number / len(parts):.0%} of {len(tokens)} tokens'
            # The next line overwrites the last one.
            print(f'\r{line}\r', end='', file=sys.stderr, flush=True)
    if shows:
        print(' ' * len(line), end='\r', file=sys.stderr, flush=True)


def go_on(writer: Writer,
          tokens: torch.Tensor,
          args: argparse.Namespace,
          shown: str = '') -> None:
    """Reads tokens, streams what follows to stdout, reports on stderr.

    Args:
        writer: The writer.
        tokens: ``[N]``; none to go on where the writer stopped.
        args: Of the command line.
        shown: What to show on stderr before the first letter.
    """
    start = time.perf_counter()
    if len(tokens):
        read_long(writer, tokens)
    print(shown, end='', file=sys.stderr, flush=True)
    middle = time.perf_counter()
    count = 0
    try:
        for piece in until(writer.write(args.max_new_tokens), args.stop):
            count += 1
            if piece:
                print(piece, end='', flush=True)
    finally:
        print(flush=True)
    end = time.perf_counter()
    print(
        f'[read {len(tokens)} tokens in {middle - start:.2f} s, wrote {count} '
        f'at {count / (end - middle):.0f} tokens/s; context {writer.context} '
        f'tokens: state {megabytes(writer.state.nbytes)}, full KV cache '
        f'{megabytes(writer.cache_nbytes)}; seed {args.seed}]',
        file=sys.stderr,
        flush=True)


def converse(writer: Writer, args: argparse.Namespace) -> None:
    """Reads lines from stdin and goes on with the text after each."""
    print(HELP, file=sys.stderr)
    while True:
        print('> ', end='', file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:  # Ctrl-D leaves the cursor in the line
            print(file=sys.stderr)
            return
        command = line.strip()
        if command == '/quit':
            return
        if command == '/reset':
            writer.reset()
        elif command.startswith('/') or not (command or writer.context):
            print(HELP, file=sys.stderr)
        else:
            try:
                tokens = next_tokens(writer, line.rstrip('\r\n'))
            except DemoError as error:
                print(f'error: {error}', file=sys.stderr)
            else:
                go_on(writer, tokens, args)


def next_tokens(writer: Writer, line: str) -> torch.Tensor:
    """What a line adds to the text, int64 ``[N]``; nothing if it is blank.

    Raises:
        DemoError: If the vocabulary cannot write it.
    """
    if not line.strip():
        return torch.empty(0, dtype=torch.int64)
    if writer.context and not line[0].isspace():
        line = PARAGRAPH + line
    return writer.encode(line)


# ------------------------------------------------------------------ main


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise DemoError(message)


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = Parser(
        description='Continues a text with a causal language model, whose '
        'state grows with the logarithm of the text.')
    parser.add_argument('config', nargs='?', help='default: the demo\'s own')
    parser.add_argument('checkpoint', nargs='?', help='weights for CONFIG')
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument('--prompt', metavar='TEXT', help='the beginning')
    prompt.add_argument(
        '--prompt-file',
        metavar='FILE',
        help='the beginning as a UTF-8 file of any length')
    parser.add_argument(
        '--interactive',
        action='store_true',
        help='take line after line from the terminal')
    parser.add_argument(
        '--max-new-tokens',
        type=int,
        default=600,
        metavar='N',
        help='most tokens to write (default: %(default)s)')
    parser.add_argument(
        '--temperature',
        type=float,
        default=0.8,
        help='below 1 is tamer, 0 takes the likeliest (default: %(default)s)')
    parser.add_argument(
        '--top-k', type=int, metavar='N', help='draw among the N likeliest')
    parser.add_argument(
        '--top-p',
        type=float,
        metavar='P',
        help='draw among the likeliest that together reach P')
    parser.add_argument(
        '--stop', metavar='TEXT', help='end once this has been written')
    parser.add_argument(
        '--seed', type=int, help='same seed, same text (default: a new one)')
    parser.add_argument(
        '--device',
        default='cuda' if torch.cuda.is_available() else 'cpu',
        help='where to run (default here: %(default)s)')
    args = parser.parse_args(argv)
    if (args.config is None) != (args.checkpoint is None):
        parser.error('CONFIG and CHECKPOINT belong together: give both, or '
                     'neither for the demo\'s own model')
    if args.config is None:
        args.config, args.checkpoint = str(DEMO_CONFIG), str(DEMO_CHECKPOINT)
    if args.max_new_tokens < 1:
        parser.error(f'--max-new-tokens is {args.max_new_tokens}, must be at '
                     'least 1')
    if args.stop == '':
        parser.error('--stop is empty')
    if args.seed is None:
        args.seed = secrets.randbelow(10**6)
    return args


def drawing_options(args: argparse.Namespace) -> Dict[str, Any]:
    """Arguments of ``sample``, tried before a long text is read."""
    from fma_vision.models.lm import sample
    options = dict(
        temperature=args.temperature, top_k=args.top_k, top_p=args.top_p)
    try:
        generator = torch.Generator().manual_seed(args.seed)
        sample(torch.zeros(1, 2), generator=generator, **options)
    except (RuntimeError, ValueError) as error:
        raise DemoError('--temperature, --top-k, --top-p or --seed is out of '
                        f'range: {one_line(error)}') from None
    return options


def find_prompt(args: argparse.Namespace) -> str:
    """The text to begin with; empty where the first line gives it.

    Raises:
        DemoError: If it is empty, or a file that cannot be read.
    """
    if args.prompt_file is not None:
        try:
            # The bytes as they are: no line end is translated.
            text = Path(args.prompt_file).read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, 'strerror', None) or 'it is not UTF-8'
            raise DemoError('--prompt-file '
                            f'{args.prompt_file} cannot be read: '
                            f'{reason}') from None
        if not text:
            raise DemoError(f'--prompt-file {args.prompt_file} is empty')
        return text
    if args.prompt == '':
        raise DemoError('--prompt is empty')
    return args.prompt or ('' if args.interactive else DEMO_PROMPT)


def prepare(args: argparse.Namespace) -> Tuple[Writer, str]:
    """Everything that must be right before the first token is read."""
    try:
        from fma_vision.engine import UserError
    except ImportError as error:
        raise DemoError(f'the demo needs more packages ({error}): '
                        "`pip install -e '.[demo]'`") from None
    options, prompt = drawing_options(args), find_prompt(args)
    try:
        model, vocabulary = load_model(args.config, args.checkpoint,
                                       args.device)
    except UserError as error:
        raise DemoError(' '.join(str(error).split())) from None
    return Writer(model, vocabulary, args.seed, options), prompt


def run(args: argparse.Namespace) -> None:
    """Does what the command line asks for."""
    try:
        writer, prompt = prepare(args)
        if prompt:
            cut = '...' if len(prompt) > PROMPT_SHOWN else ''
            go_on(writer, writer.encode(prompt), args,
                  cut + prompt[-PROMPT_SHOWN:])
        if args.interactive:
            converse(writer, args)
    except (RuntimeError, TypeError, ValueError) as error:
        # No memory, no positions left, a layer that cannot stream.
        raise DemoError(f'the model cannot go on: {one_line(error)}') from None


def main(argv: Optional[Sequence[str]] = None) -> int:
    try:
        run(parse_args(argv))
    except DemoError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Else the interpreter complains when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    warnings.simplefilter('ignore')  # notices of the host, not of the demo
    sys.stdout.reconfigure(errors='replace')  # a terminal without Unicode
    if sys.stdin:  # what is not UTF-8 is refused line by line
        sys.stdin.reconfigure(errors='surrogateescape')
    sys.exit(main())
