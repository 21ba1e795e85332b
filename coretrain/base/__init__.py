"""What knows nothing of training: errors, files written whole, lazy tensors, safetensors."""
