"""A pretrained model's tokenizer.json, run by the package tokenizers as it is: SentencePiece's BPE and Unigram,
normalizers, and whatever else merge ranks can't describe.
"""

from __future__ import annotations

import functools
import hashlib
import json
import operator
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.base.parse import from_json
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.tokenizer import (
    SAVED_FACTS,
    SAVED_JSON,
    Ids,
    Tokenizer,
    to_utf8,
    write_facts,
)

SPECIAL_FORM = re.compile(r"<\|[^\s|<>]+\|>")
"""What looks like a special token, whether its file calls it one or not."""
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def added_specials(raw: Mapping[str, Any]) -> dict[str, int]:
    """{text: id} of the special tokens of a tokenizer.json. Others that were added to it are text.

    Raises TypeError for an id or a text that is none, as other damage does.
    """
    added = raw.get("added_tokens") or ()
    return {
        token["content"]: operator.index(token["id"])
        for token in added
        if SPECIAL_FORM.fullmatch(token["content"]) or token.get("special")
    }


class JsonTokenizer(Tokenizer):
    """A tokenizer.json behind the names of `Tokenizer`; it has no ranks. Cheap to send to another process."""

    file = SAVED_JSON

    def __init__(self, name: str, text: str, eot: int, roles: Mapping[str, int]) -> None:
        """`text` is the file's. Raises `UserError` where the package can't read it, or where its ids become text in a
        way that can't be done token by token."""
        self.name, self.text, self.eot = name, text, eot
        raw = from_json(text)
        self.specials = added_specials(raw)
        self.roles = {"eos": eot, **roles}
        self.swallows = {
            token["content"]: (bool(token.get("lstrip")), bool(token.get("rstrip")))
            for token in raw.get("added_tokens") or ()
            if token["content"] in self.specials
        }
        self.ranks, self.pattern, self.partial = {}, None, True
        vocab: dict[str, int] = self._fast.get_vocab(with_added_tokens=True)
        self.vocab = max(*vocab.values(), eot) + 1
        self._names = {token: text.encode() for text, token in self.specials.items()}
        unknown = json.loads(text)["model"].get("unk_token") or "<unk>"
        self._never = [token for name, token in self.specials.items() if name != unknown]
        spelled = _speller(name, raw)
        literal = {token["content"] for token in raw.get("added_tokens") or ()}
        self._bytes = {
            token: word.encode() if word in literal else spelled(word)
            for word, token in vocab.items()
            if token not in self._names
        }
        digest = hashlib.sha256(json.dumps(["kept", eot, self.roles], sort_keys=True).encode())
        digest.update(text.encode())
        self.fingerprint = digest.hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonTokenizer, (self.name, self.text, self.eot, self.roles)

    @functools.cached_property
    def _fast(self) -> Any:
        return self._loaded(json.loads(self.text))

    @functools.cached_property
    def _inner(self) -> Any:
        """For what stands after a special token: SentencePiece's blank before a text may be for its beginning alone."""
        raw = json.loads(self.text)
        steps = raw.get("pre_tokenizer") or {}
        for step in steps.get("pretokenizers", [steps]):
            if step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
        return self._fast if raw == json.loads(self.text) else self._loaded(raw)

    def _loaded(self, raw: dict[str, Any]) -> Any:
        from tokenizers import Tokenizer as Fast

        for token in raw.get("added_tokens") or ():
            token["special"] = token["content"] in self.specials
        try:
            fast = Fast.from_str(json.dumps(raw))
        except Exception as error:  # the package raises nothing more particular
            raise UserError(
                "tokenizers/json-refused-by-package",
                f"tokenizer {self.name} can't be read by the package tokenizers: {error}",
            ) from None
        fast.encode_special_tokens = True  # as text, that is
        return fast

    def encode(self, text: str) -> Ids:
        """Token ids, uint32 [T]. Special tokens inside the text are text like any other."""
        return self._spelled_out(_ids(self._fast, text))

    def encode_inner(self, text: str) -> Ids:
        """As `encode`, of what stands after a special token."""
        return self._spelled_out(_ids(self._inner, text))

    def _spelled_out(self, ids: Ids) -> Ids:
        """`ids` of a text, special tokens letter by letter: Unigram finds them in a text as it does any other piece."""
        found = {int(token) for token in ids[np.isin(ids, self._never)]}
        if not found:
            return ids
        letters = {token: self._letters(self._names[token].decode()) for token in found}
        return np.array([one for token in ids.tolist() for one in letters.get(token, [token])], np.uint32)

    def _letters(self, text: str) -> list[int]:
        ids = {piece: token for token, piece in self._bytes.items()}
        pieces = ([character.encode()] if character.encode() in ids else _bytes(character) for character in text)
        return [ids[piece] for some in pieces for piece in some if piece in ids]

    def read(self, text: str) -> Ids:
        """Token ids, uint32 [T], special tokens in the text being special."""
        self._fast.encode_special_tokens = False
        try:
            return _ids(self._fast, text)
        finally:
            self._fast.encode_special_tokens = True

    def check(self, samples: Iterable[str]) -> None:
        """Raise `UserError` unless the samples' ids become the package's own text again (but for the blank that
        SentencePiece puts before a text)."""
        for text in samples:
            ids = self.encode(text)
            theirs: str = self._fast.decode(ids.tolist(), skip_special_tokens=False)
            if self.decode(ids) not in (theirs, f" {theirs}"):
                raise UserError(
                    "tokenizers/decoded-text-differs",
                    f"tokenizer {self.name} can't be used: its ids of {text[:40]!r} become other text here",
                )

    def save(self, folder: Path) -> None:
        """Write the tokenizer into `folder`: its tokenizer.json and the facts that tell it from others."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / self.file, self.text.encode())
        write_facts(folder / SAVED_FACTS, self, {"version": 3, "roles": self.roles})


def load_json_tokenizer(path: Path, facts: Mapping[str, Any]) -> JsonTokenizer:
    """What `JsonTokenizer.save` wrote. Raises `UserError` naming the file where it is missing or damaged."""
    try:
        text = path.read_bytes().decode()
        return JsonTokenizer(facts["name"], text, facts["eot"], facts.get("roles") or {})
    except OSError as error:
        raise UserError("tokenizers/saved-json-unreadable", f"can't read {path}: {error.strerror}") from None
    except UserError as error:
        raise UserError(
            "tokenizers/saved-json-refused",
            f"{path} is damaged ({error}): restore it, or make the tokenizer again",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            "tokenizers/saved-json-damaged",
            f"{path} is damaged: restore it, or make the tokenizer again",
        ) from None


def _ids(fast: Any, text: str) -> Ids:
    try:
        ids = fast.encode(text, add_special_tokens=False).ids
    except (UnicodeEncodeError, TypeError):  # a lone surrogate
        ids = fast.encode(to_utf8(text).decode(), add_special_tokens=False).ids
    return np.array(ids, np.uint32)


def _bytes(text: str) -> list[bytes]:
    return [bytes([byte]) for byte in text.encode()]


def _speller(name: str, raw: Mapping[str, Any]) -> Any:
    """A function from a token to its bytes, by the file's decoder. Raises `UserError` for one that isn't known here."""
    decoder = raw.get("decoder") or {}
    steps = decoder.get("decoders", [decoder] if decoder else [])
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        back = {character: byte for byte, character in enumerate(byte_characters())}

        def spelled(word: str) -> bytes:
            whole = all(character in back for character in word)
            return bytes(back[character] for character in word) if whole else word.encode()

        return spelled
    blanks = [step["replacement"] for step in steps if step["type"] == "Metaspace"]
    replaced = [step for step in steps if step["type"] == "Replace" and step["content"] == " "]
    blanks += [step["pattern"]["String"] for step in replaced if "String" in step["pattern"]]
    if len(blanks) != 1 or not kinds <= {"Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}:
        raise UserError(
            "tokenizers/decoder-unknown",
            f"tokenizer {name} turns ids into text by {', '.join(sorted(kinds)) or 'no rule'}, which isn't known here: "
            "byte-level tokenizers and SentencePiece's are",
        )

    def spelled_out(word: str) -> bytes:
        byte = BYTE.fullmatch(word) if "ByteFallback" in kinds else None
        return bytes([int(byte[1], 16)]) if byte else word.replace(blanks[0], " ").encode()

    return spelled_out
