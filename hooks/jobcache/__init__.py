"""Per-job Hugging Face caches for Slurm clusters."""

__version__ = "0.2.0.dev0"
