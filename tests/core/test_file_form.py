from __future__ import annotations

import json
from typing import Any

import pytest

from acq.core.file_form import FileForm

FORM = FileForm("pixels", "NHWC", "uint8", 1, {"scores": "float32", "boxes": "float16"}, "ab12")


def test_a_form_survives_json() -> None:
    assert FileForm.read(json.loads(json.dumps(FORM.facts()))) == FORM


@pytest.mark.parametrize(
    "change",
    [
        {"images": ""}, {"images": 3}, {"layout": "CHWN"}, {"kind": "int8"}, {"batch": 0}, {"batch": "one"},
        {"batch": 1 << 40}, {"outputs": {}}, {"outputs": {"scores": "text"}}, {"outputs": 7}, {"tail": None},
        {"more": 1},
    ],
)  # fmt: skip
def test_other_values_are_refused(change: dict[str, Any]) -> None:
    """A run folder may come from a stranger."""
    with pytest.raises(ValueError, match="not described as acq does"):
        FileForm.read(FORM.facts() | change)
    with pytest.raises(ValueError, match="not described as acq does"):
        FileForm.read([1])
