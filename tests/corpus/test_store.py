"""Documents and signals as they lie between stages: what is written comes back, and costs no process a large import."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from coretrain.corpus.document import Document
from coretrain.corpus.store import Writer, read_columns, read_documents, read_rows, write_columns
from tests.support.commands import environment
from tests.support.refusal import refused

WORDS = ["a", None, "", "ä€🙂", None, "last"]


def test_columns_are_what_arrow_makes_of_them(tmp_path):
    numbers = np.array([1.5, np.nan, -0.0, np.inf, 2.0, 3.0])
    columns = {"word": WORDS, "number": numbers, "row": np.arange(6), "small": np.arange(6, dtype=np.int16)[::-1]}
    write_columns(tmp_path / "x.parquet", columns)
    found = pq.read_table(tmp_path / "x.parquet")
    assert found["word"].equals(pa.chunked_array([pa.array(WORDS, pa.string())]))
    assert [field.type for field in found.schema] == [pa.string(), pa.float64(), pa.int64(), pa.int16()]
    back = read_columns(tmp_path / "x.parquet")
    assert back["word"] == WORDS
    for name in ("number", "row", "small"):
        np.testing.assert_array_equal(back[name], columns[name], strict=True)
    assert list(read_columns(tmp_path / "x.parquet", ["row"])) == ["row"]


def test_columns_without_a_row_keep_their_kinds(tmp_path):
    write_columns(tmp_path / "x.parquet", {"word": [], "number": np.zeros(0), "row": np.zeros(0, np.int64)})
    back = read_columns(tmp_path / "x.parquet")
    assert back["word"] == []
    assert (back["number"].dtype, back["row"].dtype) == (np.float64, np.int64)


def test_columns_of_several_chunks_come_back_in_order(tmp_path):
    write_columns(tmp_path / "x.parquet", {"row": np.arange(2**17 + 3)})  # more than a group of rows
    assert pq.ParquetFile(tmp_path / "x.parquet").num_row_groups == 3
    np.testing.assert_array_equal(read_columns(tmp_path / "x.parquet")["row"], np.arange(2**17 + 3))


@pytest.mark.parametrize("some", [[], [0], [255, 256], [3, 700, 701, 1023, 1024, 1500], range(0, 1501, 2)])
def test_some_rows_are_those(tmp_path, some):
    every = [Document(f"id {n}", f"text {n}", {"url": f"u{n}"} if n % 3 else {"n": n}) for n in range(1501)]
    with Writer(tmp_path / "x.parquet") as writer:
        writer.add(every)
    assert list(read_documents(tmp_path / "x.parquet")) == every
    rows = np.array(some, np.int64)
    assert list(read_documents(tmp_path / "x.parquet", rows)) == [every[row] for row in some]
    assert [row["id"] for row in read_rows(tmp_path / "x.parquet", ("id",), rows)] == [f"id {row}" for row in some]


def test_a_damaged_file_is_told(tmp_path):
    write_columns(tmp_path / "x.parquet", {"word": WORDS})
    raw = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(raw[:9] + b"x" + raw[10:-1])
    with refused("corpus/columns-unreadable", "x.parquet"):
        read_columns(tmp_path / "x.parquet")


NEEDED = """
import sys
from pathlib import Path
import numpy as np
import coretrain.corpus.pipeline.warm
from coretrain.corpus.document import Document
from coretrain.corpus.store import Writer, read_columns, read_documents, write_columns
path = Path(sys.argv[1])
with Writer(path) as writer:
    writer.add([Document("1", "one", {"url": "u"}), Document("2", "two")])
print([one.id for one in read_documents(path, np.array([1]))])
write_columns(path, {"word": ["a", None], "number": np.arange(2.0)})
print(read_columns(path)["number"].tolist())
print(sorted({"pandas", "pydantic", "scipy", "torch", "jax", "pyarrow.compute", "pyarrow.dataset"} & set(sys.modules)))
"""


def test_a_worker_imports_nothing_large(tmp_path):
    """Each took every process of a run a tenth to a third of a second."""
    done = subprocess.run(
        [sys.executable, "-c", NEEDED, tmp_path / "x"], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.stdout.splitlines() == ["['2']", "[0.0, 1.0]", "[]"], done.stderr
