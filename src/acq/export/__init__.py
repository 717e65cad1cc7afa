"""The student as a file that other engines run: written, checked, and only then given its name."""
