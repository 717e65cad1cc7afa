"""What a program sees of an ONNX file: how images go in, and the names and types of what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Layout = Literal["NCHW", "NHWC"]
Kind = Literal["float32", "float16", "uint8"]
Returned = Literal[
    "float32", "float16", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool"
]


@dataclass(frozen=True)
class FileForm:
    """The form of an ONNX file from which a network came, so that the student's file can replace it.

    Attributes:
        images: The name of the input.
        layout: The order of its axes.
        kind: The type of its values.
        batch: The number of images that it takes at once; None where that is free.
        outputs: The type of each output of the network, by its name.
        tail: SHA-256 of the model that the file has behind the network's outputs; empty where there is none.
        metadata: What the file says of itself, such as names of classes; programs read it from the student's file too.
    """

    images: str
    layout: Layout
    kind: Kind
    batch: int | None
    outputs: Mapping[str, Returned]
    tail: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The JSON values that ``read`` takes."""
        said = {"metadata": dict(self.metadata)} if self.metadata else {}
        known = {name: value for name, value in asdict(self).items() if name != "metadata"}
        return {**known, "outputs": dict(self.outputs), **said}

    @classmethod
    def read(cls, facts: Any) -> FileForm:
        """The form that JSON values describe.

        Raises:
            ValueError: They describe none.
        """
        try:
            form = cls(**facts)
            texts = [form.images, form.tail, *form.outputs, *form.metadata, *form.metadata.values()]
            known = all(isinstance(text, str) for text in texts) and form.images and form.outputs
            fits = form.layout in get_args(Layout) and form.kind in get_args(Kind)
            fits = fits and all(kind in get_args(Returned) for kind in form.outputs.values())
            free = form.batch is None or (isinstance(form.batch, int) and 0 < form.batch < _MOST)
        except (TypeError, AttributeError) as error:
            raise ValueError("the form of the file is not described as acq does") from error
        if not (known and fits and free):
            raise ValueError("the form of the file is not described as acq does")
        return form


_MOST = 1 << 20  # images at once
