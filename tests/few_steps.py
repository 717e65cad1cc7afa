"""``python -m acq`` on presets of a few steps, for commands of the documentation that start processes of their own."""

from __future__ import annotations

import json
import sys

from acq import cli, config, recipe

if __name__ == "__main__":
    few = json.loads(sys.argv.pop(1))
    config.PRESETS = dict.fromkeys(config.PRESETS, few)
    config._USUAL_STEPS = dict.fromkeys(config._USUAL_STEPS, 2)
    recipe._FRESH = 64
    cli.main()
