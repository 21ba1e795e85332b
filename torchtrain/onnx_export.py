"""A run as an ONNX model: token ids [B, T] in, logits [B, T, V] out, both sizes free, checked by onnxruntime.

It has no twin: the exporter is PyTorch's own, and JAX has none; either stack's runs are exported here, through their
interchange checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from coretrain.base.errors import UserError
from coretrain.base.files import folder_beside
from coretrain.checkpoint.interchange import newest_interchange
from coretrain.config.run import RunConfig
from coretrain.runs.adapted import load_on
from coretrain.runs.convert import whole_model
from coretrain.runs.folder import check_config
from coretrain.runs.score_head import VALUES_LEFT, check_form_has_scores
from torchtrain.model import GPT, build_model

LARGEST_FILE = 2**31 - 2**26
"""Bytes of weights in the .onnx file itself, which protobuf limits to 2 GiB; beyond, they lie in .onnx.data."""
CAPS = {"none": 2e-5, "f16": 2e-2}
"""Largest relative distance of onnxruntime's logits from torch's. Measured in small models 6.9e-7 and 1.9e-3, in
SmolLM2 9.0e-7 and 4.2e-3. Half precision in place of float32 gives 2.0e-3, a bias lost 4.8e-2."""


class Logits(nn.Module):
    """The whole of a GPT as one function of token ids [B, T]."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.logits(self.model(tokens))


def export_onnx(
    source: Path, target: Path, quantization: str = "none", merge: bool = False, base: Path | None = None
) -> list[str]:
    """Write the newest interchange checkpoint of `source` as `target` (.onnx); lines to print.

    `quantization` is `none` or `f16` (matrices and activations; norms, softmax and logits stay float32). With `merge`,
    an adapter's base with it; `base` is where that lies now. Raises `UserError` for a file that exists, a missing
    package, or a result that onnxruntime computes otherwise.
    """
    if quantization not in CAPS:
        raise UserError(
            "torch/onnx-quantize-unsupported",
            f"--quantize {quantization} is a form of GGUF files: give --to gguf, or none or f16 for onnx",
        )
    for file in (target, target.with_name(f"{target.name}.data")):  # the second where the weights are large
        if file.exists():
            raise UserError("torch/onnx-target-exists", f"{file} exists: choose another name")
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                "torch/onnx-package-missing", f"ONNX files need the package {package}: pip install -e '.[export]'"
            )
    check_config(source)
    path = newest_interchange(source)
    loaded = load_on(path, base)
    config, tensors = whole_model(source, loaded, merge)
    check_form_has_scores(config, "onnx")
    left = [VALUES_LEFT] if loaded.config.model.score_head else []
    network = Logits(_model(config, tensors, quantization)).eval()
    with folder_beside(target) as temporary:
        _write(network, temporary / target.name)
        said = _checked(network, temporary / target.name, CAPS[quantization])
        for file in sorted(temporary.iterdir(), reverse=True):  # the weights before the file that names them
            os.replace(file, target.with_name(file.name))
    done = f"wrote {target}: {path} (after update {loaded.progress.update}, written by {loaded.stack})"
    return [done, said, *left]


def _model(config: RunConfig, tensors: Mapping[str, np.ndarray], quantization: str) -> GPT:
    compute = "float16" if quantization == "f16" else "float32"
    config = config.changed(
        precision__compute=compute, execution__checkpoint_activations="none", execution__vocab_multiple=1
    )
    model = build_model(config, "sdpa", tensors, torch.device("cpu"))
    if quantization == "f16":
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.data = parameter.data.half()
                if not parameter.isfinite().all():
                    raise UserError(
                        "torch/onnx-float16-overflow",
                        f"{name} has values that float16 can't hold: give --quantize none",
                    )
    return model.requires_grad_(False)


def _write(network: Logits, path: Path) -> None:
    tokens = torch.zeros(2, min(8, network.model.config.context), dtype=torch.int64)
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)  # no torchvision here
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (tokens,),
            dynamo=True,
            dynamic_shapes={"tokens": sizes},
            input_names=["tokens"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None, "which it is of torch's older exporter alone"
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    program.save(path, external_data=size > LARGEST_FILE)


def _checked(network: Logits, path: Path, cap: float) -> str:
    """What onnxruntime makes of other sizes than the exported ones. Raises `UserError` where that isn't torch's."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not checked: onnxruntime is not installed"
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    m, draw, worst = network.model.config, np.random.default_rng(0), 0.0
    for shape in ((1, 1), (3, min(33, m.context))):
        tokens = draw.integers(0, m.vocabulary, shape)
        with torch.no_grad():
            wanted = network(torch.from_numpy(tokens)).numpy()
        found = session.run(["logits"], {"tokens": tokens})[0]
        worst = max(worst, float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted)))
    if not worst <= cap:
        raise UserError(
            "torch/onnx-logits-differ",
            f"onnxruntime's logits are {worst:.1e} from torch's, relative: nothing was written",
        )
    return f"onnxruntime's logits are within {worst:.1e} of torch's, relative"
