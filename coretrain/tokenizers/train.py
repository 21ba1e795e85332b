"""Train a byte-level BPE with the package tokenizers, and hand it to tiktoken, which encodes.

Source of the method: Sennrich et al. 2016 (arXiv:1508.07909), on bytes as in GPT-2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from coretrain.base.errors import UserError
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.tokenizer import Tokenizer, to_utf8

# cl100k's shape without its possessive quantifiers: a word may take one leading sign (".read", "_name", " def"),
# digits go in threes, and white space up to the last blank is one piece, so that a line's indentation is one token.
# Measured on Python's library at 4096 tokens: 3.54 bytes a token, GPT-2's pattern 3.48.
TRAINED_PATTERN = (
    r"""'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"""
    r"""|\s+(?!\S)|\s+"""
)
TRAINING_BYTES = 64 * 2**20


def train_tokenizer(documents: Iterable[str], vocab: int) -> Tokenizer:
    """A BPE of at most `vocab` tokens, specials included: 256 bytes, merges in the order learnt, `<|endoftext|>` last.

    The same documents in the same order give the same tokenizer, on any number of threads. A corpus too small to learn
    `vocab` tokens gives fewer. Raises `UserError` when there is no text.
    """
    try:
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Trainable
    except ImportError:
        raise UserError(
            "tokenizers/package-missing",
            "data.tokenizer = trained needs the package tokenizers: pip install tokenizers, or use gpt2 or bytes",
        ) from None
    split = pre_tokenizers.Split(Regex(TRAINED_PATTERN), "isolated")
    trainable = Trainable(models.BPE())
    trainable.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - 1,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    trainable.train_from_iterator(documents, trainer)
    back = {character: byte for byte, character in enumerate(byte_characters())}
    learnt = sorted(trainable.get_vocab().items(), key=lambda item: item[1])
    ranks = {bytes([byte]): byte for byte in range(256)}
    for token, _ in learnt:
        ranks.setdefault(bytes(back[character] for character in token), len(ranks))
    return Tokenizer("trained", ranks, TRAINED_PATTERN, len(ranks))


def capped(documents: Iterable[str], limit: int = TRAINING_BYTES) -> Iterator[str]:
    """The first documents, up to about `limit` bytes of text: a BPE learns little from more."""
    total = 0
    for text in documents:
        yield text
        total += len(to_utf8(text))
        if total >= limit:
            return
