"""The usual normalisations of images, as mean and standard deviation of pixels in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of red, green and blue
_ALIKE = {"0 to 1": (0.0, 1.0), "-1 to 1": (0.5, 0.5), "0 to 255": (0.0, 1 / 255)}  # in all channels


@dataclass(frozen=True)
class Normalisation:
    """A normalisation with its name; ``mean`` and ``std`` have one value per channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (",".join(f"{value:.5g}" for value in values) for values in (self.mean, self.std))
        return f"--mean {mean} --std {std} ({self.name})"


def usual_normalisations(channels: int) -> list[Normalisation]:
    """The usual normalisations of images with so many channels."""
    found = [Normalisation(name, (mean,) * channels, (std,) * channels) for name, (mean, std) in _ALIKE.items()]
    if channels == len(IMAGENET_MEAN):
        found.append(Normalisation("ImageNet", IMAGENET_MEAN, IMAGENET_STD))
    return found
