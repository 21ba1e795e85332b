"""`adapter_config.json` of PEFT, both ways: an adapter's rank, scale and places, and what is refused.

Source: `tuners/lora/config.py`, `tuners/tuners_utils.py` (which modules are targets) of PEFT 0.21.2.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from coretrain.base.errors import UserError
from coretrain.base.timing import within
from coretrain.formats.keys import Keys

KEYS = Keys(
    obeyed=(
        "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern",
        "layers_to_transform", "init_lora_weights",
    ),
    only={
        "peft_type": ("LORA",),
        "task_type": ("CAUSAL_LM", None),
        "bias": ("none", "all", "lora_only"),
        "use_dora": (False, True, None),
        "use_rslora": (False, True, None),
        "modules_to_save": (None, []),
        "layers_pattern": (None, "", []),
        "trainable_token_indices": (None, []),
        "target_parameters": (None, []),
        "layer_replication": (None, []),
        "lora_bias": (False, None),
        "use_qalora": (False, None),
        "use_bdlora": (None, False),
        "ensure_weight_tying": (False, None),
        "megatron_config": (None, {}),
        "alora_invocation_tokens": (None, []),
        "velora_config": (None, {}),
        "monteclora_config": (None, {}),
        "arrow_config": (None, {}),
        "kasa_config": (None, {}),
    },
    idle={
        "names and versions": ("peft_version", "auto_mapping"),
        "the base is the run that adapter.base names": ("base_model_name_or_path", "revision"),
        "PEFT sets it by the kind of the base's modules": ("fan_in_fan_out",),
        "how an adapter begins, and this one has begun": (
            "loftq_config", "eva_config", "corda_config", "lora_ga_config",
        ),
        "of what isn't read": ("megatron_core", "qalora_group_size"),
        "where and when it is computed": ("runtime_config", "inference_mode"),
    },
)  # fmt: skip
"""Every key of `adapter_config.json` that PEFT's LoRA reads, and what becomes of it here. PEFT leaves out others."""
TARGETS_OF_KIND = {"rope": ["q_proj", "v_proj"], "learned": ["c_attn"]}
"""What PEFT takes for `target_modules` where it is null, of Llama and of GPT-2."""
SECONDS = 5.0
"""In which all patterns of a folder are to be decided."""
FREE_OF_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""`init_lora_weights` that leave the base as it is; others (pissa, olora, corda, loftq...) take the start out of it."""


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _pattern_of_names(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except re.error:
        return False


def _names(value: object) -> bool:
    return _pattern_of_names(value) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


def _by_pattern(one: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, dict) and all(_pattern_of_names(k) and one(v) for k, v in value.items())


def _layers(value: object) -> bool:
    several = value if isinstance(value, list) else [value]
    return all(isinstance(number, int) and not isinstance(number, bool) for number in several)


KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "r": (_count, "a whole number above 0"),
    "lora_alpha": (_number, "a number"),
    "lora_dropout": (_number, "a number"),
    "target_modules": (_names, "a list of names, or a pattern"),
    "exclude_modules": (_names, "a list of names, or a pattern"),
    "rank_pattern": (_by_pattern(_count), "whole numbers above 0 by patterns of names"),
    "alpha_pattern": (_by_pattern(_number), "numbers by patterns of names"),
    "layers_to_transform": (_layers, "a layer's number, or a list of them"),
}
"""What else a field may be, where it is there and not null."""


def peft_config(
    rank: int,
    alpha: float,
    rslora: bool,
    dora: bool,
    dropout: float,
    bias: str,
    targets: Sequence[str],
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    transposed: bool,
    base: str,
) -> dict[str, Any]:
    """The content of `adapter_config.json`; `ranks` and `alphas` are of modules that have others than the rest.

    `transposed` says that the base's matrices are GPT-2's `Conv1D`.
    """
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": _whole(alpha),
        "use_rslora": rslora,
        "lora_dropout": dropout,
        "bias": bias,
        "target_modules": list(targets),
        "rank_pattern": dict(ranks),
        "alpha_pattern": {name: _whole(value) for name, value in alphas.items()},
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "use_dora": dora,
        "modules_to_save": None,
        "inference_mode": True,
    }


def _whole(value: float) -> float:
    """16 for 16.0, as PEFT has it."""
    return int(value) if value == int(value) else value


def short_names(chosen: Sequence[str], all_modules: Collection[str]) -> list[str]:
    """Ends of names, as `q_proj`, that name exactly `chosen` among all modules; whole names where there are none."""
    for parts in (1, 2):
        ends = {".".join(name.split(".")[-parts:]) for name in chosen}
        if {name for name in all_modules if _ends(name, ends)} == set(chosen):
            return sorted(ends)
    return list(chosen)


def _ends(name: str, ends: Collection[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def check_peft_config(raw: Mapping[str, Any], path: Path) -> None:
    """Raise `UserError` naming the first field that asks for what the contract doesn't have."""
    if field := KEYS.unsupported(raw):
        raise UserError(
            "formats/peft-value-unsupported",
            f"{path}: {field} = {raw[field]!r} can't be imported: {_words(KEYS.only[field])} can",
        )
    start = raw.get("init_lora_weights", True)
    start = start.lower() if isinstance(start, str) else start
    if start == "mica":
        raise UserError(
            "formats/peft-trains-a-alone",
            f"{path}: init_lora_weights = {start!r} trains A alone, and the contract's adapters train B too: set it to "
            "true to train both",
        )
    if start not in FREE_OF_BASE:
        raise UserError(
            "formats/peft-init-changes-base",
            f"{path}: init_lora_weights = {raw['init_lora_weights']!r} changes the base's weights: convert the "
            "adapter with PEFT first (save_pretrained, path_initial_model_for_weight_conversion)",
        )
    if raw.get("r") is None or raw.get("lora_alpha") is None:
        raise UserError(
            "formats/peft-field-missing",
            f"{path} lacks the field {'r' if raw.get('r') is None else 'lora_alpha'}",
        )
    if isinstance(raw.get("target_modules"), str) and raw.get("layers_to_transform") is not None:
        raise UserError(
            "formats/peft-layers-beside-pattern",
            f"{path}: layers_to_transform stands beside target_modules = {raw['target_modules']!r}, which names layers "
            "itself: leave layers_to_transform out",
        )
    for field, (fits, kind) in KINDS.items():
        if (value := raw.get(field)) is not None and not fits(value):
            raise UserError(
                "formats/peft-field-wrong-kind",
                f"{path}: {field} = {value!r}, where PEFT has {kind}: write the adapter again",
            )


