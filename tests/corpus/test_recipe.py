"""Recipes: fields, limits and rules in their order; every fault is one sentence."""

import pytest

from coretrain.corpus.load import build_recipe, known_fields, load_recipe, parse_sets, with_sets
from coretrain.corpus.presets import PRESETS, presets
from coretrain.corpus.recipe import Recipe
from tests.support.refusal import refused


def recipe(**more):
    return build_recipe({"steps": ["gopher", "page"], "rules": ["gopher", "ccnet"], **more}, "r.toml")


def test_rules_come_in_the_recipes_order_with_its_limits():
    made = recipe(filters={"gopher": {"min_words": 30, "max_words": "off"}})
    names = [rule.name for rule in made.every_rule()]
    assert names[:3] == ["text.empty", "gopher.min_words", "gopher.min_mean_word_length"]
    assert names[-2:] == ["ccnet.min_characters", "text.emptied"]
    assert made.every_rule()[1].least == 30
    assert "fewer than 30" in made.every_rule()[1].meaning
    turned = recipe(rules=["ccnet", "gopher"])
    assert turned.every_rule()[1].name == "ccnet.min_characters"


def test_canonical_limits_are_the_defaults():
    rule = {rule.name: rule for rule in recipe().every_rule()}
    assert (rule["gopher.min_words"].least, rule["gopher.max_words"].most) == (50, 100_000)
    assert "page.max_digits" not in rule


def test_the_fingerprint_is_of_what_decides_and_of_nothing_else():
    base = recipe()
    same = [
        recipe(name="other", about="x", licence="y"),
        recipe(execution={"piece_bytes": 2**20, "memory": 2**25}),
        recipe(input={"paths": ["a.jsonl"]}),
        recipe(filters={"fineweb": {"min_lines": 3}}),  # of rules that aren't applied
        recipe(options={"c4": {"policy": False}}),
    ]
    assert {one.fingerprint() for one in same} == {base.fingerprint()}
    others = [
        recipe(filters={"gopher": {"min_words": 51}}),
        recipe(rules=["ccnet", "gopher"]),
        recipe(steps=["page", "gopher"]),
        recipe(options={"page": {"long": 100}}),
        recipe(dedup={"threshold": 0.8}),
        recipe(extract={"kind": "none"}),
        recipe(input={"priority": ["a"]}),
        recipe(output={"documents": 7}),
    ]
    assert len({one.fingerprint() for one in [base, *others]}) == len(others) + 1


def test_what_is_read_doesnt_depend_on_limits_but_those_of_gates():
    gated = {"steps": ["language", "gopher"], "rules": ["language", "gopher"], "gates": ["language"]}
    base = recipe(**gated)
    assert recipe(**gated, filters={"gopher": {"min_words": 9}}).reading() == base.reading()
    assert recipe(**gated, filters={"language": {"min_score": 0.9}}).reading() != base.reading()


def test_a_recipe_comes_back_from_its_json():
    made = recipe(filters={"gopher": {"min_words": 30, "max_words": "off"}, "language": {"keep": ["de", "en"]}})
    again = build_recipe(made.plain(), "recipe.json")
    assert again == made
    assert again.plain() == made.plain()
    assert Recipe.model_validate(made.reading()).reading() == made.reading()


@pytest.mark.parametrize(
    ("raw", "code", "names"),
    [
        ({"steps": ["gophre"]}, "corpus/unknown-word", ("gophre", "did you mean gopher?")),
        ({"rules": ["fineweb3"]}, "corpus/unknown-word", ("fineweb3", "fineweb")),
        ({"steps": ["gopher", "gopher"]}, "corpus/named-twice", ("gopher",)),
        ({"rules": ["c4"]}, "corpus/rule-without-step", ("c4", "add c4 to steps")),
        ({"gates": ["page"]}, "corpus/gate-without-step", ("page",)),
        ({"filters": {"gopher": {"min_wrds": 3}}}, "corpus/unknown-field-in-recipe", ("filters.gopher.min_words",)),
        ({"filter": {}}, "corpus/unknown-field-in-recipe", ("filter",)),
        ({"filters": {"gopher": {"min_words": -1}}}, "corpus/value-wrong", ("filters.gopher.min_words = -1",)),
        ({"filters": {"gopher": {"min_alpha_words": 2}}}, "corpus/value-wrong", ("min_alpha_words = 2",)),
        ({"filters": {"gopher": {"min_words": "of"}}}, "corpus/value-wrong", ("filters.gopher.min_words = 'of'",)),
        ({"filters": {"gopher": {"min_words": True}}}, "corpus/value-wrong", ("min_words",)),
        ({"dedup": {"unit": "words"}}, "corpus/value-wrong", ("did you mean word?",)),
        ({"dedup": 3}, "corpus/value-wrong", ("dedup",)),
        ({"extract": {"deadline": 0}}, "corpus/value-wrong", ("extract.deadline = 0",)),
        ({"models": {"good": "a.jsonl"}}, "corpus/value-wrong", ("models.good = 'a.jsonl'", 'it is a list, as ["a",')),
        ({"models": {"order": 9}}, "corpus/value-wrong", ("models.order = 9", "8")),  # none of 9 can be read again
    ],
)
def test_a_fault_names_the_field_and_the_way_out(raw, code, names):
    with refused(code, "r.toml", *names):
        recipe(**raw)


def test_a_language_that_nobody_knows_is_refused():
    raw = {"steps": ["language"], "rules": ["language"], "filters": {"language": {"keep": ["english"]}}}
    with refused("corpus/language-unknown", "english"):
        build_recipe(raw, "r.toml")


