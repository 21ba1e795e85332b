"""README.md of an export: what the model is, what it was trained on and for how long, and how it was measured."""

from __future__ import annotations

import json
from pathlib import Path

from coretrain.adapters.targets import trainable_parameters
from coretrain.checkpoint.interchange import Interchange
from coretrain.config.data import DataConfig
from coretrain.config.run import RunConfig
from coretrain.contract.parameters import parameter_table


def model_card(loaded: Interchange, quantization: str = "none", merged: bool = False) -> str:
    """The card of a checkpoint as Markdown, with the header that model hubs read.

    An adapter's header names no base: a hub takes nothing but a model of its own, and PEFT looks into the adapter's
    config. Nothing is known of a licence, and that is said.
    """
    config = loaded.config
    adapter = config.adapter.kind != "none"
    header = ["---", "license: unknown", "pipeline_tag: text-generation"]
    if adapter and not merged:
        header += [
            "library_name: peft",
            "tags:",
            *(["- dora"] if config.adapter.kind == "dora" else []),
            "- lora",
            "- peft",
        ]
    else:
        header += ["library_name: transformers"]
    facts = _facts(loaded, quantization)
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    title = f"# {config.name}"
    lines = [*header, "---", "", title, "", _kind(config, merged), "", *table, ""]
    lines += ["Its licence is that of its base and its data, of which nothing is recorded here.", ""]
    # what tells of a machine (folders, devices) is left out
    kept = {"model", "optimizer", "schedule", "train", "precision"}
    raw = config.model_dump(mode="json", include=kept | ({"adapter"} if adapter else set()))
    raw.get("adapter", {}).pop("base", None)
    lines += ["## The run's config", "", "```json", json.dumps(raw, indent=1, sort_keys=True), "```", ""]
    return "\n".join(lines)


def _kind(config: RunConfig, merged: bool) -> str:
    c = config.adapter
    if c.kind == "none":
        return "A language model trained or converted with twintrain."
    what = f"of rank {c.rank}, alpha {c.alpha:g}" + (", scaled by alpha / sqrt(rank)" if c.rslora else "")
    base, kind = Path(c.base or "").name, {"lora": "low-rank", "dora": "DoRA"}.get(c.kind, c.kind)
    if merged:
        return f"A language model: {base} with a {kind} adapter {what} merged into it, made with twintrain."
    return f"A {kind} adapter {what} for {base}, trained with twintrain."


def _facts(loaded: Interchange, quantization: str) -> list[tuple[str, str]]:
    config, progress = loaded.config, loaded.progress
    m = config.model
    size = sum(row.size for row in parameter_table(m))
    form = f"{m.norm}, {m.position} positions, {m.mlp}, {m.heads} heads over {m.kv}, {'tied' if m.tied else 'untied'}"
    facts = [("model", f"{size:,} parameters: {m.layers} layers x {m.width}, {form} head")]
    if config.adapter.kind != "none":
        trained = sum(row.size for row in trainable_parameters(config))
        facts += [("trained", f"{trained:,} parameters, on {', '.join(config.adapter.targets)}")]
        facts += [("base's weights", f"fingerprint {config.adapter.fingerprint or 'not recorded'}")]
    if progress.update:
        rows = f"{config.train.batch_size} x {config.row_tokens} tokens"
        facts += [
            ("data", _data(config.data)),
            ("updates", f"{progress.update:,} of {rows}, {progress.tokens:,} tokens"),
        ]
        facts += [("learning rate", f"{config.optimizer.lr:g}, {config.schedule.kind}, {config.optimizer.name}")]
        facts += [("trained by", {"torch": "PyTorch", "jax": "JAX"}.get(loaded.stack, loaded.stack))]
    else:
        facts += [("updates", "none here: imported, merged or at its start")]
    best = progress.best
    said = f"{best['val_loss']:.4f} nats a token after update {best['update']}, its lowest" if best else "not measured"
    dtype = next(iter(loaded.groups["parameters"].index.values()))["dtype"]
    return [*facts, ("validation loss", said), ("held as", dtype if quantization == "none" else quantization)]


def _data(data: DataConfig) -> str:
    sources = [f"{Path(part.source).name} (weight {part.weight:g})" for part in data.mixture]
    sources = sources or [data.source if data.source.startswith("hf:") else Path(data.source).name]
    return f"{', '.join(sources)}; tokenizer {Path(data.tokenizer).name}"
