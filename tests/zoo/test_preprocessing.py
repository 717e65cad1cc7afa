from __future__ import annotations

from typing import Any

import pytest

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.zoo.preprocessing import preprocessing_of

SIZE = (3, 16, 16)
KNOWN = Preprocessing((1, 28, 28), (0.13,), (0.31,))


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
