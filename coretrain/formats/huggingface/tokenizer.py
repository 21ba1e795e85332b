"""A run's tokenizer written as Hugging Face's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.files import write_atomically
from coretrain.tokenizers.byte_alphabet import byte_characters
from coretrain.tokenizers.chat_template_file import CHAT_TEMPLATE
from coretrain.tokenizers.json_tokenizer import JsonTokenizer
from coretrain.tokenizers.merges import check_same_ids, merge_list, oniguruma
from coretrain.tokenizers.tokenizer import FURTHER_END, Tokenizer


def hf_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` that gives the same ids, and besides reads the specials, `<|endoftext|>` among them."""
    try:
        from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Fast
    except ImportError:
        raise UserError(
            "formats/tokenizers-package-missing",
            "exporting a tokenizer needs the package tokenizers: pip install tokenizers",
        ) from None
    characters = byte_characters()

    def word(token: bytes) -> str:
        return "".join(characters[byte] for byte in token)

    vocab = {word(token): rank for token, rank in tokenizer.ranks.items()} | tokenizer.specials
    merges = [] if tokenizer.pattern is None else [(word(a), word(b)) for a, b in merge_list(tokenizer.ranks)]
    fast = Fast(models.BPE(vocab=vocab, merges=merges, ignore_merges=tokenizer.pattern is not None))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if tokenizer.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(oniguruma(tokenizer.pattern)), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    names = sorted(tokenizer.specials, key=tokenizer.specials.__getitem__)
    fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return fast


def write_tokenizer(folder: Path, tokenizer: Tokenizer, context: int, chat_template: str | None = None) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and the chat template. Raises as `check_same_ids` does."""
    if isinstance(tokenizer, JsonTokenizer):
        write_atomically(folder / "tokenizer.json", tokenizer.text)
    else:
        fast = hf_tokenizer(tokenizer)
        check_same_ids(tokenizer, fast)
        write_atomically(folder / "tokenizer.json", fast.to_str())
    names = {token: name for name, token in tokenizer.specials.items()}
    roles = {role: token for role, token in tokenizer.roles.items() if not role.startswith(FURTHER_END)}
    facts = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{role}_token": names[token] for role, token in roles.items()},
        "model_max_length": context,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        facts["chat_template"] = chat_template  # for transformers before 4.43; later ones read the file
        write_atomically(folder / CHAT_TEMPLATE, chat_template)
    write_atomically(folder / "tokenizer_config.json", json.dumps(facts, indent=2) + "\n")
