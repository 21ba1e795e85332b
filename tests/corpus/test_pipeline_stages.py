"""Stages that a recipe may have besides: models and benchmarks, copied lines and substrings, corpora made earlier."""

import json

import pyarrow.parquet as pq

from coretrain.corpus.engine.pool import Pool
from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, outcome, retune
from coretrain.corpus.pipeline.folder import read_recipe
from coretrain.corpus.report.funnel import funnel
from tests.support.recipes import published, small_recipe, text, write_rows
from tests.support.refusal import refused


def quiet(line):
    pass


def rows(out, what):
    return [row for path in sorted(out.glob(f"{what}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_models_are_trained_and_limits_may_be_percentiles(tmp_path):
    """Good text has the better half of scores, and a tenth of 20 documents is kept where p90 is asked for."""
    good = [{"text": text(n)} for n in range(10)]
    bad = [{"text": "buy cheap things here " * 40 + str(n)} for n in range(10)]
    files = [str(write_rows(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("good", good), ("bad", bad))]
    more = {
        "steps": ["quality", "perplexity"],
        "rules": ["quality", "perplexity"],
        "models": {"good": files[:1], "bad": files[1:], "fluent": files[:1], "order": 3},
        "dedup": {"exact": "off", "near": False},
        "filters": {"quality": {"min_score": "p90"}},
    }
    said = []
    make_corpus(small_recipe(files, **more), tmp_path / "out", Here, say=said.append)
    kept = rows(tmp_path / "out", "documents")
    assert len(kept) == 2
    assert {row["text"] for row in kept} <= {row["text"] for row in good}
    assert any(line.startswith("filters.quality.min_score is 0.") for line in said)
    recipe, told = outcome(tmp_path / "out")
    assert 0.5 < recipe.filters.quality.min_score < 1
    assert read_recipe(tmp_path / "out").filters.quality.min_score == "p90"
    assert len([name for name in told["inputs"] if name.startswith("models.")]) == 3
    limits = {"quality": {"min_score": "off"}, "perplexity": {"max_value": "p45"}}
    other = small_recipe(files, **more | {"filters": limits})
    retune(tmp_path / "out", lambda before: other, Here, quiet)
    assert {row["text"] for row in rows(tmp_path / "out", "documents")} == {row["text"] for row in good}


def test_benchmarks_are_found_and_told(tmp_path):
    item = "seven engines of stone stand beside the quiet water under the winter bridge today"
    bench = write_rows(tmp_path / "bench.jsonl", [{"question": item}])
    documents = [{"text": text(n)} for n in range(6)] + [{"text": f"{text(6)}\n{item.upper()}!\n{text(7)}", "url": "u"}]
    paths = [str(write_rows(tmp_path / "in.jsonl", documents))]
    more = {"steps": ["decontaminate"], "rules": ["decontaminate"], "decontaminate": {"files": [str(bench)]}}
    make_corpus(small_recipe(paths, **more), tmp_path / "out", Here, say=quiet)
    assert [(row["url"], row["rule"], row["value"]) for row in rows(tmp_path / "out", "dropped")] == [
        ("u", "decontaminate.max_hits", 1.0)
    ]
    hit = json.loads((tmp_path / "out" / "work" / "hits/000000.jsonl").read_text())
    assert (hit["benchmark"], hit["text"]) == ("bench", item.upper())
    cutting = more | {"options": {"decontaminate": {"mode": "cut"}}}
    make_corpus(small_recipe(paths, **cutting), tmp_path / "cut", Here, say=quiet)
    texts = {row["text"] for row in rows(tmp_path / "cut", "documents")}
    assert len(texts) == 7
    assert not any("WINTER BRIDGE" in one for one in texts)


def only(kind, **more):
    """A recipe that looks for one kind of copies."""
    return {"steps": ["page"], "rules": [], "dedup": {"exact": "off", "near": False} | {kind: more.pop("to")} | more}


def test_copied_lines_are_cut_out_of_all_documents_but_one(tmp_path):
    menu = "Home, contact, imprint and 7 more pages of ours."
    documents = [{"text": f"{menu}\n{text(n)}", "source": f"s{n}"} for n in range(4)] + [{"text": menu}]
    paths = [str(write_rows(tmp_path / f"{n}.jsonl", [one])) for n, one in enumerate(documents)]
    more = only("lines", to="line") | {"input": {"paths": paths, "priority": ["s2"]}}
    make_corpus(small_recipe(paths, **more), tmp_path / "out", Here, say=quiet)
    kept = {row["source"]: row["text"] for row in rows(tmp_path / "out", "documents")}
    assert kept == {f"s{n}": f"{menu}\n{text(n)}" if n == 2 else text(n) for n in range(4)}
    assert [row["rule"] for row in rows(tmp_path / "out", "dropped")] == ["lines"]
    recipe, told = outcome(tmp_path / "out")
    found = funnel(recipe, told)
    assert [(row.what, row.documents) for row in found] == [
        ("documents read", 5),
        ("copied lines cut", 4),
        ("written", 4),
    ]
    assert found[-1].bytes == found[-2].bytes == found[0].bytes - 4 * len(menu) - 3


def test_copied_substrings_are_cut_out_of_all_documents_but_one(tmp_path):
    shared = "x" + text("shared", 1)[:150] + "x"
    documents = [{"text": f"{text(n, 2)} {shared} {text(-n - 1, 2)}", "source": f"s{n}"} for n in range(3)]
    paths = [str(write_rows(tmp_path / f"{n}.jsonl", [one])) for n, one in enumerate(documents)]
    more = only("substrings", to="byte") | {"input": {"paths": paths, "priority": ["s1"]}}
    make_corpus(small_recipe(paths, **more), tmp_path / "out", Here, say=quiet)
    kept = {row["source"]: shared in row["text"] for row in rows(tmp_path / "out", "documents")}
    assert kept == {"s0": False, "s1": True, "s2": False}


def test_texts_that_were_cut_are_held_to_the_limits_again(tmp_path):
    """Of five pages with a long menu one keeps it; without it the short ones among the others have too few letters."""
    menu = text("menu", 6)
    bodies = {n: text(n, 1 if n in (1, 3) else 8) for n in range(5)}
    documents = [{"text": f"{menu}\n{body}", "source": f"s{n}"} for n, body in bodies.items()]
    paths = [str(write_rows(tmp_path / f"{n}.jsonl", [one])) for n, one in enumerate(documents)]
    more = only("lines", to="line") | {"input": {"paths": paths, "priority": ["s4"]}, "rules": ["page"]}
    more["filters"] = {"page": {"min_characters": 400, "max_digits": "off"}}
    recipe = small_recipe(paths, **more)
    make_corpus(recipe, tmp_path / "out", Here, say=quiet)
    assert {row["source"] for row in rows(tmp_path / "out", "documents")} == {"s0", "s2", "s4"}
    assert [row["rule"] for row in rows(tmp_path / "out", "dropped")] == ["cut", "cut"]
    found, told = outcome(tmp_path / "out")
    assert told["cut"]["rules"] == {"page.min_characters": 2}
    last = funnel(found, told)[-2:]
    assert [(row.what, row.documents, row.dropped) for row in last] == [
        ("limits, after the cuts", 3, 2),
        ("written", 3, 0),
    ]
    assert last[0].bytes == last[1].bytes
    make_corpus(recipe, tmp_path / "pool", lambda folder: Pool(folder, 2), say=quiet)
    assert published(tmp_path / "pool") == published(tmp_path / "out")
    once = small_recipe(paths, **more | {"dedup": more["dedup"] | {"limits_again": False}})
    retune(tmp_path / "out", lambda before: once, Here, quiet)
    assert len(rows(tmp_path / "out", "documents")) == 5
    retune(tmp_path / "out", lambda before: recipe, Here, quiet)
    assert published(tmp_path / "out") == published(tmp_path / "pool")


def test_limits_of_trained_models_hold_again_too(tmp_path):
    """The model that the first stage used is at hand when texts have been cut, also for retune."""
    menu, bad = text("menu", 4), "buy cheap things here " * 30
    documents = [{"text": f"{menu}\n{text(1)}", "source": "a"}, {"text": f"{menu}\n{bad}", "source": "b"}]
    paths = [str(write_rows(tmp_path / f"{n}.jsonl", [one])) for n, one in enumerate(documents)]
    good = str(write_rows(tmp_path / "good.jsonl", [{"text": text(n)} for n in range(10)]))
    worse = str(write_rows(tmp_path / "bad.jsonl", [{"text": f"{bad}{n}"} for n in range(10)]))
    more = only("lines", to="line") | {"steps": ["page", "quality"], "rules": ["quality"]}
    more |= {"input": {"paths": paths, "priority": ["a"]}, "models": {"good": [good], "bad": [worse]}}

    def recipe(least):
        return small_recipe(paths, **more, filters={"quality": {"min_score": least}})

    make_corpus(recipe(0.0), tmp_path / "out", Here, say=quiet)
    assert len(rows(tmp_path / "out", "documents")) == 2
    signals = pq.read_table(tmp_path / "out/work/signals/000001.parquet")["quality.score"][0].as_py()
    retune(tmp_path / "out", lambda before: recipe(signals - 1e-6), Here, quiet)
    assert [row["source"] for row in rows(tmp_path / "out", "documents")] == ["a"]
    assert outcome(tmp_path / "out")[1]["cut"]["rules"] == {"quality.min_score": 1}


def test_a_corpus_made_earlier_is_known(tmp_path):
    """Of what an earlier corpus has, with an index, nothing is kept again; without one it is said how to get it."""
    old = [str(write_rows(tmp_path / "old.jsonl", [{"text": text(n)} for n in range(8)]))]
    new = [str(write_rows(tmp_path / "new.jsonl", [{"text": f"{text(n)}\nOne more line."} for n in range(5, 12)]))]
    make_corpus(small_recipe(old), tmp_path / "old", Here, say=quiet)
    known = small_recipe(new, dedup={"known": [str(tmp_path / "old")]})
    with refused("corpus/known-without-index", "output.index"):
        make_corpus(known, tmp_path / "out", Here, say=quiet)
    retune(tmp_path / "old", lambda before: small_recipe(old, output={"documents": 5, "index": True}), Here, quiet)
    assert len(list((tmp_path / "old/index").iterdir())) == 4
    make_corpus(known, tmp_path / "out", Here, say=quiet)
    assert [row["text"] for row in rows(tmp_path / "out", "documents")] == [
        f"{text(n)}\nOne more line." for n in range(8, 12)
    ]
    dropped = rows(tmp_path / "out", "dropped")
    assert [(row["rule"], row["copy_of"].startswith("old.jsonl#")) for row in dropped] == [("near", True)] * 3
