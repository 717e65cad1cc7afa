from __future__ import annotations

from acq.errors import nearest


def test_a_misspelt_name_gets_its_nearest() -> None:
    """The closest known name is offered, in words that end a sentence."""
    assert nearest("restnet20", ["resnet20", "vgg"]) == " (did you mean 'resnet20'?)"
    assert nearest("steps", iter(["step", "batch"])) == " (did you mean 'step'?)"


def test_a_name_like_none_gets_no_advice() -> None:
    """Where nothing is close, nothing is said."""
    assert nearest("q", ["resnet20", "vgg"]) == ""
    assert nearest("", ["resnet20"]) == ""
    assert nearest("resnet", []) == ""
