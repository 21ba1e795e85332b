"""Speed and memory of adapters, generation and rollouts in both stacks, against PEFT and transformers.

Usage: python -m bench.tuning training|generation|rollouts [PRESET] [--rounds 5] [--only WORD ...] [--without NAME ...]
                                      [--json FILE] [--section.field VALUE ...]

The model has PRESET's shape (smollm2-135m) and made-up weights, which change nothing about speed. Every contender is a
process of its own, so that its peak memory is its own; they take turns, and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from coretrain.base.errors import UserError, exits_cleanly
from coretrain.config.load import load_config
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import InitialParameters
from coretrain.contract.sampling import Sampling
from coretrain.data.batch import windows
from twintrain.bench.turns import (
    Child,
    Turn,
    given_fields,
    in_turns,
    machine,
    serve,
    updates_of,
)

LR = 1e-4
RANK, ALPHA = 16, 32
PROMPT, NEW = 32, 64
"""Tokens of the prompt and tokens that follow it."""
ANSWERS, GROUP, ANSWER = 32, 8, 16
"""Rows of a rollout, of which so many have the same prompt, of PROMPT tokens or fewer; and tokens of an answer, at
temperature 1."""
PACKAGES = ("torch", "jax", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Contender:
    """One row of a table."""

    label: str
    part: str
    stack: str
    quantize: str = "none"
    compile: bool = False
    cache: str = "dynamic"

    @property
    def needs(self) -> Sequence[str]:
        """Packages that it can't do without."""
        found = ["transformers"] if self.stack == "peer" else []
        found += ["peft"] if self.stack == "peer" and self.part == "training" else []
        return found + (["bitsandbytes"] if self.stack == "peer" and self.quantize != "none" else [])

    @property
    def rival(self) -> str:
        """Label of the row that it is compared with."""
        if self.part != "training":
            return "transformers" if self.part == "generation" else "transformers, rollouts"
        return "PEFT, QLoRA (bitsandbytes)" if self.quantize != "none" else "PEFT, LoRA"


CONTENDERS = {
    c.label: c
    for c in (
        Contender("PEFT, LoRA", "training", "peer"),
        Contender("torch, LoRA", "training", "torch"),
        Contender("torch, LoRA, compiled", "training", "torch", compile=True),
        Contender("JAX, LoRA", "training", "jax"),
        Contender("PEFT, QLoRA (bitsandbytes)", "training", "peer", "nf4"),
        Contender("torch, QLoRA", "training", "torch", "nf4"),
        Contender("torch, QLoRA, compiled", "training", "torch", "nf4", compile=True),
        Contender("JAX, QLoRA", "training", "jax", "nf4"),
        Contender("transformers", "generation", "peer"),
        Contender("transformers, static cache", "generation", "peer", cache="static"),
        Contender("torch", "generation", "torch"),
        Contender("JAX", "generation", "jax"),
        Contender("transformers, rollouts", "rollouts", "peer"),
        Contender("torch, rollouts", "rollouts", "torch"),
        Contender("JAX, rollouts", "rollouts", "jax"),
    )
}


# ---------------------------------------------------------------- in a child


def config_of(task: dict[str, Any], contender: Contender) -> RunConfig:
    """The run that a stack is given."""
    fields = {
        "precision.compute": "float32",
        "train.accumulation": 1,
        "train.batch_size": ANSWERS if contender.part == "rollouts" else 4,
        "model.context": 256,
        "execution.compile": "on" if contender.compile else "off",
    }
    if contender.part == "training":
        fields |= {"adapter.kind": "lora", "adapter.rank": RANK, "adapter.alpha": ALPHA}
        fields |= {} if contender.quantize == "none" else {"adapter.quantize": contender.quantize}
    given = [(key, str(value)) for key, value in fields.items()]
    return load_config(task["preset"], [*given, *task["fields"].items()])


def ours(contender: Contender, config: RunConfig) -> Callable[[np.ndarray], object]:
    """One update, or one text, of a stack."""
    trainer = importlib.import_module(f"{contender.stack}train.trainer").Trainer(
        config, InitialParameters(config.model, config.train.seed)
    )
    if contender.part == "generation":
        greedy = Sampling(0.0, 0, 1.0, 0)
        return lambda rows: trainer.generate([rows[0, :PROMPT].tolist()], NEW, greedy, ())
    if contender.part == "rollouts":
        numbers = itertools.count()  # other answers each time
        return lambda rows: trainer.sample(prompts(rows), ANSWER, Sampling(1.0, 0, 1.0, next(numbers)), ())
    counter, update = itertools.count(), updates_of(trainer, LR)
    return lambda rows: update(windows(rows), next(counter))


