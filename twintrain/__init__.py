"""One command, `twintrain`, and its verbs."""

from coretrain.base.interrupts import loading_program

loading_program()
