"""Mutants: edits of the source that no person has chosen, made by an engine wherever one of its operators applies.

Planted bugs (`parity/bugs`) are mistakes that people make, each with the gate that must catch it. Mutants are drawn
by chance, so that their score says what the tests don't see.

Usage: python -m parity.mutation --seed 13 --sample 200 --minutes 30; docs/mutation.md has the method and the score.
"""
