"""From a command line to text: a run, or adapters on it, opened in a stack and asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coretrain.base.errors import UserError
from coretrain.base.streams import ready_input
from coretrain.checkpoint.translate import MODULES
from coretrain.config.execution import ParallelConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import BlankParameters
from coretrain.contract.sampling import Sampling
from coretrain.inference.chat import converse
from coretrain.inference.generate_options import options
from coretrain.runs.adapted import adapter_config, open_adapters, with_base
from coretrain.runs.chat import chat_prompts, template_changed
from coretrain.runs.folder import change_told, changed_since, open_run
from coretrain.tokenizers.registry import load_tokenizer
from coretrain.tokenizers.tokenizer import Tokenizer, well_formed
from coretrain.training.references import MakeStack
from coretrain.training.restore import restore
from coretrain.training.stack import Stack

GenerateEach = Callable[..., Iterator[list[list[int]]]]


def on_one_device(config: RunConfig) -> RunConfig:
    """A run's config for one device of this machine: how the run was shared is no matter."""
    parallel = ParallelConfig(data=1, timeout=config.parallel.timeout)
    return config.changed(parallel=parallel, train__accumulation=1)


def open_for_generation(folder: Path, make_stack: MakeStack, adapter: Path | None = None) -> Stack:
    """A run's best checkpoint (else its newest) in a stack.

    With `adapter`, another run's: that run's best checkpoint on the weights of `folder`.
    """
    run = adapter or folder
    own = adapter_config(adapter, folder) if adapter else open_run(folder)
    _say_changed(run, own)
    config, base = with_base(on_one_device(own))
    stack = make_stack(config, BlankParameters(config.model) if base is None else base)
    restore(stack, run, _warn, for_text=True)
    return stack


def _say_changed(run: Path, config: RunConfig) -> None:
    """What else of a run's config text depends on, though a resume may change it."""
    changed = changed_since(run, config)
    if on_text := {field: both for field, both in changed.items() if field.startswith(("precision.", "execution."))}:
        _warn(f"text is made with {change_told(on_text)}")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Prompts:
    """Prompts as a run wants them: in its tokenizer's ids and, of questions, in its template's form."""

    tokenizer: Tokenizer
    prompts: Sequence[Sequence[int]]
    stop: Collection[int]
    """Ids that end an answer."""


def encode_prompts(run: Path, texts: Sequence[str], chat: bool) -> Prompts:
    """Texts, or questions, for the run that answers them. Raises `UserError` where it has no template for these."""
    tokenizer = load_tokenizer(run)
    if chat:
        return Prompts(tokenizer, *chat_prompts(run, tokenizer, texts))
    prompts = [[int(token) for token in tokenizer.encode(text)] or [tokenizer.eot] for text in texts]
    return Prompts(tokenizer, prompts, tokenizer.ends)


def generate_text(
    argv: Sequence[str],
    stack_name: str,
    make_stack: MakeStack,
    each: GenerateEach,
    program: str = "",
    chat: bool = False,
) -> None:
    """The whole of `python -m torchtrain.generate` or its twin: text from a run, streamed for a single prompt.

    With several adapters each prompt is answered by each, over one base, and asked in each one's own form. With `chat`
    the prompts are questions, and where there are none a conversation begins in the terminal; of what is piped in each
    line is answered by itself. `program` is what was typed.
    """
    program = program or f"python -m {MODULES[stack_name]}.generate"
    given = options(program, chat).parse_intermixed_args(argv)  # options may stand before the prompts
    sampling = Sampling(given.temperature, given.top_k, given.top_p, given.seed)
    answering = given.adapter or [given.run]
    conversing = given.chat and not given.prompts
    typed = conversing and sys.stdin is not None and sys.stdin.isatty()
    if given.history and not typed:
        raise UserError(
            "inference/history-without-conversation",
            "--history is of a conversation in a terminal: leave it out, or give --chat and no question",
        )
    if conversing:
        if len(answering) > 1:
            raise UserError(
                "inference/several-adapters-without-line",
                "several adapters answer questions that stand on the line: add one, or give one --adapter",
            )
        encode_prompts(answering[0], ["?"], True)  # a run without a template is refused before its model is opened
    for remark in filter(None, map(template_changed, answering if given.chat else ())):
        _warn(remark)
    if len(answering) > 1:
        adapters, base = open_adapters(answering, given.run, _warn)
        for folder in answering:
            _say_changed(folder, open_run(folder))
        # the one whose base is held whole serves all: DoRA's
        config = next((config for config, _ in adapters if config.adapter.kind == "dora"), adapters[0][0])
        stack = make_stack(on_one_device(config.changed(model=adapters[0][0].model)), base)
    else:
        stack = open_for_generation(given.run, make_stack, answering[0] if given.adapter else None)
    shortest = min(open_run(folder).model.context for folder in (given.run, *given.adapter))

    def room(*each_asked: Prompts) -> int:
        left = shortest - max(len(prompt) for one in each_asked for prompt in one.prompts)
        return int(given.tokens) if given.tokens is not None else max(0, min(200, left))

    if typed:
        converse(stack, answering[0], sampling, given.tokens, shortest, given.history)
        return
    if conversing:
        for question in questions():
            with _said():
                one = encode_prompts(answering[0], [question], True)
                _stream(stack, one, room(one), sampling)
        return
    texts, gap = [well_formed(text) for text in given.prompts] or [""], "\n" if given.chat else ""
    each_asked = [encode_prompts(run, texts, given.chat) for run in answering]
    tokens = room(*each_asked)
    if len(answering) > 1:
        for (config, _), one, rows in zip(
            adapters, each_asked, each(stack, adapters, each_asked, tokens, sampling), strict=True
        ):
            _show(texts, rows, one.tokenizer, gap, f"[{config.adapter.name}] ")
        return
    (one,) = each_asked
    if len(texts) > 1:
        _show(texts, stack.generate(one.prompts, tokens, sampling, one.stop), one.tokenizer, gap)
        return
    print(texts[0], end=gap, flush=True)
    _stream(stack, one, tokens, sampling)


def questions() -> Iterator[str]:
    """Lines of what is piped in, up to an empty one, the end or Ctrl-C."""
    if sys.stdin is None:  # closed: there is nothing to read
        return
    ready_input()
    try:
        while line := input().strip():
            yield well_formed(line)
    except (EOFError, KeyboardInterrupt):
        print()


@contextlib.contextmanager
def _said() -> Iterator[None]:
    """A question that can't be answered, as one too long, doesn't end a conversation."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)


def _stream(stack: Stack, one: Prompts, tokens: int, sampling: Sampling) -> None:
    decoder = one.tokenizer.stream()

    def show(ids: NDArray[np.int64]) -> None:
        print(decoder.push(int(ids[0])), end="", flush=True)

    stack.generate(one.prompts, tokens, sampling, one.stop, show)
    print(decoder.finish())


def _show(texts: Sequence[str], rows: Sequence[Sequence[int]], tokenizer: Tokenizer, gap: str, head: str = "") -> None:
    for text, ids in zip(texts, rows, strict=True):
        print(f"{head}{text}{gap}{tokenizer.decode(ids)}\n{'-' * 40}")
