"""Causal grouped-query attention, and the ordered table of kernels that can compute it."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Collection

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coretrain.config.run import RunConfig
from coretrain.contract import choices
from coretrain.contract.choices import Choice, Kernel


def choose_kernel(config: RunConfig, device: torch.device) -> Choice:
    """The kernel asked for, or the first of `KERNELS` that can run here; `UserError` with the reason where it can't."""
    return choices.choose_kernel(KERNELS, "torch", config, device)


def attention(
    kernel: str,
    q: Float[Tensor, "B T H C"],
    k: Float[Tensor, "B S K C"],
    v: Float[Tensor, "B S K C"],
    positions: Int[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B T H C"]:
    """Causal attention of q over k and v, whose K heads serve H / K of q's each; query t sees keys up to S - T + t.

    With `positions` of packed rows, it sees those of its own sample alone, and the S - T keys of a prefix.
    """
    if positions is None:
        return KERNELS[kernel].compute(q, k, v)
    packed = KERNELS[kernel].packed
    assert packed is not None, "choose_kernel takes no other for packed rows"
    return packed(q, k, v, positions)


def seen_in_sample(positions: Tensor, prefix: int = 0) -> Tensor:
    """[B, T, P + T], True where a query may look: the P keys of a prefix, and its own sample up to itself.

    A sample begins positions[t] tokens before its token t.
    """
    queries = torch.arange(positions.shape[1], device=positions.device)[:, None]
    keys = torch.arange(-prefix, positions.shape[1], device=positions.device)
    return (keys < 0) | (keys <= queries) & (keys >= queries - positions[..., None])


def masked_attention(
    q: Float[Tensor, "B T H C"], k: Float[Tensor, "B S K C"], v: Float[Tensor, "B S K C"], mask: Bool[Tensor, "B T S"]
) -> Float[Tensor, "B T H C"]:
    """Attention under an explicit mask, True where a query may look; a query that sees nothing gets zeros."""
    B, T, H, C = q.shape
    K = k.shape[2]
    q = q.reshape(B, T, K, H // K, C)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.einsum("btkgc,bskc->bkgts", q, k).to(wide) * (1 / math.sqrt(C))
    seen = mask[:, None, None]
    scores = scores.masked_fill(~seen, -torch.inf)
    peak = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(wide).min)  # keeps a fully masked row finite
    weights = torch.exp(scores - peak.detach())
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(wide).tiny)
    return torch.einsum("bkgts,bskc->btkgc", weights.to(v.dtype), v).reshape(B, T, H, C)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, S = q.shape[1], k.shape[1]
    mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return masked_attention(q, k, v, mask.expand(q.shape[0], T, S))


def _plain_packed(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    return masked_attention(q, k, v, seen_in_sample(positions, k.shape[1] - q.shape[1]))


def _sdpa_packed(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    mask = seen_in_sample(positions, k.shape[1] - q.shape[1])
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None], enable_gqa=gqa).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, S = q.shape[1], k.shape[1]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    gqa = q.shape[1] != k.shape[1]
    if T == S:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa).transpose(1, 2)
    # is_causal aligns top-left; with a longer key side the contract's alignment is bottom-right
    mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=gqa).transpose(1, 2)


def _sdpa_implementation(name: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def compute(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention import activate_flash_attention_impl

        activate_flash_attention_impl(name)
        return _sdpa(q, k, v)

    return compute


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    from flash_attn import flash_attn_func  # causal is bottom-right aligned, fewer key heads mean GQA

    return flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=1 / math.sqrt(q.shape[-1]), causal=True)


def _flash_obstacle(
    config: RunConfig, device: torch.device, generations: Collection[int] = range(8, 100)
) -> str | None:
    """Why none of the flash kernels can run, or not one that is for devices of these `generations` alone (the first
    number of the compute capability)."""
    if device.type != "cuda":
        return f"it needs CUDA, the device is {device.type}"
    if config.precision.compute not in ("bfloat16", "float16"):
        return f"it computes in bfloat16 or float16, precision.compute is {config.precision.compute}"
    if config.model.head > 256:
        return f"head width {config.model.head} is above 256"
    generation, minor = _capability(device)
    if generation not in generations:
        needs = " or ".join(f"{one}.0" for one in generations) if len(generations) < 3 else f"{min(generations)}.0"
        return f"it needs compute capability {needs}, the device has {generation}.{minor}"
    return None


def _capability(device: torch.device) -> tuple[int, int]:
    """A CUDA device's compute capability; 9.0 where there is none to ask, as when another machine's run is planned."""
    return torch.cuda.get_device_capability(device) if torch.cuda.is_available() else (9, 0)


def _flash_attn_obstacle(config: RunConfig, device: torch.device) -> str | None:
    if obstacle := _flash_obstacle(config, device):
        return obstacle
    if importlib.util.find_spec("flash_attn") is None:
        return "flash-attn is not installed (pip install 'twintrain[flash]')"
    return None


def _sdpa_impl_obstacle(name: str) -> Callable[[RunConfig, torch.device], str | None]:
    package, generations = {"FA3": ("flash_attn_interface", (9,)), "FA4": ("flash_attn.cute", (9, 10))}[name]

    def obstacle(config: RunConfig, device: torch.device) -> str | None:
        if reason := _flash_obstacle(config, device, generations):
            return reason
        from torch.nn.attention import list_flash_attention_impls

        try:
            present = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            present = False
        if name not in list_flash_attention_impls() or not present:
            return f"{name} is not installed (package {package})"
        return None

    return obstacle


KERNELS: dict[str, Kernel] = {
    "sdpa_fa4": Kernel(_sdpa_implementation("FA4"), _sdpa_impl_obstacle("FA4")),
    "sdpa_fa3": Kernel(_sdpa_implementation("FA3"), _sdpa_impl_obstacle("FA3")),
    "flash_attn": Kernel(_flash_attn, _flash_attn_obstacle),
    "sdpa": Kernel(_sdpa, lambda config, device: None, _sdpa_packed),
    "plain": Kernel(_plain, lambda config, device: None, _plain_packed),
}
"""In order of preference."""
