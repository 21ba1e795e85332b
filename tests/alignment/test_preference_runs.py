"""What packed rows of preferences ask of the rest of a run: attention that keeps samples apart, and whole rows."""

from __future__ import annotations

import pytest

from coretrain.contract.choices import Kernel, choose_kernel
from coretrain.processes.supported import check_combination
from coretrain.runs.files import with_own_files
from tests.support.preferring import config_of, many, many_labels
from tests.support.refusal import refused

FORMS = {"pairs": ("dpo", many(9)), "labels": ("kto", many_labels(9))}


@pytest.fixture(params=list(FORMS))
def config(request, tmp_path):
    """A run's, of each form."""
    objective, rows = FORMS[request.param]
    return config_of(tmp_path, rows, data__format=request.param, train__objective=objective)


def test_kernels_that_keep_no_samples_apart_are_passed_over(config):
    kernels = {
        "fast": Kernel(lambda: None, lambda config, device: None),
        "slow": Kernel(lambda: None, lambda config, device: None, lambda: None),
    }
    choice = choose_kernel(kernels, "torch", config.changed(execution__attention="auto"), None)
    assert choice.name == "slow"
    assert "fast: it keeps no samples of a packed row apart" in choice.reason


def test_what_cuts_rows_is_refused(config):
    for axis in ("context", "pipeline"):
        with refused(
            "processes/combination-unsupported", f"parallel.{axis} = 2", f"data.format = {config.data.format}"
        ):
            check_combination(config.changed(**{f"parallel__{axis}": 2}), "jax")


def test_rows_may_be_shorter_than_the_context(config):
    assert config.changed(data__row_tokens=9).row_tokens == 9


def test_a_resumed_run_has_its_own_template(config, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("x")
    assert with_own_files(config, tmp_path).data.chat_template == str(tmp_path / "chat_template.jinja")
