"""Number formats: how many bits weights and activations have. Definitions are this project's own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from acq.errors import RequestError

WIDTHS = range(2, 9)  # bit-widths that quantizers support
AUTO_WEIGHT_BITS = 4  # width at which layers are compared while their own widths are still open
FULL_BITS, REDUCED_BITS = 8, 7  # with ``reduce_range``, weights of the former width use the range of the latter
WIDE_BITS = 7  # from this width on, calibration alone does nearly all that can be done
SAME = "same"
_BITS = re.compile(r"w(auto|\d+)(?:a(\d+))?")


@dataclass(frozen=True)
class NumberFormat:
    """The bit-widths of a student, each from 2 to 8.

    Attributes:
        weight: Bits of weights.
        activation: Bits of activations; None quantizes weights alone, so that no tensor has a quantizer.
        first_last: Bits of the first and last layers' weights; None means ``weight``.
        image: Bits of the image.
        nonlinearity: Bits of the input of a smooth nonlinearity. Engines evaluate it as a table of 256 entries.
        add: Bits of tensors that enter an addition; None means ``activation``. An addition needs no multiplier, so
            wide operands cost little.
        reduce_range: Use 7 bits of the range of 8-bit weights. CPUs without VNNI add two products in 16 bits, which
            overflow with the full range.
        power_of_two_scales: Use powers of two as scales of activations, and short scales for weights
            (``acq.quantization.quantizers``).

    Raises:
        RequestError: A bit-width is out of range, or ``add`` is below ``activation``.
    """

    weight: int
    activation: int | None
    first_last: int | None = None
    image: int = 8
    nonlinearity: int = 8
    add: int | None = 8
    reduce_range: bool = False
    power_of_two_scales: bool = False

    def __post_init__(self) -> None:
        for setting, width in {
            "weight": self.weight,
            "activation": self.activation,
            "first_last_bits": self.first_last,
            "image": self.image,
            "nonlinearity": self.nonlinearity,
            "add_bits": self.add,
        }.items():
            if width is not None and width not in WIDTHS:
                raise RequestError(f"bits out of range: {setting} {width}; give 2 to 8, for example w4a4")
        if self.add is not None and self.activation is not None and self.add < self.activation:
            raise RequestError(
                f"add_bits {self.add} is below the activations' {self.activation} bits; "
                f"give at least {self.activation}, or {SAME}"
            )

    @property
    def weights_alone(self) -> bool:
        """Whether no activation is quantized."""
        return self.activation is None

    @property
    def multiplied(self) -> int:
        """Bits of what layers multiply; only for a format with activations."""
        assert self.activation is not None
        return self.activation

    @property
    def name(self) -> str:
        """Such as ``w4a4``, or ``w4``."""
        return f"w{self.weight}" if self.activation is None else f"w{self.weight}a{self.activation}"

    @classmethod
    def parse(cls, text: str, first_last_bits: str | int = SAME, add_bits: str | int = 8) -> NumberFormat:
        """Read a format from its settings.

        Args:
            text: Bits of weights and activations, such as ``w4a4``, or of weights alone, such as ``w4``. With
                ``wauto`` each layer gets its own width later (``acq.quantization.allocation``); until then weights
                have 4 bits.
            first_last_bits: A bit-width, or ``same``.
            add_bits: A bit-width, or ``same``.

        Returns:
            The number format.

        Raises:
            RequestError: A setting has another form, or a width is out of range.
        """
        match = _BITS.fullmatch(text.strip().lower())
        if match is None:
            raise RequestError(
                f"bits not understood: {text!r}; write weights and activations as in w4a4, weights alone as in w4, or "
                "wautoa4 for automatic weight bits"
            )
        weight, activation = match.groups()
        return cls(
            weight=AUTO_WEIGHT_BITS if weight == "auto" else int(weight),
            activation=None if activation is None else int(activation),
            first_last=_width_or_same("first_last_bits", first_last_bits),
            add=_width_or_same("add_bits", add_bits),
        )


def _width_or_same(setting: str, value: str | int) -> int | None:
    """The bit-width of a setting; None for ``same``."""
    text = str(value)
    if text == SAME:
        return None
    if not re.fullmatch(r"\d+", text):
        raise RequestError(f"{setting} not understood: {value!r}; give a bit-width such as 8, or {SAME}")
    return int(text)
