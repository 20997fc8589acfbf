"""Per-job Hugging Face caches for Slurm clusters."""

__version__ = "0.1.0"