def test_sets_are_read_as_toml_and_kept_as_words():
    raw = with_sets(
        {}, parse_sets(["filters.gopher.min_words=30", 'input.priority=["a", "b"]', "name=7", "about = x y"])
    )
    assert raw == {
        "filters": {"gopher": {"min_words": 30}},
        "input": {"priority": ["a", "b"]},
        "name": "7",
        "about": "x y",
    }


@pytest.mark.parametrize(
    ("word", "code", "names"),
    [
        ("filters.gopher.min_word=3", "corpus/unknown-field", ("did you mean filters.gopher.min_words?",)),
        ("min_words=3", "corpus/unknown-field", ("did you mean filters.gopher.min_words?",)),
        ("filters.gopher.min_words", "corpus/set-without-value", ("filters.gopher.min_words",)),
        ("filters.gopher=3", "corpus/unknown-field", ("filters.gopher",)),
    ],
)
def test_a_wrong_set_is_refused(word, code, names):
    with refused(code, *names):
        with_sets({}, parse_sets([word]))


def test_a_value_that_was_typed_is_named_as_it_was_typed(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('steps = ["gopher"]\nrules = ["gopher"]\n')
    with refused("corpus/value-wrong", "--set filters.gopher.min_words=few"):
        load_recipe(str(path), [("filters.gopher.min_words", "few")])
    assert load_recipe(str(path), [], ["x.jsonl"]).input.paths == ("x.jsonl",)
    assert load_recipe(str(path)).name == "r"


@pytest.mark.parametrize(
    ("name", "code", "names"),
    [
        ("web-dmo", "corpus/unknown-recipe", ("did you mean web-demo?",)),
        ("nothing.toml", "corpus/no-recipe-file", ("nothing.toml",)),
        ("", "corpus/unknown-recipe", ()),
        ("../data/web-demo", "corpus/unknown-recipe", ()),
    ],
)
def test_a_recipe_that_isnt_there_is_refused(name, code, names):
    with refused(code, *names):
        load_recipe(name)


def test_a_file_that_is_no_toml_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text("steps = [")
    with refused("corpus/recipe-not-toml", "r.toml"):
        load_recipe(str(path))


QUALITY = [("models.good", '["good.jsonl"]'), ("models.bad", '["bad.jsonl"]')]
LEARNING = {"ccnet": [("models.fluent", '["fluent.jsonl"]')], "dclm": QUALITY, "fineweb-edu": QUALITY}


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_says_its_source_and_names_its_rules(name):
    made = load_recipe(name, LEARNING.get(name, []))
    assert made.name == name
    assert made.about
    assert len(made.every_rule()) > 2
    assert all(getattr(made.filters, key) is not None for key in made.rules)


@pytest.mark.parametrize("name", sorted(LEARNING))
def test_a_preset_whose_classifier_isnt_there_says_what_it_needs(name):
    with refused("corpus/step-without-model", *(field for field, _ in LEARNING[name])):
        load_recipe(name)


def test_every_field_of_a_preset_is_explained_above_it():
    for name in presets():
        lines = (PRESETS / f"{name}.toml").read_text().splitlines()
        before = ""
        for line in lines:
            if " = " in line and not line.startswith((" ", "#", "name", "about", "licence")):
                group = before.startswith("#") or " = " in before or before == "]"
                assert group or line.split(" = ")[0] in ("keep", "kind", "steps", "rules", "min_score", "exact"), (
                    name,
                    line,
                )
            before = line


def test_every_field_has_a_meaning():
    for key, (section, leaf) in known_fields().items():
        if not key.startswith("options."):
            assert section.model_fields[leaf].description, key


@pytest.mark.parametrize(
    ("raw", "code", "names"),
    [
        ({"steps": ["quality"], "rules": []}, "corpus/step-without-model", ("models.good and models.bad",)),
        ({"steps": ["perplexity"], "rules": []}, "corpus/step-without-model", ("options.perplexity.model",)),
        ({"steps": ["quality"], "rules": [], "models": {"good": ["a"]}}, "corpus/half-a-model", ("models.bad",)),
        ({"steps": ["decontaminate"], "rules": []}, "corpus/benchmarks-without-step", ("decontaminate.files",)),
        ({"decontaminate": {"index": "x"}}, "corpus/benchmarks-without-step", ("step decontaminate",)),
        (
            {"steps": ["quality"], "rules": [], "models": {"good": ["a"], "bad": ["b"]}}
            | {"options": {"quality": {"model": "m.npz"}}},
            "corpus/two-models",
            ("options.quality.model",),
        ),
        (
            {"rules": ["gopher"], "gates": ["gopher"], "filters": {"gopher": {"min_words": "p10"}}},
            "corpus/percentile-in-gate",
            ("filters.gopher.min_words",),
        ),
        ({"filters": {"gopher": {"min_words": "p100"}}}, "corpus/value-wrong", ("min_words = 'p100'",)),
    ],
)
def test_what_a_step_learns_from_must_be_given(raw, code, names):
    with refused(code, "r.toml", *names):
        recipe(**raw)


def test_percentiles_become_numbers():
    made = recipe(filters={"gopher": {"min_words": "p10", "max_words": "p99.5"}})
    assert made.percentiles() == {
        "gopher.min_words": ("gopher.words", 0.1),
        "gopher.max_words": ("gopher.words", 0.995),
    }
    found = made.with_limits({"gopher.min_words": 33.0, "gopher.max_words": 4000.0})
    assert found.percentiles() == {}
    assert found.every_rule()[1].least == 33
