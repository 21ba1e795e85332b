"""Tasks, their ledger, and what carries them out: a pool of processes, Slurm, Ray."""
