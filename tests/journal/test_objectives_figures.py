"""How the figures of an objective are told and drawn."""

from __future__ import annotations

import json

from coretrain.alignment.figures import FIGURES
from coretrain.config.load import load_config
from coretrain.journal.answers import ANSWERS, keep_answers, read_answers
from coretrain.journal.figures import CHARTS, TOLD, best_words, charts_of, evaluated_words, told, validation_key
from tests.support.journals import journal


def test_an_evaluation_in_words():
    """What counts first: of a reward its mean, of text nats and bits, and what answers were worth before the rest."""
    text, dpo, grpo = load_config("tiny"), load_config("sort-dpo"), load_config("sort-grpo")
    row = {"update": 3, "val_loss": 1.25, "bits_per_byte": 0.5}
    assert evaluated_words(text, row) == ["validation loss 1.2500", "0.5000 bits per byte"]
    row = {"update": 3, "val_loss": 0.25, "val_accuracy": 1.0, "val_chosen_logprob": None, "val_reward": 0.5}
    assert evaluated_words(dpo, row) == [
        "validation loss 0.2500", "reward 0.5000", "accuracy 1.0000", "chosen logprob not finite",
    ]  # fmt: skip
    row = {"update": 3, "val_loss": -0.75, "val_reward": 0.75, "val_length": 7.0}
    assert evaluated_words(grpo, row) == ["validation reward 0.7500", "length 7.0000"]
    assert best_words(grpo, -0.75) == "validation reward 0.7500"
    assert best_words(grpo, None) == "validation reward not finite"
    assert [validation_key(name) for name in ("bits_per_byte", "reward")] == ["bits_per_byte", "val_reward"]


def test_a_line_of_the_terminal():
    row = {"reward": 0.12345, "answer_kl": 1e-7, "entropy": None, "length": 7}
    assert told(load_config("sort-grpo"), row) == "  reward 0.123  answer_kl 1e-07  length 7"
    assert told(load_config("tiny"), row) == ""
    assert TOLD.keys() == FIGURES.keys() - {"cross_entropy"}


def test_every_figure_has_a_chart():
    """One that is known in its own, one that isn't alone; those of text have theirs already."""
    known = {field for chart in CHARTS for field in chart.fields}
    expected = {name for names in FIGURES.values() for name in names} - {"value_clip_fraction"}
    assert {name for name in expected - known if not name.startswith(("desirable", "undesirable"))} == set()
    drawn = charts_of(["loss", "margin", "reward_exact", "lr", "reward"])
    assert [chart.title for chart in drawn] == ["Reward", "Margin", "reward exact"]


def test_a_report_of_rewards(tmp_path):
    """Curves of what moves, the rest in a sentence; what to look at when the loss is 0; the held-out answers."""
    with journal(tmp_path, train__objective="grpo", data__format="prompts", align__reward="sort") as book:
        for n in range(4):
            more = {"reward": 0.1 * n, "reward_spread": 0.5, "clip_fraction": 0.0}
            book.update(n, 0.0, 1.0, 1e-3, 2048 * (n + 1), f"{n:016x}", 0.5, **more)
            book.evaluation(n + 1, -0.1 * n, {"reward": 0.1 * n, "truth": 0.2})
        book.answers(4, [{"prompt": "<p>", "answer": "a & b", "reward": 0.25, "ended": False}])
        book.close("finished", {"update": 4, "val_loss": -0.3})
    page = (tmp_path / "report.html").read_text()
    for words in (
        "Answers to held-out prompts", "as the task itself has it", "Always 0: Clip fraction (share of tokens).",
        "What to look at when the loss is 0", "&lt;p&gt;", "a &amp; b ...", "<td>0.25</td>",
    ):  # fmt: skip
        assert words in page, words


def test_answers_are_kept_by_update_and_damage_is_passed_over(tmp_path):
    one = {"prompt": "p", "answer": "a", "reward": 1.0, "ended": True}
    assert read_answers(tmp_path) == []
    keep_answers(tmp_path, 5, [one] * 20)
    keep_answers(tmp_path, 9, [one])
    keep_answers(tmp_path, 9, [one | {"answer": "b"}])
    assert [row["update"] for row in read_answers(tmp_path)] == [5] * 8 + [9]
    assert read_answers(tmp_path)[-1]["answer"] == "b"
    keep_answers(tmp_path, 5, [one])
    assert [row["update"] for row in read_answers(tmp_path)] == [5], "what came later is to come once more"
    good = json.dumps({"update": 6, **one})
    (tmp_path / ANSWERS).write_bytes(b'\xff{"update"\n[1]\n' + good.encode() + b'\n{"update": "6"}\nnull\n{"upda')
    assert [row["update"] for row in read_answers(tmp_path)] == [6]
