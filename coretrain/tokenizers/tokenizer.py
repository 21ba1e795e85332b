"""Text to token ids and back: GPT-2's, OpenAI's later ones, plain bytes, a file of ranks, or one trained on the corpus.

A tokenizer is a byte-level BPE that tiktoken runs: merge ranks, a split pattern, and one special, `<|endoftext|>`.
A pretrained model's has further specials, and may lack tokens for bytes that its corpus never held; where ranks can't
describe it, it is a tokenizer.json (`json_tokenizer.py`).
"""

from __future__ import annotations

import base64
import binascii
import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically

END_OF_TEXT = "<|endoftext|>"
FURTHER_END = "eos_"
"""Roles of the tokens besides `eos` at which a pretrained model stops begin so."""
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
SAVED_RANKS, SAVED_JSON, SAVED_FACTS = "tokenizer.tiktoken", "tokenizer.json", "tokenizer_facts.json"
LONG_SPACE = re.compile(r"\s{8192}")  # the pattern engine backtracks over white space, and panics near a million
Ids = npt.NDArray[np.uint32]


class Tokenizer:
    """A byte-level BPE over `ranks`; id `eot` ends a document. `vocab` is the largest id + 1, specials included."""

    file = SAVED_RANKS
    """What `save` writes beside its facts, and `data.tokenizer` names."""
    swallows: Mapping[str, tuple[bool, bool]] = MappingProxyType({})
    """Special tokens that swallow the blanks before them, and behind them."""

    def __init__(
        self,
        name: str,
        ranks: dict[bytes, int],
        pattern: str | None,
        eot: int,
        specials: Mapping[str, int] | None = None,
        roles: Mapping[str, int] | None = None,
        partial: bool = False,
    ) -> None:
        """`pattern` None means that every byte is its own token (no merges, no splitting).

        A pretrained model's tokenizer has `specials` {text: id}, `<|endoftext|>` alone where unset, and `roles` of them
        (`bos`, `eos`, `pad`, `unk`), all eot where unset. A `partial` one drops the bytes that it has no token for, as
        its model's does; any other must have a token for each.
        """
        self.name = name
        self.ranks = ranks
        self.pattern = pattern
        self.eot = eot
        self.specials: dict[str, int] = dict(specials or {END_OF_TEXT: eot})
        self.roles: dict[str, int] = dict(roles or {"bos": eot, "eos": eot, "pad": eot})
        self.partial = partial
        self.vocab: int = max(*ranks.values(), *self.specials.values(), eot) + 1
        self._bytes: dict[int, bytes] = {rank: token for token, rank in ranks.items()}
        self._names: dict[int, bytes] = {token: text.encode() for text, token in self.specials.items()}
        missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]
        if missing and not partial:
            raise UserError(
                "tokenizers/byte-without-token",
                f"tokenizer {name} has no token for byte {missing[0][0]}, so it can't encode every text: "
                "use a byte-level tokenizer",
            )
        if len(self._bytes) != len(ranks) or not self._bytes.keys().isdisjoint({eot, *self.specials.values()}):
            raise UserError(
                "tokenizers/id-given-twice",
                f"tokenizer {name} gives one id to two tokens: its file is damaged, make it again",
            )
        # tiktoken wants a token for every byte: those that are missing get ids beyond the vocabulary, which are dropped
        whole = ranks | {byte: self.vocab + place for place, byte in enumerate(missing)}
        self._drops = bool(missing)
        try:
            self._encoding = (
                None
                if pattern is None
                else tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=whole, special_tokens=self.specials)
            )
            self.fingerprint: str = self._fingerprint()
        except (ValueError, OverflowError, TypeError) as error:
            raise UserError(
                "tokenizers/pattern-or-ids-unusable",
                f"tokenizer {name} can't be run, by its pattern or its ids ({error}): "
                "restore its file, or take another",
            ) from None

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids at which generation stops: the end of a document, and of a turn where the model has one; and more where
        the model's own files name more."""
        further = (token for role, token in self.roles.items() if role.startswith(FURTHER_END))
        return tuple(dict.fromkeys((self.eot, self.roles.get("eos", self.eot), *further)))

    def _fingerprint(self) -> str:
        digest = hashlib.sha256()
        digest.update(json.dumps([self.pattern, END_OF_TEXT, self.eot]).encode())
        if self._version == 2:
            digest.update(json.dumps([self.specials, self.roles, self.partial], sort_keys=True).encode())
        for rank, token in sorted(self._bytes.items()):
            digest.update(rank.to_bytes(4, "little") + len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    @property
    def _version(self) -> int:
        """Of the saved form: 1 says all about a tokenizer whose only special is `<|endoftext|>`."""
        plain = self.specials == {END_OF_TEXT: self.eot} and set(self.roles.values()) <= {self.eot} and not self.partial
        return 1 if plain else 2

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.name, self.ranks, self.pattern, self.eot, self.specials, self.roles, self.partial)
        return Tokenizer, given

    def encode(self, text: str) -> Ids:
        """Token ids, uint32 [T]. `<|endoftext|>` inside the text is text like any other, never the special."""
        if self._encoding is None:
            return np.frombuffer(to_utf8(text), np.uint8).astype(np.uint32)
        if len(text) < 8192 or not LONG_SPACE.search(text):
            return self._piece(text)
        cuts = [0, *(match.end() for match in LONG_SPACE.finditer(text)), len(text)]
        return np.concatenate([self._piece(text[start:stop]) for start, stop in pairwise(cuts)])

    def encode_inner(self, text: str) -> Ids:
        """As `encode`, of what stands after a special token: some tokenizers begin a text with a blank of their own."""
        return self.encode(text)

    def read(self, text: str) -> Ids | None:
        """Token ids as the tokenizer's own library reads special tokens in a text; None where it has no other."""
        return None

    def _piece(self, text: str) -> Ids:
        assert self._encoding is not None
        try:
            ids: Ids = self._encoding.encode_to_numpy(text, allowed_special=set(), disallowed_special=())
        except UnicodeEncodeError:
            ids = np.array(self._encoding.encode_ordinary(to_utf8(text).decode()), np.uint32)
        return ids[ids < self.vocab] if self._drops else ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one id; an id without a token (a gap, padding of the vocabulary) reads as U+FFFD."""
        if (name := self._names.get(int(token))) is not None:
            return name
        return self._bytes.get(int(token), b"\xef\xbf\xbd")

    def decode(self, ids: Iterable[int] | npt.NDArray[Any]) -> str:
        """Text of `ids`; bytes that are no UTF-8 (half a character) become U+FFFD."""
        return b"".join(self.token_bytes(int(token)) for token in ids).decode("utf-8", errors="replace")

    def stream(self) -> StreamDecoder:
        """A decoder that takes ids one at a time and holds back unfinished characters."""
        return StreamDecoder(self)

    def byte_lengths(self) -> npt.NDArray[np.int32]:
        """Bytes of text behind each id, int32 [V]; 0 for specials, which are no text."""
        lengths = np.zeros(self.vocab, np.int32)
        for rank, token in self._bytes.items():
            lengths[rank] = len(token)
        return lengths

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder` (two small files), so that the folder can decode and generate alone."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in sorted(self._bytes.items())]
        write_atomically(folder / SAVED_RANKS, b"".join(lines))
        more = {"roles": self.roles, "partial": self.partial} if self._version == 2 else {}
        write_facts(folder / SAVED_FACTS, self, {"version": self._version} | more)


def write_facts(path: Path, tokenizer: Tokenizer, more: Mapping[str, Any]) -> None:
    """What a saved tokenizer says of itself beside its tokens."""
    named = ("name", "pattern", "eot", "vocab", "specials", "fingerprint")
    facts = {field: getattr(tokenizer, field) for field in named} | dict(more)
    write_atomically(path, json.dumps(facts, indent=1).encode())


class StreamDecoder:
    """Ids in, text out, never half a character; `finish` gives what is left."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that `token` completes; may be empty."""
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What an unfinished character leaves: U+FFFD or nothing."""
        return self._decoder.decode(b"", final=True)


def to_utf8(text: str) -> bytes:
    """UTF-8 of `text`; a lone surrogate (JSON can hold one) becomes U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def well_formed(text: str) -> str:
    """`text`, with U+FFFD for each lone surrogate: of JSON, or of bytes on the command line that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return to_utf8(text).decode()
    return text


def end_of_text(where: str, specials: Mapping[str, int], roles: Mapping[str, int]) -> int:
    """The special token that ends a document. Raises `UserError` naming `where` where there is none."""
    eot = specials.get(END_OF_TEXT, roles.get("eos"))
    if eot is None:
        raise UserError(
            "tokenizers/end-of-text-missing",
            f"{where} has no special token that ends a text: neither {END_OF_TEXT} nor an eos_token",
        )
    return eot


def read_ranks(path: Path, sha256: str | None = None) -> dict[bytes, int]:
    """Token bytes to rank, from lines of `base64 rank`. Raises `UserError` that names the file when it is damaged."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError("tokenizers/tiktoken-file-unreadable", f"can't read {path}: {error.strerror}") from None
    if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
        raise UserError(
            "tokenizers/bundled-file-damaged",
            f"{path} is damaged (its SHA-256 is wrong): install twintrain again",
        )
    try:
        pairs = [line.split() for line in raw.splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error):
        raise UserError(
            "tokenizers/not-a-tiktoken-file",
            f"{path} is no .tiktoken file (lines of `base64 rank`): give another, or make it again",
        ) from None
    if len(ranks) != len(pairs) or not ranks or min(ranks.values()) < 0:
        raise UserError(
            "tokenizers/tiktoken-tokens-damaged", f"{path} is damaged (repeated or no tokens): make it again"
        )
    return ranks


def check_ids(ids: Sequence[int] | npt.NDArray[Any], vocab: int, where: str) -> None:
    """Raise `UserError` naming `where` unless every id is in [0, vocab)."""
    array = np.asarray(ids)
    if array.size and (int(array.max()) >= vocab or int(array.min()) < 0):
        bad = int(array.max()) if int(array.max()) >= vocab else int(array.min())
        raise UserError(
            "tokenizers/id-outside-vocabulary",
            f"{where} has token id {bad}, outside of the vocabulary of {vocab}: prepare the data again "
            "with this tokenizer",
        )
