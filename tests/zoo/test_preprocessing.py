from __future__ import annotations

from typing import Any

import pytest

from acq.core.values import Framing, Preprocessing
from acq.errors import RequestError
from acq.zoo.preprocessing import preprocessing_of

SIZE = (3, 16, 16)
KNOWN = Preprocessing((1, 28, 28), (0.13,), (0.31,))
FRAMED = Preprocessing((1, 28, 28), (0.13,), (0.31,), Framing(30, "bicubic"))


@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ({"input_size": SIZE}, Preprocessing(SIZE, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ({"known": KNOWN}, KNOWN),
        ({"known": KNOWN, "input_size": [1, 8, 9]}, Preprocessing((1, 8, 9), (0.13,), (0.31,))),
        ({"known": KNOWN, "mean": [0], "std": [1]}, Preprocessing((1, 28, 28), (0.0,), (1.0,))),
    ],
)
def test_given_values_are_completed_by_known_ones(given: dict[str, Any], complete: Preprocessing) -> None:
    """What is neither given nor known is ImageNet's normalisation of three channels."""
    assert preprocessing_of(**{"input_size": None, "mean": None, "std": None, **given}) == complete


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({}, "give --input-size"),
        ({"input_size": (3, 32)}, "--input-size is 3,32"),
        ({"input_size": (3, 7, 32)}, "at least 8 pixels"),
        ({"input_size": (0, 32, 32)}, "--input-size is 0,32,32"),
        ({"input_size": (-3, 32, 32)}, "--input-size is -3"),
        ({"input_size": (1, 32, 32)}, "the normalisation of 1 channels is not known"),
        ({"input_size": SIZE, "mean": (0.5,) * 3}, "--std is missing"),
        ({"input_size": SIZE, "mean": (0.0,) * 3, "std": (255.0,) * 3}, "--std is 255; .* divide mean and std by 255"),
        ({"input_size": SIZE, "std": (0.5,) * 3}, "--mean is missing"),
        ({"input_size": SIZE, "mean": (0.5,), "std": (0.5,) * 3}, "--mean is 0.5; give 3 values"),
        ({"input_size": SIZE, "mean": (0.5,) * 3, "std": (0.5,) * 2}, "--std is 0.5,0.5; give 3 values"),
        ({"input_size": SIZE, "mean": (0.5,) * 3, "std": (0.5, 0, 1)}, "above 0"),
        ({"input_size": SIZE, "mean": (float("nan"),) * 3, "std": (1,) * 3}, "finite"),
        ({"input_size": SIZE, "mean": (123.7, 116.3, 103.5), "std": (58, 57, 57)}, "divide mean and std by 255"),
    ],
)
def test_incomplete_or_wrong_values_are_refused(given: dict[str, Any], fact: str) -> None:
    """The message names the option and the way out."""
    with pytest.raises(RequestError, match=fact):
        preprocessing_of(**{"input_size": None, "mean": None, "std": None, **given})


@pytest.mark.parametrize(
    ("given", "framing"),
    [
        ({"known": FRAMED}, Framing(30, "bicubic")),
        ({"known": FRAMED, "mean": [0], "std": [1]}, Framing(30, "bicubic")),
        ({"known": FRAMED, "crop": 28}, Framing(30, "bicubic")),
        ({"known": FRAMED, "resize": 28}, Framing(28, "bicubic")),
        ({"known": FRAMED, "input_size": (1, 24, 24)}, None),
        ({"known": FRAMED, "input_size": (1, 24, 24), "resize": 25, "crop": 24}, Framing(25, "bicubic")),
        ({"known": KNOWN, "resize": 32}, Framing(32, "bilinear")),
        ({"input_size": SIZE, "resize": 18}, Framing(18, "bilinear")),
        ({"input_size": (3, 16, 24), "resize": 16}, Framing(16, "bilinear")),
        ({"input_size": SIZE, "crop": 16}, None),
    ],
)
def test_framing_is_given_or_that_of_the_known_size(given: dict[str, Any], framing: Framing | None) -> None:
    """A known resize is not that of another size; the known interpolation is."""
    assert preprocessing_of(**{"input_size": None, "mean": None, "std": None, **given}).framing == framing


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"input_size": SIZE, "crop": 20}, "--crop is 20 but the network takes 16x16; leave it out, or give another"),
        ({"input_size": (3, 16, 24), "crop": 16}, "--crop is 16 but the network takes 16x24"),
        ({"known": FRAMED, "crop": 24}, "--crop is 24 but the network takes 28x28"),
        ({"input_size": SIZE, "resize": 15}, "--resize is 15 but the network takes 16x16; give at least 16"),
        ({"input_size": (3, 24, 16), "resize": 0}, "--resize is 0 but the network takes 24x16; give at least 16"),
        ({"known": FRAMED, "resize": -28}, "--resize is -28 but the network takes 28x28"),
    ],
)
def test_a_framing_that_does_not_fill_the_network_s_size_is_refused(given: dict[str, Any], fact: str) -> None:
    """The crop is the network's input, so it has its size and is no larger than the picture."""
    with pytest.raises(RequestError, match=fact):
        preprocessing_of(**{"input_size": None, "mean": None, "std": None, **given})
