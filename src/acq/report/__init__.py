"""A finished run as one self-contained page, and several runs as one table."""
