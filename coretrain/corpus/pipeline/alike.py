"""The third stage: duplicates among what the rules keep. Tasks around the functions of `coretrain.corpus.dedup`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coretrain.corpus.dedup import near
from coretrain.corpus.dedup.bands import read_pairs, sign_part, write_pairs
from coretrain.corpus.dedup.exact import digest_part, exact_duplicates
from coretrain.corpus.dedup.keep import Kept, keep, write_clusters
from coretrain.corpus.dedup.minhash import MinHash
from coretrain.corpus.dedup.pairs import unpacked
from coretrain.corpus.dedup.parts import open_parts
from coretrain.corpus.dedup.shingles import Shingling
from coretrain.corpus.dedup.simhash import SimHash, simhash_part
from coretrain.corpus.dedup.simhash import near as alike_by_bits
from coretrain.corpus.document import Document
from coretrain.corpus.store import read_documents, write_columns

Arguments = Mapping[str, Any]
Facts = dict[str, Any]
Paths = list[Path]


def form_of(dedup: Mapping[str, Any]) -> MinHash:
    """The form of signatures that the fields of a recipe's `dedup` ask for."""
    names = ("bands", "rows", "seed", "threshold", "counting")
    return MinHash(Shingling(dedup["n"], dedup["unit"]), *(dedup[name] for name in names))


def _near(arguments: Arguments) -> near.Near:
    files = list(arguments.get("known", {}).values())
    keys, shingles = ([Path(name) for one in files for name in one[kind]] for kind in ("keys", "shingles"))
    return near.Near(form_of(arguments["dedup"]), near.Indexed(tuple(keys), tuple(shingles)))


def index(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: a file of documents that were written to its part of the index, keys and shingles."""
    near.index_part(partial(read_documents, inputs[0]), outputs[0], outputs[1], _near(arguments).form)
    return {}


def reasons_in(path: Path) -> NDArray[np.int16]:
    """For each document of a piece the number of the reason why it goes; -1 where it stays."""
    found: NDArray[np.int16] = np.load(path, allow_pickle=False)
    return found


def write_reasons(path: Path, reasons: NDArray[np.int16]) -> None:
    """Write them, whatever the file's name ends in."""
    with open(path, "wb") as file:
        np.save(file, reasons, allow_pickle=False)


def staying(texts: Path, reasons: Path) -> Iterator[Document]:
    """The documents of a piece that stay so far."""
    return read_documents(texts, np.flatnonzero(reasons_in(reasons) < 0))


def sign(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts and reasons of a piece to the keys of its documents."""
    signed = sign_part(staying(*inputs), outputs[0], _near(arguments).form)
    return {"documents": signed.documents, "short": signed.short}


def pair(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all keys to the pairs of one range of one band."""
    near.pair(_near(arguments), inputs, arguments["band"], arguments["piece"], arguments["pieces"], outputs[0])
    return {}


def gather(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all keys and all pairs to the pairs, each once, and the rows of each piece that are in one."""
    count = arguments["parts"]
    facts: Facts = near.gather(_near(arguments), inputs[:count], inputs[count:], outputs[0], outputs[1:])
    return facts


def shingle(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts, reasons and rows of a piece to sets of shingles."""
    texts, reasons, rows = inputs
    near.shingle(_near(arguments), staying(texts, reasons), rows, outputs[0])
    return {}


def verify(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all keys, all sets and the pairs to the pairs of one slice that are duplicates."""
    count = arguments["parts"]
    keys, sets, pairs = inputs[:count], inputs[count : 2 * count], inputs[2 * count]
    near.verify(_near(arguments), keys, sets, pairs, arguments["piece"], arguments["pieces"], outputs[0])
    return {}


def simhash_of(dedup: Mapping[str, Any]) -> SimHash:
    """The form of a document's 64 bits that the fields of a recipe's `dedup` ask for."""
    return SimHash(Shingling(dedup["simhash_n"], dedup["unit"]), dedup["simhash_distance"])


def simhash_sign(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts and reasons of a piece to the 64 bits of its documents."""
    short = simhash_part(staying(*inputs), outputs[0], simhash_of(arguments["dedup"]))
    return {"documents": int((reasons_in(inputs[1]) < 0).sum()), "short": short}


def simhash_pair(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all bits to the pairs of one range of one table that differ in few."""
    form = simhash_of(arguments["dedup"])
    parts = open_parts(inputs, form.described)
    pairs, led = alike_by_bits(parts, form, arguments["table"], arguments["piece"], arguments["pieces"])
    write_pairs(outputs[0], pairs)
    return {"led": led}


def decide_simhash(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all bits, all reasons and the pairs to what `decided` writes."""
    count, form = arguments["parts"], simhash_of(arguments["dedup"])
    parts = open_parts(inputs[:count], form.described)
    kept = keep(parts, *unpacked(read_pairs(inputs[2 * count :])), arguments["priority"])
    return decided(kept, arguments, inputs[count : 2 * count], outputs)


def digest(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: texts and reasons of a piece to the hashes of its documents."""
    wordless = digest_part(staying(*inputs), outputs[0], arguments["compared"])
    return {"documents": int((reasons_in(inputs[1]) < 0).sum()), "wordless": wordless}


def decide_exact(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all hashes and all reasons to what `decided` writes."""
    keys = inputs[: arguments["parts"]]
    kept = exact_duplicates(keys, arguments["compared"], (), arguments["priority"], arguments["pieces"])
    return decided(kept, arguments, inputs[arguments["parts"] :], outputs)


def decide_near(arguments: Arguments, inputs: Paths, outputs: Paths) -> Facts:
    """The task: all keys, all reasons and the verified pairs to what `decided` writes."""
    count = arguments["parts"]
    kept = near.decide(_near(arguments), inputs[:count], inputs[2 * count :], arguments["priority"])
    return decided(kept, arguments, inputs[count : 2 * count], outputs)


def decided(kept: Kept, arguments: Arguments, before: Paths, outputs: Paths) -> Facts:
    """Write reasons and copies (row, id of the one kept) of each piece, and a list of clusters."""
    count = arguments["parts"]
    after, copies, clusters = outputs[:count], outputs[count : 2 * count], outputs[2 * count]
    gone = kept.members != kept.keepers
    members, keepers = kept.members[gone], kept.keepers[gone]
    order = np.argsort(members, kind="stable")
    members, keepers = members[order], keepers[order]
    dropped = []
    for index, part in enumerate(part for part in kept.parts.parts if not part.known):
        reasons = reasons_in(before[index]).copy()
        rows = np.flatnonzero(reasons < 0)
        begin, end = np.searchsorted(members, [part.first, part.first + part.documents])
        mine = rows[members[begin:end] - part.first]
        reasons[mine] = arguments["reason"]
        write_reasons(after[index], reasons)
        names = [kept.parts.id_of(number) for number in keepers[begin:end].tolist()]
        dropped.append(len(mine))
        write_columns(copies[index], {"row": mine.astype(np.int64), "of": names})
    write_clusters(kept, clusters)
    return {**kept.summary(), "dropped": dropped}
