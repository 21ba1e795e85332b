"""The judge: both stacks against each other, in float64 wherever that proves more (`pytest parity`)."""
