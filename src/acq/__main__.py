"""``python -m acq`` is the command ``acq``."""

from acq.cli import main

main()