def prompts(rows: np.ndarray) -> list[list[int]]:
    """Prompts of unequal lengths, each as often as there are answers in a group."""
    return [rows[number // GROUP][: PROMPT - number // GROUP].tolist() for number in range(len(rows))]


def peer(contender: Contender, config: RunConfig) -> Callable[[np.ndarray], object]:
    """The same of transformers' Llama, with PEFT's LoRA where it trains."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    m = config.model
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=m.vocabulary,
            hidden_size=m.width,
            intermediate_size=m.hidden,
            num_hidden_layers=m.layers,
            num_attention_heads=m.heads,
            num_key_value_heads=m.kv,
            head_dim=m.head,
            max_position_embeddings=m.context,
            rope_theta=m.rope_theta,
            tie_word_embeddings=m.tied,
            attn_implementation="sdpa",
        )
    )
    if contender.part == "generation":
        model.eval()
        options = {"cache_implementation": "static"} if contender.cache == "static" else {}

        def text(rows: np.ndarray) -> None:
            ids = torch.from_numpy(rows[:1, :PROMPT]).long()
            with torch.inference_mode():
                model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, **options)

        return text
    if contender.part == "rollouts":
        model.eval()
        model.generation_config.eos_token_id = None  # all answers are as long as ours

        def rollout(rows: np.ndarray) -> None:
            padded = [[0] * (PROMPT - len(ids)) + ids for ids in prompts(rows)]
            seen = torch.tensor([[int(at >= PROMPT - len(ids)) for at in range(PROMPT)] for ids in prompts(rows)])
            options: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
            with torch.inference_mode():
                model.generate(
                    torch.tensor(padded), attention_mask=seen, max_new_tokens=ANSWER, do_sample=True, **options
                )

        return rollout
    if contender.quantize != "none":
        quantized(model)
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names)).train()
    o = config.optimizer
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, betas=(o.beta1, o.beta2), weight_decay=o.weight_decay)

    def update(rows: np.ndarray) -> None:
        ids = torch.from_numpy(rows[:, :-1]).long()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, o.clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return update


def quantized(model: Any) -> None:
    """Put bitsandbytes' 4-bit layers in place of a Llama's matrices."""
    import bitsandbytes as bnb
    import torch

    for block in model.model.layers:
        for part in (block.self_attn, block.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features,
                        linear.out_features,
                        bias=False,
                        compute_dtype=torch.float32,
                        quant_type="nf4",
                        compress_statistics=True,
                    )
                    new.weight = bnb.nn.Params4bit(
                        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
                    )
                    setattr(part, name, new.to("cpu"))


def make(task: dict[str, Any]) -> Turn:
    """What a child does."""
    contender = CONTENDERS[task["name"]]
    config = config_of(task, contender)
    step = (peer if contender.stack == "peer" else ours)(contender, config)
    rng, size = np.random.default_rng(0), (config.train.batch_size, config.model.context + 1)
    return Turn(lambda: step(rng.integers(0, config.model.vocabulary, size).astype(np.int32)))


# ---------------------------------------------------------------- in the parent


def measured(
    part: str, task: dict[str, Any], only: Sequence[str], rounds: int, without: Sequence[str] = ()
) -> dict[str, Any]:
    """All contenders of a part, in turns: machine, shape and rows, as JSON has them."""

    def say(text: str) -> None:
        print(f"bench_tuning: {text}", file=sys.stderr, flush=True)

    of_part = [c for c in CONTENDERS.values() if c.part == part and c.label not in without]
    chosen = [c for c in of_part if all(word in c.label for word in only)]
    if not chosen:
        raise UserError(
            "bench/only-matches-nothing",
            f"--only {' '.join(only)} fits no row of {part}: there are {', '.join(CONTENDERS)}",
        )
    config = config_of(task, chosen[0])
    rows = {c.label: {"name": c.label, "status": "ok"} for c in chosen}
    children: dict[str, Child] = {}
    for c in chosen:
        if missing := [name for name in c.needs if importlib.util.find_spec(name) is None]:
            rows[c.label]["status"] = f"not run: pip install {' '.join(missing)}"
        else:
            children[c.label] = Child("bench.tuning", task | {"name": c.label})
    for name, child in children.items():
        say(f"{name}: warm-up")
        child.turn(2)
    found = in_turns(children, rounds, 1, say)
    for child in children.values():
        child.close()
    tokens = {"training": config.train.batch_size * config.model.context, "generation": NEW}.get(part, ANSWERS * ANSWER)
    for name, child in children.items():
        if child.error:
            rows[name]["status"] = f"failed: {child.error}"
            continue
        seconds = [times[name][0] for times in found]
        rows[name] |= {"seconds": seconds, "tokens_per_second": tokens / statistics.median(seconds)}
        rows[name] |= {"peak_memory_bytes": child.memory}
        rival = CONTENDERS[name].rival
        if rival in children and not children[rival].error:
            rows[name]["ratio"] = statistics.median(times[rival][0] / times[name][0] for times in found)
            rows[name]["memory_ratio"] = child.memory / children[rival].memory
    return {
        "machine": machine(PACKAGES),
        "model": config.model.model_dump(),
        "tokens": tokens,
        "rows": [*rows.values()],
    }


HEADINGS = ("", "tokens/s", "speed to peer's", "peak memory, MB", "memory to peer's")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One row as text."""
    if row["status"] != "ok":
        return (row["name"], row["status"], "", "", "")
    ratios = [f"{row[key]:.2f}" if key in row else "" for key in ("ratio", "memory_ratio")]
    memory = f"{row['peak_memory_bytes'] / 1e6:,.0f}"
    return (row["name"], f"{row['tokens_per_second']:,.1f}", ratios[0], memory, ratios[1])


def table(result: dict[str, Any]) -> str:
    """The rows as aligned Markdown."""
    lines = [HEADINGS, *map(cells, result["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADINGS))]
    rule = [f"{'-' * (widths[0])}", *(f"{'-' * (width - 1)}:" for width in widths[1:])]
    padded = [
        [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))] for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


@exits_cleanly
def main() -> int:
    """Measure, then print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("training", "generation", "rollouts"), nargs="?")
    parser.add_argument("preset", nargs="?", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each contender (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose names hold all these words")
    parser.add_argument("--without", nargs="+", default=[], metavar="NAME", help="rows to leave out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, every round's times included")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    given, rest = parser.parse_known_args()
    if given.child:
        serve(given.child, make)
        return 0
    if given.part is None:
        parser.error("say training, generation or rollouts")
    task = {"preset": given.preset, "fields": given_fields(rest)}
    result = measured(given.part, task, given.only, max(1, given.rounds), given.without)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    return 1 if any(row["status"].startswith("failed") for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
