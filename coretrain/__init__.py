"""The contract: all that can be known about a training run without a framework."""
