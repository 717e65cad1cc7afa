"""Run folders: checkpoints, the saved student, summary, progress and signals."""
