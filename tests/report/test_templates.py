from __future__ import annotations

import pytest
from jinja2 import UndefinedError

from acq.report.templates import environment


def test_values_are_escaped() -> None:
    """In text and in attributes."""
    made = environment().from_string('<p title="{{ value }}">{{ value }}</p>').render(value="<\"'&>")
    assert made == '<p title="&lt;&#34;&#39;&amp;&gt;">&lt;&#34;&#39;&amp;&gt;</p>'


def test_an_undefined_name_is_an_error() -> None:
    """A figure that a run lacks must not look like an empty one."""
    with pytest.raises(UndefinedError):
        environment().from_string("{{ figures.missing }}").render(figures={})
