"""Figures of a finished run: conditioning, sensitivity and statistics."""
