"""The presets: what each of them changes of the default settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from acq.quantization.formats import FULL_BITS, WIDE_BITS, NumberFormat

Preset = Literal["fast", "default", "best", "acq", "gdfq"]

AS_GENERATED = ("acq", "gdfq")  # presets whose images are as the generator made them
ENOUGH = 0.05  # nats, with wide activations: students below it lose nothing, and those that lose have 0.1 and more
# the setting of the papers (GDFQ, Xu et al. 2020): images as generated, and nothing else that helps
_PAPER: dict[str, Any] = {
    "placement": "relu-only",
    "first_last_bits": "same",
    "images": {"count": 4096, "steps": 0},
    "calibration": {"augmentation": False, "equalization": False, "rounding": False, "first_student": False},
    "student": {"augmentation": 0.0, "renew_count": 128, "round_steps": 0},
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "fast": {
        "generator": {"auto_steps": 200},
        "images": {"count": 256, "steps": 60},
        "student": {"auto_steps": 200},
    },
    "best": {
        "generator": {"auto_steps": 1500},
        "images": {"count": 2048, "steps": 200},
        "student": {"auto_steps": 4000, "round_steps": 0},
    },
    "acq": _PAPER,
    "gdfq": {
        **_PAPER,
        "generator": {"centre_std": 0.0, "losses": {"centre": 0.0, "paired": 0.0, "consistency": 0.0}},
    },
}


def preset_values(preset: str, bits: str) -> Mapping[str, Any]:
    """What a preset sets for a number format, as a nested mapping.

    With wide activations or floats ``fast`` and ``default`` may stop early. With wide weights too ``default`` is short.

    Args:
        preset: Its name.
        bits: Of weights and activations, such as ``w4a4``.

    Raises:
        RequestError: The bits are not understood, or out of range.
    """
    widths = NumberFormat.parse(bits)
    if preset not in ("fast", "default") or (widths.activation or FULL_BITS) < WIDE_BITS:
        return {**PRESETS[preset], "preset": preset}
    lengths = PRESETS["fast" if widths.weight >= WIDE_BITS else preset]
    return {**lengths, "preset": preset, "calibration": {"enough": ENOUGH}}
