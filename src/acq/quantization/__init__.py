"""The quantized network: number formats, plan, student, calibration, rounding and integers."""
