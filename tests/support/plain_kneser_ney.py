"""Interpolated modified Kneser-Ney smoothing in plain Python, and a reader of the ARPA format."""

from __future__ import annotations

from collections import Counter, defaultdict

Gram = tuple[str, ...]


class PlainModel:
    """Probabilities by recursion, from counts in dictionaries (Chen and Goodman, 1998)."""

    def __init__(self, sentences: list[list[str]], order: int) -> None:
        self.order = order
        padded = [["<s>", *one, "</s>"] for one in sentences]
        self.vocabulary = {word for one in padded for word in one} | {"<unk>"}
        raw = [
            Counter(tuple(one[at : at + n]) for one in padded for at in range(len(one) - n + 1))
            for n in range(1, order + 1)
        ]
        self.counts: list[dict[Gram, int]] = []
        for n in range(order):
            if n + 1 == order:
                adjusted = dict(raw[n])
            else:
                before = defaultdict(set)
                for gram in raw[n + 1]:
                    before[gram[1:]].add(gram[0])
                adjusted = {gram: raw[n][gram] if gram[0] == "<s>" else len(before[gram]) for gram in raw[n]}
            if n == 0:
                adjusted.pop(("<s>",))
            self.counts.append(adjusted)
        self.discounts = [self._discounts(list(one.values())) for one in self.counts]

    @staticmethod
    def _discounts(counts: list[int]) -> tuple[float, float, float]:
        t = [sum(one == k for one in counts) for k in range(5)]
        if 0 in t[1:]:
            return 0.5, 1.0, 1.5
        y = t[1] / (t[1] + 2 * t[2])
        out = (1 - 2 * y * t[2] / t[1], 2 - 3 * y * t[3] / t[2], 3 - 4 * y * t[4] / t[3])
        return out if all(0 <= one <= k for k, one in enumerate(out, start=1)) else (0.5, 1.0, 1.5)

    def probability(self, word: str, context: Gram) -> float:
        """p(word | context), the context at most order - 1 words."""
        n = len(context)
        lower = 1 / (len(self.vocabulary) - 1) if n == 0 else self.probability(word, context[1:])
        following = {gram: count for gram, count in self.counts[n].items() if gram[:-1] == context}
        total = sum(following.values())
        if not total:
            return lower
        taken = self.discounts[n]
        gamma = sum(taken[min(count, 3) - 1] for count in following.values()) / total
        count = following.get((*context, word), 0)
        own = count - taken[min(count, 3) - 1] if count else 0
        return own / total + gamma * lower


def read_arpa(text: str) -> dict[Gram, tuple[float, float]]:
    """Each n-gram's log10 of probability and backoff."""
    out = {}
    for line in text.splitlines():
        parts = line.split("\t")
        if len(parts) >= 2:
            out[tuple(parts[1].split(" "))] = (float(parts[0]), float(parts[2]) if len(parts) > 2 else 0.0)
    return out


def score_by_arpa(grams: dict[Gram, tuple[float, float]], sentence: list[str]) -> float:
    """log10 of a sentence's probability, end included, by backing off."""
    order = max(map(len, grams))
    words = ["<s>", *(word if (word,) in grams else "<unk>" for word in sentence), "</s>"]
    total = 0.0
    for at in range(1, len(words)):
        context = tuple(words[max(0, at - order + 1) : at])
        while (*context, words[at]) not in grams:
            total += grams.get(context, (0.0, 0.0))[1]
            context = context[1:]
        total += grams[*context, words[at]][0]
    return total
