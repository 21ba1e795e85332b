"""What a GPT and its training compute, once more, in numpy and float64 from the papers' formulas.

Comparing the stacks is blind to what both have misread, and to the contract's own numbers. Nothing here calls a
framework or a stack, nothing is cut into chunks, micro-batches or kernels, and every gradient is written out.
"""
