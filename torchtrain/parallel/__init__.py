"""What shares a run in PyTorch: processes, ZeRO, tensor and pipeline parallelism."""
