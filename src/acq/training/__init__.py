"""The training loop and one file per phase."""
