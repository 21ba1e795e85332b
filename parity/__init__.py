"""The judge: both stacks against each other, in float64 wherever that proves more (`pytest parity`)."""

from coretrain.base.interrupts import loading_program

loading_program()
