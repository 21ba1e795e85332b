"""The contract carried out in PyTorch."""
