"""What is the user's stays the user's; and every file that decides what comes out is noticed when it changes."""

import shutil
import unicodedata
from pathlib import Path

import pytest

from coretrain.corpus.engine import code
from coretrain.corpus.engine.run import Here
from coretrain.corpus.pipeline.corpus import make_corpus, outcome, retune
from coretrain.corpus.pipeline.learn import files_of, texts_in
from coretrain.corpus.pipeline.seal import WORK
from coretrain.corpus.pipeline.why import why
from coretrain.corpus.report.funnel import as_text
from tests.support.recipes import small_recipe, text, write_input, write_rows
from tests.support.refusal import refused


def quiet(line):
    pass


PLAIN = {"dedup": {"near": False, "exact": "off"}}


@pytest.mark.parametrize("name", ["documents", "dropped", "input", "index", "work"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_files_of_the_user_is_left_alone(tmp_path, name, fresh):
    """Names as common as documents/ are no sign of a corpus."""
    paths = write_input(tmp_path / "in", 10, 1)
    own = tmp_path / "out" / name / "thesis.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    with refused("corpus/output-not-ours", name):
        make_corpus(small_recipe(paths, **PLAIN), tmp_path / "out", Here, fresh, quiet)
    assert own.read_text() == "mine"


def test_a_recipe_of_another_kind_is_no_sign_of_a_corpus(tmp_path):
    paths = write_input(tmp_path / "in", 10, 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/recipe.json").write_text('{"flour": 500}')
    with refused("corpus/output-not-ours", "recipe.json"):
        make_corpus(small_recipe(paths, **PLAIN), tmp_path / "out", Here, say=quiet)
    assert (tmp_path / "out/recipe.json").read_text() == '{"flour": 500}'


def test_fresh_leaves_an_input_that_the_demo_did_not_make(tmp_path):
    paths = write_input(tmp_path / "out/input", 10, 1)
    shutil.move(tmp_path / "out/input", tmp_path / "aside")
    make_corpus(small_recipe([str(tmp_path / "aside")], **PLAIN), tmp_path / "out", Here, say=quiet)
    shutil.move(tmp_path / "aside", tmp_path / "out/input")
    make_corpus(small_recipe(paths, **PLAIN), tmp_path / "out", Here, fresh=True, say=quiet)
    assert (tmp_path / "out/input/part-0.jsonl").is_file()


def test_benchmarks_of_one_name_are_two_files(tmp_path):
    """mmlu/test.jsonl and arc/test.jsonl: a change of either changes the hashes that tasks depend on."""
    files = [write_rows(tmp_path / name / "test.jsonl", [{"text": text(name)}]) for name in ("arc", "mmlu")]
    recipe = small_recipe([], steps=["decontaminate"], rules=[], decontaminate={"files": [str(one) for one in files]})
    seen = []
    for changed in (None, *files):
        if changed:
            changed.write_text(changed.read_text() + "\n")
        seen.append(tuple(sorted(files_of(recipe).items())))
    assert len(set(seen)) == 3


def test_a_known_corpus_that_is_made_again_is_noticed_by_retune(tmp_path):
    """Its files have the same names as before."""
    config = {"exact": "off"}
    paths = [str(write_rows(tmp_path / "in.jsonl", [{"text": text(number)} for number in (1, 2, 3)]))]
    earlier = tmp_path / "earlier.jsonl"

    def known(number):
        write_rows(earlier, [{"text": text(number)}])
        made = small_recipe([str(earlier)], dedup=config, output={"index": True})
        make_corpus(made, tmp_path / "earlier", Here, fresh=True, say=quiet)

    known(1)
    make_corpus(small_recipe(paths, dedup=config), tmp_path / "out", Here, say=quiet)
    other = small_recipe(paths, dedup=config | {"known": [str(tmp_path / "earlier")]})
    prints = []
    for number, left in ((1, 2), (9, 3), (2, 2)):
        known(number)
        made = retune(tmp_path / "out", lambda before: other, Here, quiet)
        assert sum(one["documents"] for one in made.documents) == left
        prints.append(outcome(tmp_path / "out")[1]["fingerprint"])
    assert len(set(prints)) == 3


def test_the_version_of_unicode_is_in_the_version_of_the_code(monkeypatch):
    before = code.code_version.__wrapped__()
    assert code.code_version.__wrapped__() == before
    monkeypatch.setattr(unicodedata, "unidata_version", "1.1")
    assert code.code_version.__wrapped__() != before


def test_what_is_passed_over_in_training_text_is_told(tmp_path):
    rows = write_rows(tmp_path / "in/good.jsonl", [{"text": "Good."}, {"text": " "}, {"text": "Better."}])
    rows.write_text(rows.read_text() + "{damaged\n")
    (tmp_path / "in/notes.txt").write_text("x")
    texts, said = texts_in([str(tmp_path / "in")], small_recipe([]).plain()["extract"])
    assert texts == ["Good.", "Better."]
    assert "1 .txt file" in said
    assert "1 without text" in said
    assert said.count(",") == 2  # and the damaged row


def test_files_of_models_that_are_missing_are_named_with_their_field(tmp_path):
    paths = write_input(tmp_path / "in", 10, 1)
    more = {
        "steps": ["quality"],
        "rules": ["quality"],
        "models": {"good": paths, "bad": [str(tmp_path / "none.jsonl")]},
    }
    with refused("corpus/input-not-found", "models.bad: ", "none.jsonl"):
        make_corpus(small_recipe(paths, **more), tmp_path / "out", Here, say=quiet)


def test_an_output_where_nobody_may_make_a_folder_is_refused(tmp_path):
    paths = write_input(tmp_path / "in", 10, 1)
    with refused("corpus/output-cannot-be-made", "/proc/nowhere", "--output"):
        make_corpus(small_recipe(paths, **PLAIN), Path("/proc/nowhere/out"), Here, say=quiet)


def test_why_tells_nothing_of_an_attempt_that_failed(tmp_path):
    """retune wrote other reasons into work/, then refused to leave nothing: the corpus is still the one before."""
    paths = write_input(tmp_path / "in", 10, 1)
    make_corpus(small_recipe(paths, **PLAIN), tmp_path / "out", Here, say=quiet)
    none = small_recipe(paths, filters={"gopher": {"min_words": 100_000}}, **PLAIN)
    with refused("corpus/everything-dropped"):
        retune(tmp_path / "out", lambda before: none, Here, quiet)
    recipe, told = outcome(tmp_path / "out")
    with refused("corpus/why-overwritten", "retune"):
        why(tmp_path / "out" / WORK, recipe, told, "https://x.example/0")
    retune(tmp_path / "out", lambda before: small_recipe(paths, **PLAIN), Here, quiet)
    recipe, told = outcome(tmp_path / "out")
    assert "kept" in why(tmp_path / "out" / WORK, recipe, told, "https://x.example/0")


def test_a_document_is_found_by_the_name_that_its_data_set_gives_it(tmp_path):
    rows = [{"id": f"own-{number}", "text": text(number)} for number in range(3)]
    paths = [str(write_rows(tmp_path / "in.jsonl", rows))]
    make_corpus(small_recipe(paths, **PLAIN), tmp_path / "out", Here, say=quiet)
    recipe, told = outcome(tmp_path / "out")
    assert why(tmp_path / "out" / WORK, recipe, told, "own-1").count("signals:") == 1
    with refused("corpus/document-unknown", "own"):
        why(tmp_path / "out" / WORK, recipe, told, "own")
    assert "dropped by" not in as_text(recipe, told)  # nothing was
