"""How many tokens a model of a size should see: Chinchilla's rule and fitted law, and what serving it changes.

The law L(N, D) = E + A / N^alpha + B / D^beta is Hoffmann et al.'s (2022), with the constants that Besiroglu et al.
(2024) fitted to the same runs again. Serving: Sardana et al. (2024), training and serving FLOPs together at least.
"""

from __future__ import annotations

E, A, B, ALPHA, BETA = 1.8172, 482.01, 2085.43, 0.3478, 0.3658
"""Besiroglu et al. 2024, table 1: nats a token."""
RULE = 20
"""Tokens a parameter, Hoffmann et al.'s rule of thumb."""


def loss(parameters: float, tokens: float) -> float:
    """The law's loss in nats a token, for the corpus and tokenizer it was fitted to."""
    return float(E + A / parameters**ALPHA + B / tokens**BETA)


def optimal_tokens(parameters: float, served: float = 0.0) -> float:
    """Tokens at which a model of this size reaches its loss with the fewest FLOPs, 6 N D + 2 N `served` in all.

    With nothing served that is the compute-optimal count; the more is served, the longer a small model is trained.
    """

    def excess(tokens: float) -> float:
        # where moving along the curve of equal loss neither gains nor costs: dC/dN : dC/dD = dL/dN : dL/dD
        return float((ALPHA * A / (BETA * B)) * parameters**-ALPHA * tokens ** (BETA + 1) - tokens - served / 3)

    low, high = 1.0, 1e20
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return low


def cheapest_equal(parameters: float, tokens: float) -> tuple[float, float]:
    """Parameters and tokens of the compute-optimal model that reaches the same loss."""
    wanted = loss(parameters, tokens)
    low, high = 1e3, 1e16
    for _ in range(200):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if loss(middle, optimal_tokens(middle)) > wanted else (low, middle)
    return low, optimal_tokens(low)


def advice(parameters: int, tokens: float, served: float) -> list[tuple[str, str]]:
    """What a token count means for a model of this size, to show."""
    ratio, best = tokens / parameters, optimal_tokens(parameters)
    smaller, longer = cheapest_equal(parameters, tokens)
    saved = 1 - smaller * longer / (parameters * tokens)
    if ratio < 0.8 * best / parameters:
        meaning = f"too few for this size: a model of {smaller:.2g} parameters on {longer:.2g} tokens gets as far"
    elif ratio > 1.25 * best / parameters:
        meaning = f"more than is cheapest to train (good for serving): {smaller:.2g} parameters on {longer:.2g} tokens"
    else:
        meaning = "about what is cheapest to train"
    if saved > 0.02:
        meaning += f" with {saved:.0%} fewer FLOPs"
    return [
        ("this run", f"{tokens:.3g} tokens, {ratio:.1f} a parameter: {meaning}"),
        ("Chinchilla's rule", f"{RULE * parameters:.3g} tokens, {RULE} a parameter (Hoffmann et al. 2022)"),
        ("fitted law", f"{best:.3g} tokens, {best / parameters:.1f} a parameter (refit of Besiroglu et al. 2024)"),
        (
            "served too",
            f"{optimal_tokens(parameters, served):.3g} tokens, if it then reads or writes {served:.2g} (Sardana 2024)",
        ),
    ]
