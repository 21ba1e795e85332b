"""Each mistake has a code of its own, and no sentence changes unseen."""

import re
from collections import Counter

from coretrain.base.errors import UserError
from tests.support.sentences import GOLDEN, golden, raised


def test_codes_are_short_and_name_one_rule():
    codes = Counter(code for code, _, _ in raised())
    assert codes
    assert [code for code, times in codes.items() if times > 1] == []
    assert [code for code in codes if not re.fullmatch(r"[a-z]+/[a-z0-9]+(-[a-z0-9]+)*", code) or len(code) > 50] == []


def test_sentences_are_those_of_the_golden_file():
    """After a change on purpose: python -m tests.support.sentences."""
    assert golden() == GOLDEN.read_text()


def test_an_error_shows_its_sentence_and_keeps_its_code():
    error = UserError("config/unknown-config-name", "no config named tiny")
    assert str(error) == "no config named tiny"
    assert error.code == "config/unknown-config-name"
