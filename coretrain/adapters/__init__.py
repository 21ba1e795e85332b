"""Which tensors an adapter has, and what they add to W."""
