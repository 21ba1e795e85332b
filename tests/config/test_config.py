"""The config: sources and their order, limits, names in errors, JSON round trip, presets and what they claim."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from coretrain.base.errors import UserError
from coretrain.config.load import (
    PRESETS,
    apply_overrides,
    build_config,
    config_from_json,
    describe_type,
    fields,
    load_config,
    presets,
)
from coretrain.config.model import RopeScaling
from coretrain.config.run import CONFIG_VERSION, RunConfig
from coretrain.planning.flops import (
    batch_sentence,
    hours,
    parameter_count,
    run_flops,
)
from coretrain.planning.memory import footprint
from tests.support.refusal import refused

SIZES = {"trained": 4096, "gpt2": 50257, "bytes": 257}


LAPTOPS = ("tiny", "continue-tiny", "smollm2-lora", "smollm2-dpo", "smollm2-grpo")
"""Presets that are made for one, as all of the sort task are."""


def sized(name: str) -> RunConfig:
    config = load_config(name)
    return config if config.model.vocab else config.with_vocab(SIZES[config.data.tokenizer])


def sentence_of(*pairs: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        load_config(None, pairs)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_later_sources_win(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[train]\nupdates = 170\n[optimizer]\nlr = 2e-4\n[schedule]\nmin_lr = 0\n")
    config = load_config(str(path), [("optimizer.lr", "3e-4"), ("optimizer.lr", "5e-4")])
    assert (config.name, config.train.updates, config.optimizer.lr) == ("mine", 170, 5e-4)
    assert config.train.batch_size == RunConfig().train.batch_size
    path.write_text('name = "yours"\nversion = 1\n[schedule]\nwarmup_updates = 3\n')
    assert load_config(str(path)).name == "yours"


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("model.layrs", "3")], ["model.layrs", "model.layers"]),
        ([("weight_decay", "3")], ["weight_decay", "optimizer.weight_decay"]),
        ([("zzz.qqq", "3")], ["zzz.qqq", "--help"]),
        ([("model.heads", "5")], ["model.heads = 5", "model.width = 192", "head_width"]),
        ([("model.kv_heads", "4")], ["model.kv_heads = 4", "model.heads = 3"]),
        ([("model.position", "rope"), ("model.head_width", "33")], ["head_width = 33", "odd"]),
        ([("version", str(CONFIG_VERSION + 1))], ["newer", "upgrade"]),
        ([("version", "0")], ["--version 0"]),
        ([("model.layers", "0")], ["--model.layers 0 is wrong", "greater than or equal to 1"]),
        ([("model.layers", "two")], ["--model.layers two is wrong", "integer"]),
        ([("model.norm", "batchnorm")], ["model.norm", "layernorm", "rmsnorm"]),
        ([("optimizer.name", "AdamW")], ["did you mean adamw?", "one of adamw, adam, muon"]),
        ([("execution.attention", "flash")], ["did you mean flash_attn?"]),
        ([("parallel.zero", "4")], ["--parallel.zero 4 is wrong: it is one of 0, 1, 2, 3"]),
        ([("model.rope_scaling", '{type = "lama3", factor = 8}')], ["did you mean llama3?"]),
        ([("model.residual_dropout", "1")], ["--model.residual_dropout 1", "less than 1"]),
        ([("train.seed", "-1")], ["--train.seed -1"]),
        ([("train.accumulation", "3")], ["train.accumulation = 3", "train.batch_size = 8"]),
        ([("schedule.warmup_updates", "801")], ["warmup_updates = 801", "800 updates"]),
        ([("schedule.min_lr", "1")], ["min_lr = 1", "lr = 0.0015"]),
        ([("optimizer.lr", "inf")], ["optimizer.lr", "finite"]),
        ([("optimizer.clip", "nan")], ["optimizer.clip", "finite"]),
        ([("data.mixture", "3")], ["--data.mixture 3"]),
        ([("name", "a/b")], ["--name a/b", "letters a to z"]),
    ],
)
def test_an_error_names_the_field_and_the_way_out(pairs, words):
    text = sentence_of(*pairs)
    assert [word for word in words if word not in text] == [], text


def test_a_newer_version_is_refused_in_whatever_form_it_comes(tmp_path):
    for value, code in (("2", "version-newer"), ('"2"', "value-wrong"), ("2.0", "value-wrong")):
        (tmp_path / "new.toml").write_text(f"version = {value}\n")
        with refused(f"config/{code}", "version"):
            load_config(str(tmp_path / "new.toml"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model]\nlayrs = 3\n", ["model.layrs", "model.layers"]),
        ("[modle]\nlayers = 3\n", ["modle"]),
        ("model = 3\n", ["model = 3"]),
        ("schedule = 3\n", ["schedule = 3"]),
        ("train = []\n", ["train = []"]),
        ('optimizer = "x"\n', ["optimizer = 'x'"]),
        ("[train]\nupdates = nan\n", ["train.updates = nan"]),
        ("[model\n", ["not valid TOML"]),
        ("when = 2026-01-01\n", ["when"]),
    ],
)
@pytest.mark.parametrize("overrides", [[], [("model.layers", "3")]])
def test_a_wrong_file_is_named(tmp_path, text, words, overrides):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides)
    words = [w for w in words if w != "model = 3" or not overrides] + ([] if overrides else [str(path)])
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_bytes(b"\xff\xfe")
    with refused("config/toml-invalid"):
        load_config(str(path))


def test_a_wrong_preset_names_the_nearest():
    with refused("config/unknown-config-name", "did you mean gpt2-124m"):
        load_config("gpt2-125m")
    with refused("config/unknown-config-name", "tiny"):
        load_config("zzzzz")


def test_overrides_read_toml_or_keep_text():
    given = [("model.bias", "False"), ("optimizer.lr", "3e-4"), ("data.source", "hf:a/b"), ("schedule.horizon", "900")]
    assert apply_overrides({}, given) == {
        "model": {"bias": False},
        "optimizer": {"lr": 3e-4},
        "data": {"source": "hf:a/b"},
        "schedule": {"horizon": 900},
    }
    for name in ("2026", "2026-01-01", "true", "1.5"):  # folders can be called so
        assert load_config(None, [("data.source", name)]).data.source == name
    assert load_config(None, [("data.source", '"quoted"')]).data.source == "quoted"
    assert apply_overrides({"model": {"vocab": 9}}, [("model.vocab", "none")]) == {"model": {}}
    mixture = load_config(None, [("data.mixture", '[{source = "a", weight = 3}]')]).data.mixture
    assert [(part.source, part.weight) for part in mixture] == [("a", 3.0)]
    for scaling in ('{type = "linear", factor = 2.0}', '{"type": "linear", "factor": 2}'):
        found = load_config(None, [("model.rope_scaling", scaling)])
        assert found.model.rope_scaling == RopeScaling(type="linear", factor=2.0)
        assert config_from_json(found.to_json()) == found


def test_scaled_positions_that_make_no_sense():
    out_of_order = '{type = "llama3", factor = 8, high_freq_factor = 1}'
    for code, name, more in (
        ("config/value-wrong", "--model.rope_scaling {type", [("model.rope_scaling", "{type")]),
        ("config/value-wrong", "model.rope_scaling.factor", [("model.rope_scaling", '{type = "llama3"}')]),
        ("config/rope-factors-not-in-order", "high_freq_factor = 1", [("model.rope_scaling", out_of_order)]),
        (
            "config/scaling-without-rotary-positions",
            "model.position = learned",
            [("model.rope_scaling", '{type = "linear", factor = 2}'), ("model.position", "learned")],
        ),
    ):
        with refused(code, name):
            load_config(None, more)


def test_overrides_leave_their_source_alone():
    raw = {"model": {"layers": 2}}
    apply_overrides(raw, [("model.layers", "3"), ("train.updates", "5")])
    assert raw == {"model": {"layers": 2}}


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config().train.updates = 3


def test_derived_sizes():
    m = load_config(None, [("model.heads", "6"), ("model.kv_heads", "2"), ("model.head_width", "40")]).model
    assert (m.kv, m.head, m.hidden) == (2, 40, 512)
    assert load_config(None, [("model.mlp", "gelu")]).model.hidden == 768
    assert load_config(None, [("model.mlp", "swiglu"), ("model.width", "198")]).model.hidden == 576  # 528, up to 64
    with refused("config/model-vocab-not-set"):
        _ = load_config().model.vocabulary
    assert load_config().with_vocab(300).model.vocabulary == 300
    assert load_config(None, [("model.vocab", "400")]).with_vocab(300).model.vocabulary == 400
    with refused("config/vocab-too-small", "400", "500"):
        load_config(None, [("model.vocab", "400")]).with_vocab(500)
    c = load_config(None, [("train.batch_size", "12"), ("train.accumulation", "4"), ("model.context", "256")])
    assert (c.micro_batch, c.tokens_per_update) == (3, 12 * 256)
    assert c.changed(train__updates=9).train.updates == 9


@pytest.mark.parametrize("name", presets())
def test_json_keeps_everything(name):
    config = sized(name)
    again = config_from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()


def test_every_field_is_described_with_its_limits():
    for name, (section, leaf) in fields().items():
        assert name.count(".") <= 1
        if section.model_fields[leaf].description is None:
            raise AssertionError(name)
        assert describe_type(section, leaf)
    words = {name: describe_type(*where) for name, where in fields().items()}
    assert words["model.layers"] == "int, >= 1, <= 10000"
    assert words["model.kv_heads"] == "int, >= 1"
    assert words["model.residual_dropout"] == "float, >= 0, < 1"
    assert words["precision.compute"] == "auto | float64 | float32 | bfloat16 | float16"
    assert words["data.tokenizer_vocab"] == "int, >= 257, <= 1e+07"


def test_faults_without_a_file_have_a_place():
    with refused("config/value-wrong", "here: model.layers = -3"):
        build_config({"model": {"layers": -3}}, "here")


@pytest.mark.parametrize("name", presets())
def test_a_preset_comments_every_field_and_repeats_none(name):
    text = (PRESETS / f"{name}.toml").read_text()
    raw = tomllib.loads(text)
    assert raw["name"] == name
    assert raw["version"] == CONFIG_VERSION
    lines = [line for line in text.splitlines() if re.match(r"\w+ = ", line)]
    assert len(lines) == sum(len(value) if isinstance(value, dict) else 1 for value in raw.values())
    assert [line for line in lines if not re.search(r' # (?=[^"]*$).*\w{2}', line)] == []


@pytest.mark.parametrize("name", presets())
def test_a_presets_header_says_what_the_budget_computes(name):
    config = sized(name)
    header = (PRESETS / f"{name}.toml").read_text().split("version")[0]
    memory = footprint(config).total / 2**30
    facts = [f"{parameter_count(config.model):,} parameters", batch_sentence(config), f"{run_flops(config):.2e} FLOPs"]
    if name in LAPTOPS or name.startswith("sort-"):
        facts += [f"{hours(config, 100e9) * 60:.1f} minutes at an assumed 100 GFLOP/s", f"About {memory:.2f} GiB"]
    else:
        facts += [f"{hours(config, 0.4 * 989e12):,.1f} hours on one H100", f"About {memory:,.0f} GiB"]
    assert [fact for fact in facts if fact not in header] == []


def test_the_course_preset_is_the_courses_run():
    c = load_config("course-124m")
    m, t, o, s = c.model, c.train, c.optimizer, c.schedule
    assert (m.layers, m.heads, m.width, m.context) == (12, 12, 768, 1024)
    assert (t.batch_size, t.accumulation, c.micro_batch, t.updates) == (32, 4, 8, 100_000)
    assert (o.lr, o.weight_decay, o.beta1, o.beta2, o.clip) == (6e-4, 0.1, 0.9, 0.95, 1.0)
    assert (s.kind, s.min_lr, s.warmup_updates, s.horizon) == ("cosine", 6e-5, 2000, None)


@pytest.mark.parametrize(
    ("fields", "warmup", "lowest"),
    [
        ({"train.updates": "3"}, 0, 1e-4),
        ({"train.updates": "3.0"}, 0, 1e-4),
        ({"train.updates": '"3"'}, 0, 1e-4),
        ({"train.updates": "60"}, 6, 1e-4),
        ({"train.updates": "300", "schedule.horizon": "60"}, 6, 1e-4),
        ({"train.updates": "60", "schedule.warmup_updates": "7"}, 7, 1e-4),
        ({"train.updates": "60", "schedule.horizon": "300"}, 100, 1e-4),
        ({"optimizer.lr": "5e-5"}, 100, 5e-6),
        ({"optimizer.lr": "5e-5", "schedule.min_lr": "1e-5"}, 100, 1e-5),
        ({"optimizer.lr": "5e-4"}, 100, 1e-4),
    ],
)
def test_what_follows_another_field_does_so_from_a_file_and_from_the_command_line(tmp_path, fields, warmup, lowest):
    (tmp_path / "none.toml").write_text("")
    (tmp_path / "all.toml").write_text("".join(f"{key} = {value}\n" for key, value in fields.items()))
    of_file = load_config(str(tmp_path / "all.toml"))
    typed = load_config(str(tmp_path / "none.toml"), list(fields.items()))
    for found in (of_file, typed):
        assert (found.schedule.warmup_updates, found.schedule.min_lr) == (warmup, pytest.approx(lowest))
    assert of_file.changed(name="none") == typed


def test_what_a_file_says_itself_is_not_made_to_follow(tmp_path):
    (tmp_path / "own.toml").write_text("[train]\nupdates = 3\n[schedule]\nwarmup_updates = 5\n")
    with refused("config/warmup-longer-than-horizon", "warmup_updates = 5"):
        load_config(str(tmp_path / "own.toml"))
    assert load_config(str(tmp_path / "own.toml"), [("train.updates", "20")]).schedule.warmup_updates == 5
    assert load_config(str(tmp_path / "own.toml"), [("train.updates", "4")]).schedule.warmup_updates == 0
    assert load_config("tiny", [("schedule.horizon", "50")]).schedule.warmup_updates == 5
    (tmp_path / "own.toml").write_text("[schedule]\nhorizon = 100\nwarmup_updates = 200\n")
    with refused("config/warmup-longer-than-horizon", "warmup_updates = 200"):
        load_config(str(tmp_path / "own.toml"), [("train.updates", "50")])  # which changes neither


def test_a_folder_named_like_a_number_is_a_name():
    config = load_config("tiny", [("adapter.base", "2026"), ("data.chat_template", "7"), ("data.source", "1.5")])
    assert (config.adapter.base, config.data.chat_template, config.data.source) == ("2026", "7", "1.5")
    assert load_config("tiny", [("adapter.base", "none")]).adapter.base is None
    assert load_config("tiny", [("adapter.targets", '["a", "b"]')]).adapter.targets == ("a", "b")


def test_what_is_there_but_no_config_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("train: {}")
    Path("mine.toml").write_text("")
    Path("run").mkdir()
    Path("run", "config.json").write_text("{}")
    with refused("config/config-not-toml", "my.yaml is there", "my.toml"):
        load_config("my.yaml")
    with refused("config/config-is-folder", "--resume run"):
        load_config("run")
    with refused("config/unknown-config-name", "did you mean the file mine.toml?"):
        load_config("mine")
    with refused("config/no-such-file", "runs/x.toml"):
        load_config("runs/x.toml")


def test_a_shorter_run_gets_a_shorter_warm_up_unless_it_is_given():
    def warmup(*more: tuple[str, str]) -> int:
        return load_config("gpt2-124m", [("train.updates", "200"), *more]).schedule.warmup_updates

    assert warmup() == 20
    assert warmup(("schedule.warmup_updates", "30")) == 30
    assert warmup(("schedule.horizon", "5000")) == 700
    assert load_config("gpt2-124m", [("train.updates", "700")]).schedule.warmup_updates == 700
    with refused("config/warmup-longer-than-horizon", "schedule.warmup_updates = 300"):
        warmup(("schedule.warmup_updates", "300"))


def test_a_config_may_lie_under_any_name(tmp_path):
    path = tmp_path / "my [run] ü.TOML"
    path.write_text("[train]\nupdates = 300\n")
    config = load_config(str(path))
    assert (config.name, config.train.updates) == ("my--run---", 300)


def test_a_run_of_an_earlier_version_has_what_it_did_where_it_says_nothing():
    """Its limits were those of all updates before; a new config has the default. What it says counts."""
    whole = json.loads(load_config("tiny").to_json())
    assert config_from_json(json.dumps(whole)).health.lag == load_config("tiny").health.lag == 1
    del whole["health"]["lag"]
    assert config_from_json(json.dumps(whole)).health.lag == 0
    del whole["health"]
    assert config_from_json(json.dumps(whole)).health.lag == 0
