"""llama.cpp itself, through the package xllamacpp (`pip install xllamacpp`), as an oracle of GGUF files.

Run as `python -m tests.support.llama_cpp_oracle FILE PROMPTS`, in a process of its own: it ends the process when it
refuses a file. PROMPTS is a JSON list of prompts, each of token ids or a string for its tokenizer.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.commands import ROOT, environment


def llama_cpp(file: Path, prompts: list[Any]) -> list[dict[str, Any]]:
    """What llama.cpp says of each prompt: its length in tokens, and the likeliest to come."""
    command = [sys.executable, "-m", "tests.support.llama_cpp_oracle", str(file), json.dumps(prompts)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment())
    assert out.returncode == 0, out.stderr[-500:]
    return [json.loads(line) for line in out.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Print a line of JSON for each prompt: its length in tokens, and the likeliest to come, {id: log-probability}."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.n_gpu_layers = 256, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
    # keys and values in float32 and no online softmax in float16: by default llama.cpp rounds them
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    asked = {"n_predict": 1, "temperature": 0, "n_probs": 5, "ignore_eos": True, "cache_prompt": False}
    for prompt in json.loads(sys.argv[2]):
        answer: dict[str, Any] = server.handle_completions(asked | {"prompt": prompt})
        # half a character is held back, and its step with it
        steps = answer["choices"][0]["logprobs"]["content"] if answer["choices"][0].get("logprobs") else []
        likeliest = {one["id"]: one["logprob"] for step in steps for one in step["top_logprobs"]}
        print(json.dumps({"tokens": answer["usage"]["prompt_tokens"], "likeliest": likeliest}))


if __name__ == "__main__":
    main()
