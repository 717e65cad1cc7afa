from __future__ import annotations

import pytest
from onnx import helper

from acq.errors import RequestError
from acq.zoo.onnx.graph import require_readable


@pytest.mark.parametrize("text", ["Gemm*\x0f\n\x05alph", "a\r\nb", "tab\t\x1b[31m", "\u2028", "x" * 10_000])
@pytest.mark.parametrize("part", ["op_type", "name", "domain", "input", "output"])
def test_any_text_of_a_node_leaves_the_message_in_one_short_line(part: str, text: str) -> None:
    """Names come from the file, so control characters are escaped and long ones cut."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    if part in ("input", "output"):
        getattr(node, part)[0] = text
    else:
        setattr(node, part, text)
    with pytest.raises(RequestError) as caught:
        require_readable(node)
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 400
