"""What other projects make of the same numbers: run as a program by an interpreter that has them, it imports nothing of
ours.

    PYTHON alignment_oracle.py PROJECT CASES.json NUMBERS.npz FOUND.npz

CASES are those of one project (`trl`, `openrlhf`, `verl`, `tunix`): {name: [function, settings]}. The arrays in NUMBERS
are float64 and, where a name begins with `mask`, of 0 and 1. Of a loss FOUND has `NAME.loss`, and its gradients by
`logps`, `values` and `scores`; of numbers, `NAME`.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import types
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

DIFFERENTIATED = ("logps", "pair_logps", "values", "scores")


def same(value: Any, **_: Any) -> Any:
    """What several processes make of a number of one."""
    return value


def trainer(**settings: Any) -> Any:
    """What the loss of one of TRL's trainers asks of its trainer, and settings."""
    accelerator = SimpleNamespace(
        device="cpu", num_processes=1, gather=same, gather_for_metrics=same, reduce=same, sync_gradients=True
    )
    always: dict[str, Any] = {
        "model": SimpleNamespace(training=True),
        "accelerator": accelerator,
        "aux_loss_enabled": False,
        "_metrics": {"train": defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**always | settings)


def answered(logps: torch.Tensor, mask: torch.Tensor) -> Any:
    """A model that gives its labels these log-probabilities [B, L]: out of two ids, of which each label is the first.

    TRL 1.12 makes log-probabilities out of logits, 1.16 takes the model's.
    """
    shown = torch.where(mask > 0, logps, -1.0)
    logits = torch.stack([shown, torch.log(-torch.expm1(shown))], -1)
    logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)
    zero = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        logits=logits,
        log_probs=torch.where(mask > 0, logps, 0.0),
        entropy=zero,
        mean_logits=zero,
        is_top1=zero > 0,
    )
    return lambda **_: outputs


