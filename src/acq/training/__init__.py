"""The training loop and its phases, one per file."""
