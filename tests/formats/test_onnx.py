"""ONNX files: onnxruntime computes what the run's weights do in torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from coretrain.checkpoint.interchange import interchange_of, save_interchange
from coretrain.checkpoint.manifest import Progress
from coretrain.config.run import RunConfig
from coretrain.runs.convert import exported_to
from tests.support.commands import convert
from tests.support.models import MODELS, perturbed
from tests.support.refusal import refused
from torchtrain.onnx_export import export_onnx

pytestmark = pytest.mark.whole


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
@pytest.mark.parametrize("kind", ["llama grouped untied", pytest.param("gpt2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("quantization", ["none", pytest.param("f16", marks=pytest.mark.slow)])
def test_onnx_computes_the_same(tmp_path: Path, kind: str, quantization: str) -> None:
    """onnxruntime against the run's weights in torch, at other sizes than those that were traced."""
    run, model = tmp_path / "run", MODELS[kind]
    place = interchange_of(run, "update-00000007")
    save_interchange(place, RunConfig(model=model), {"parameters": perturbed(model)}, Progress(update=7), "jax")
    out = convert(run, "--to", "onnx", "--quantize", quantization)
    assert out.returncode == 0, out.stderr
    assert "onnxruntime's logits are within" in out.stdout
    target = exported_to(run, "onnx", quantization)
    with refused("torch/onnx-target-exists"):
        export_onnx(run, target, quantization)
    with refused("torch/onnx-quantize-unsupported"):
        export_onnx(run, tmp_path / "x.onnx", "q4_0")
    (tmp_path / "x.onnx.data").write_text("another model's weights")
    with refused("torch/onnx-target-exists", "x.onnx.data"):
        export_onnx(run, tmp_path / "x.onnx", quantization)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