def labelled(mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """Ids of answers whose tokens are masked, with one in front that nothing predicts."""
    before = torch.nn.functional.pad(mask, (1, 0)).long()
    return {"input_ids": torch.zeros_like(before), "attention_mask": torch.ones_like(before), "completion_mask": before}


def trl_dpo(d: dict[str, torch.Tensor], loss: str, beta: float) -> torch.Tensor:
    """DPO's kin; pairs are first all chosen, then all rejected answers."""
    kind = importlib.import_module("trl.trainer.dpo_trainer").DPOTrainer
    chosen, rejected = (d["pair_reference"] * d["mask_pairs"]).sum(1).chunk(2)
    fake = trainer(
        beta=beta, loss_types=[loss], loss_weights=[1.0], label_smoothing=0.0, use_weighting=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl",
    )  # fmt: skip
    inputs = {**labelled(d["mask_pairs"]), "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return kind._compute_loss(fake, answered(d["pair_logps"], d["mask_pairs"]), inputs, False)


def trl_kto(d: dict[str, torch.Tensor], beta: float, desirable: float, undesirable: float) -> torch.Tensor:
    """KTO, with a given KL."""
    kind = importlib.import_module("trl.trainer.kto_trainer").KTOTrainer
    fake = trainer(
        beta=beta, desirable_weight=desirable, undesirable_weight=undesirable, loss_type="kto", calculate_KL=True,
        precompute_ref_logps=True, _compute_kl_logps=lambda *_: d["kl"],
    )  # fmt: skip
    inputs = {
        **labelled(d["mask_pairs"]),
        "label": d["desirable"] > 0,
        "ref_logps": (d["pair_reference"] * d["mask_pairs"]).sum(1),
        "ref_KL_logps": torch.zeros_like(d["kl"]),
    }
    return kind._compute_loss(fake, answered(d["pair_logps"], d["mask_pairs"]), inputs, False)


def means(d: dict[str, torch.Tensor]) -> Any:
    """Mean log-probabilities of the chosen and of the rejected answers."""
    mask = d["mask_pairs"]
    return ((d["pair_logps"] * mask).sum(1) / mask.sum(1)).chunk(2)


def trl_simpo(d: dict[str, torch.Tensor], beta: float, gamma: float, smoothing: float) -> torch.Tensor:
    """SimPO."""
    kind = importlib.import_module("trl.experimental.cpo.cpo_trainer").CPOTrainer
    fake = trainer(beta=beta, simpo_gamma=gamma, label_smoothing=smoothing, loss_type="simpo", alpha=0.0)
    return kind.cpo_loss(fake, *means(d))[0].mean()


def trl_orpo(d: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
    """ORPO's odds ratio, which is computed in float32."""
    kind = importlib.import_module("trl.experimental.orpo.orpo_trainer").ORPOTrainer
    return -kind.odds_ratio_loss(trainer(beta=weight), *means(d))[0].mean().double()


def trl_reward(d: dict[str, torch.Tensor], center: float, margin: bool) -> torch.Tensor:
    """A reward model's loss."""
    kind = importlib.import_module("trl.trainer.reward_trainer").RewardTrainer
    fake = trainer(args=SimpleNamespace(center_rewards_coefficient=center or None))
    given = {"attention_mask": torch.ones(1), **({"margin": d["margin"]} if margin else {})}
    return kind.compute_loss(fake, lambda **_: SimpleNamespace(logits=d["scores"][:, None]), given)


def trl_grpo(
    d: dict[str, torch.Tensor],
    loss: str,
    low: float = 0.2,
    high: float = 0.2,
    level: str = "token",
    delta: float | None = None,
    beta: float = 0.0,
    kl_ratio: bool = False,
    tokens: int = 1,
    corrected: bool = False,
) -> torch.Tensor:
    """GRPO and its kin."""
    kind = importlib.import_module("trl.trainer.grpo_trainer").GRPOTrainer
    mask = d["mask"].long()
    args = SimpleNamespace(use_bias_correction_kl=kl_ratio, delta=delta, steps_per_generation=1)
    fake = trainer(
        args=args, loss_type=loss, epsilon_low=low, epsilon_high=high, importance_sampling_level=level, beta=beta,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=corrected, max_completion_length=tokens,
        vllm_importance_sampling_correction=corrected, current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (d["logps"], torch.zeros_like(d["logps"]), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": mask[:, :1],
        "prompt_mask": mask[:, :1],
        "completion_ids": mask,
        "completion_mask": mask,
        "advantages": d["advantages"],
        "old_per_token_logps": d["old"],
        "ref_per_token_logps": d["reference"],
        "importance_sampling_ratio": d["correction"],
        "num_items_in_batch": mask.sum(),
    }
    return kind._compute_loss(fake, None, inputs)


def trl_whitened(d: dict[str, torch.Tensor], shift: bool) -> torch.Tensor:
    """PPO's whitening; 1.12 alone has it."""
    module = importlib.import_module("trl.experimental.ppo.ppo_trainer")
    return module.masked_whiten(d["advantages"], d["mask"], shift) * d["mask"]


def openrlhf(name: str) -> Any:
    """A module of OpenRLHF's models, loaded alone: the package wants deepspeed and ray."""
    folder = next(Path(place, "openrlhf/models") for place in sys.path if Path(place, "openrlhf/models").is_dir())
    sys.modules.setdefault("deepspeed", types.ModuleType("deepspeed"))
    package = sys.modules.setdefault("models", types.ModuleType("models"))
    package.__path__ = [str(folder)]
    return importlib.import_module(f"models.{name}")


def openrlhf_dpo(d: dict[str, torch.Tensor], beta: float, smoothing: float, ipo: bool) -> torch.Tensor:
    """DPO; IPO by sums."""
    policy, reference = ((d[name] * d["mask_pairs"]).sum(1).chunk(2) for name in ("pair_logps", "pair_reference"))
    return openrlhf("loss").DPOLoss(beta, smoothing, ipo)(*policy, *reference)[0]


def openrlhf_reward(d: dict[str, torch.Tensor], margin: bool) -> torch.Tensor:
    """A reward model's loss."""
    chosen, rejected = d["scores"].chunk(2)
    return openrlhf("loss").PairWiseLoss()(chosen, rejected, d["margin"] if margin else None)


def openrlhf_policy(d: dict[str, torch.Tensor], **settings: Any) -> torch.Tensor:
    """The clipped policy loss."""
    loss = openrlhf("loss").PolicyLoss(**settings)
    return loss(d["logps"], d["old"], d["advantages"], d["mask"], d["sampled"])[0]


def openrlhf_value(d: dict[str, torch.Tensor], clip: float | None) -> torch.Tensor:
    """The clipped value loss."""
    return openrlhf("loss").ValueLoss(clip)(d["values"], d["old_values"], d["returns"], d["mask"])


def openrlhf_kl(d: dict[str, torch.Tensor], estimator: str) -> torch.Tensor:
    """KL estimators, in float32."""
    return openrlhf("utils").compute_approx_kl(d["old"], d["reference"], kl_estimator=estimator).double()


def openrlhf_rewards(d: dict[str, torch.Tensor], coefficient: float, clip: float) -> torch.Tensor:
    """Rewards of tokens."""
    kl = d["old"] - d["reference"]
    return openrlhf("utils").compute_reward(d["answer_scores"], coefficient, kl, d["mask"], (-clip, clip))


def verl(name: str) -> Any:
    """One of verl's modules."""
    return importlib.import_module(f"verl.{name}")


def verl_policy(
    d: dict[str, torch.Tensor],
    loss: str,
    aggregate: str,
    low: float,
    high: float,
    dual: float = 1e9,
    corrected: bool = False,
    scale: int | None = None,
) -> torch.Tensor:
    """The clipped policy loss."""
    config = verl("workers.config").ActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, clip_ratio_low=low, clip_ratio_high=high,
        clip_ratio_c=dual,
    )  # fmt: skip
    if scale:
        config.global_batch_info["loss_scale_factor"] = scale
    weights = d["correction"] if corrected else None
    find = verl("trainer.ppo.core_algos").get_policy_loss_fn(loss)
    return find(d["old"], d["logps"], d["advantages"], d["mask"], aggregate, config, weights)[0]


def verl_value(d: dict[str, torch.Tensor], clip: float, aggregate: str) -> torch.Tensor:
    """The clipped value loss."""
    find = verl("trainer.ppo.core_algos").compute_value_loss
    return find(d["values"], d["returns"], d["old_values"], d["mask"], clip, aggregate)[0]


def verl_kl(d: dict[str, torch.Tensor], estimator: str) -> torch.Tensor:
    """KL estimators."""
    return verl("trainer.ppo.core_algos").kl_penalty_forward(d["old"], d["reference"], estimator)


def verl_gae(d: dict[str, torch.Tensor], gamma: float, lam: float, returns: bool) -> torch.Tensor:
    """Whitened advantages, or returns."""
    find = verl("trainer.ppo.core_algos").compute_gae_advantage_return
    # it takes what lies outside of the mask for numbers
    return find(d["rewards"], d["old_values"], d["mask"], gamma, lam)[int(returns)] * d["mask"]


def verl_group(d: dict[str, torch.Tensor], kind: str, eps: float) -> torch.Tensor:
    """Advantages over a group."""
    core, index = verl("trainer.ppo.core_algos"), d["groups"].long().numpy()
    rewards = torch.zeros_like(d["mask"])
    rewards[:, 0] = d["answer_scores"]
    if kind == "rloo":
        return core.compute_rloo_outcome_advantage(rewards, d["mask"], index)[0]
    return core.compute_grpo_outcome_advantage(rewards, d["mask"], index, eps, kind == "group_std")[0]


def verl_corrections(d: dict[str, torch.Tensor], level: str, threshold: float | str) -> torch.Tensor:
    """Weights against the sampler; 0 outside the mask."""
    find = verl("trainer.ppo.rollout_corr_helper").compute_rollout_correction_weights
    return find(d["old"] - d["sampled"], d["mask"], level, threshold)[0]


def verl_whitened(d: dict[str, torch.Tensor], shift: bool) -> torch.Tensor:
    """Whitening."""
    return verl("utils.torch_functional").masked_whiten(d["advantages"], d["mask"], shift) * d["mask"]


def verl_controller(d: dict[str, torch.Tensor], target: float, horizon: int, answers: int) -> torch.Tensor:
    """The coefficient after each of several divergences."""
    controller = verl("trainer.ppo.core_algos").AdaptiveKLController(0.2, target, horizon)
    found = []
    for kl in d["divergences"].tolist():
        controller.update(kl, answers)
        found.append(controller.value)
    return torch.tensor(found, dtype=torch.float64)


def tunix(name: str, **replaced: Any) -> Any:
    """One of tunix's modules, with functions that ask a model replaced."""
    module = importlib.import_module(f"tunix.{name}")
    for function, put in replaced.items():
        setattr(module, function, put)
    return module


def tunix_loss(d: dict[str, torch.Tensor], leaf: str, find: Any) -> torch.Tensor:
    """`find` of JAX arrays, which gives a loss, as a function of one of them that torch can differentiate."""
    jax = importlib.import_module("jax")
    arrays = {name: jax.numpy.array(one.detach().numpy()) for name, one in d.items()}
    loss, gradient = jax.value_and_grad(lambda one: find(arrays | {leaf: one}))(arrays[leaf])
    slope = torch.from_numpy(np.array(gradient, np.float64))
    return ((d[leaf] - d[leaf].detach()) * slope).sum() + float(loss)


def tunix_policy(d: dict[str, torch.Tensor], loss: str, **settings: Any) -> torch.Tensor:
    """The clipped policy loss: `ppo` in float64, `grpo` in float32."""
    nnx, given = importlib.import_module("flax.nnx"), {"entropy_coef": None, "kl_coef": 0.0, "epsilon_c": None}
    given |= {"beta": 0.0, "kl_clamp_value": None, "kl_loss_mode": "low_var_kl", "temperature": 1.0}
    config = SimpleNamespace(**given | {"loss_algo": "grpo", "loss_agg_mode": "token-mean"} | settings)

    def find(a: dict[str, Any]) -> Any:
        zeros = a["logps"][..., None] * np.zeros(2)
        tunix("rl.common", compute_per_token_logps=lambda *_, **__: (a["logps"], zeros))
        example = SimpleNamespace(
            prompt_ids=None, completion_ids=a["mask"], completion_mask=a["mask"], advantages=a["advantages"],
            old_per_token_logps=a["old"], ref_per_token_logps=a["reference"] if config.beta else None,
        )  # fmt: skip
        return getattr(tunix("rl.algo_core"), f"{loss}_loss_fn")(nnx.Module(), example, config, 0, 1)[0]

    return tunix_loss(d, "logps", find)


def tunix_value(d: dict[str, torch.Tensor], clip: float) -> torch.Tensor:
    """The clipped value loss."""

    pad = importlib.import_module("jax.numpy").pad

    def find(a: dict[str, Any]) -> Any:
        tunix("rl.common", compute_score=lambda *_, **__: pad(a["values"], ((0, 0), (0, 1))))  # it cuts off the last
        example = SimpleNamespace(
            prompt_ids=None, completion_ids=a["mask"], completion_mask=a["mask"], old_values=a["old_values"],
            returns=a["returns"],
        )  # fmt: skip
        return tunix("rl.algo_core").ppo_value_loss_fn(None, example, clip, 0, 1)[0]

    return tunix_loss(d, "values", find)


def tunix_dpo(d: dict[str, torch.Tensor], beta: float, smoothing: float) -> torch.Tensor:
    """DPO."""

    def find(a: dict[str, Any]) -> Any:
        names = ("pair_logps", "pair_reference")
        policy, reference = ((a[name] * a["mask_pairs"]).sum(1).reshape(2, -1) for name in names)
        module = tunix("sft.dpo.dpo_trainer", compute_logps=lambda *_, **__: (policy[0], policy[1]))
        asked = ("input_ids", "positions", "attention_mask", "logits_to_keep", "completion_mask", "images")
        referred = {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
        example = SimpleNamespace(**dict.fromkeys(asked), **referred)
        return module.dpo_loss_fn(None, example, "dpo", beta, label_smoothing=smoothing)[0]

    return tunix_loss(d, "pair_logps", find)


def tunix_gae(d: dict[str, torch.Tensor], gamma: float, lam: float, returns: bool) -> torch.Tensor:
    """Whitened advantages, or returns."""
    find, numpy = tunix("rl.algo_core").compute_gae_advantages, importlib.import_module("jax.numpy")
    rewards, values, mask = (numpy.array(d[name].numpy()) for name in ("rewards", "old_values", "mask"))
    found = find(rewards, values, mask, gamma, lam)[int(returns)]
    return torch.from_numpy(np.array(found, np.float64)) * d["mask"]


def tunix_group(d: dict[str, torch.Tensor], kind: str, eps: float) -> torch.Tensor:
    """Advantages over a group."""
    core = tunix("rl.algo_core")
    rewards, size = d["answer_scores"].numpy(), int((d["groups"] == d["groups"][0]).sum())
    name = {"group": "compute_drgrpo_advantages", "group_std": "compute_advantages", "rloo": "compute_rloo_advantages"}
    assert kind != "group_std" or eps == 1e-6  # theirs
    return torch.from_numpy(np.array(getattr(core, name[kind])(rewards, size)))[:, None] * d["mask"]


def main(cases: str, numbers: str, target: str) -> None:
    """What the module says."""
    os.environ["JAX_ENABLE_X64"] = "1"
    found: dict[str, np.ndarray] = {}
    with open(cases, encoding="utf-8") as file:
        asked = json.load(file)
    for name, (function, settings) in asked.items():
        with np.load(numbers) as given:
            data = {key: torch.from_numpy(given[key]) for key in given.files}
        if settings.pop("even", False):  # one advantage for all tokens of an answer
            data["advantages"] = data["even"]
        leaves = {key: data[key].requires_grad_() for key in DIFFERENTIATED}
        value = globals()[function](data, **settings)
        if not value.requires_grad:
            found[name] = value.numpy()
            continue
        found[f"{name}.loss"] = value.detach().numpy()
        gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        found |= {f"{name}.{key}": one.numpy() for key, one in zip(leaves, gradients, strict=True) if one is not None}
    np.savez(target, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