@contextlib.contextmanager
def patterns_in_time(path: Path) -> Iterator[None]:
    """Raise `UserError` where a pattern of names can't be used: some take longer than the world will last."""
    try:
        with within(SECONDS):
            yield
    except TimeoutError:
        raise UserError(
            "formats/peft-pattern-too-slow",
            f"{path} has a pattern of names that isn't decided within {SECONDS:g} seconds (a repeat within a repeat): "
            "list the names",
        ) from None
    except re.error as error:
        raise UserError(
            "formats/peft-pattern-wrong", f"{path} has a pattern of names that can't be used ({error}): list the names"
        ) from None


def _words(allowed: Sequence[object]) -> str:
    return " or ".join(repr(value) for value in allowed if value not in ("", [], {}))


def targeted(raw: Mapping[str, Any], modules: Sequence[str], path: Path) -> list[str]:
    """Which of the base's `modules` PEFT would put an adapter beside, in their order."""
    wanted, left_out = raw["target_modules"], raw.get("exclude_modules") or []
    if not wanted:
        raise UserError("formats/peft-targets-empty", f"{path}: target_modules is empty: there is no adapter in it")
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    chosen = []
    for name in modules:
        if wanted == "all-linear":
            here = not name.endswith(("embed_tokens", "wte", "wpe", "lm_head"))
        else:
            here = _named(wanted, name)
        number = re.match(r".*?\.[^.]*\.(\d+)\.", name)
        if layers and name not in wanted:  # a whole name stands for itself
            here = here and number is not None and int(number[1]) in layers
        if here and not (left_out and _named(left_out, name)):
            chosen.append(name)
    return chosen


def _named(pattern: str | Sequence[str], name: str) -> bool:
    return bool(re.fullmatch(pattern, name)) if isinstance(pattern, str) else _ends(name, pattern)


def rank_and_scale(raw: Mapping[str, Any], module: str) -> tuple[int, float]:
    """The rank of a module's adapter, and what B A x is multiplied by."""
    rank = _pattern(raw.get("rank_pattern") or {}, module, raw["r"])
    alpha = _pattern(raw.get("alpha_pattern") or {}, module, raw["lora_alpha"])
    return rank, alpha / (math.sqrt(rank) if raw.get("use_rslora") else rank)


def _pattern(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)
