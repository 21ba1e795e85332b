"""bitsandbytes' own NF4, as an oracle of ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coretrain.contract.quantization import SCALES


def bitsandbytes_nf4(given: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """A weight through bitsandbytes' NF4 and back, in float32; the scales by its reference, with our mean of them."""
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    found, plain = functional.quantize_4bit(torch.from_numpy(given), blocksize=64, quant_type="nf4")
    levels, rest = functional.create_dynamic_map(), (plain.absmax - torch.from_numpy(offset)).double()
    codes, steps = torch.ops.bitsandbytes.quantize_blockwise(rest, levels, SCALES)
    largest = functional.dequantize_blockwise(codes, absmax=steps, blocksize=SCALES) + torch.from_numpy(offset)
    made = torch.ops.bitsandbytes.dequantize_4bit
    blocks = (given.size // 64, 64)  # its AVX512 kernel mistakes rows shorter than a block (0.50.2)
    return made(found, largest, 64, "nf4", blocks, torch.float32).numpy().reshape(given.shape)
