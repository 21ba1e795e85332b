"""What shares a run in JAX: processes, meshes, pipelines."""
