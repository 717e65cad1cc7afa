"""What an exported file returns, kept in its metadata: the outputs by name, and how one of them decides."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from torch import Tensor

from acq.core.outputs import Ending, Kind, Output
from acq.network.outputs import ending_of
from acq.quantization.student import Student


@dataclass(frozen=True)
class FileAnswer:
    """What a file returns.

    Attributes:
        names: Of the file's outputs in order.
        place: The index of the one that decides.
        ending: The softmax or sigmoid that ends it, if one does.
        output: How the values before that decide.
    """

    names: tuple[str, ...]
    place: int
    ending: Ending | None
    output: Output

    @classmethod
    def of(cls, student: Student, names: Sequence[str]) -> FileAnswer:
        """That of a student whose outputs have these names in the file."""
        answer = student.answer
        ending, _ = ending_of(student.outputs[answer.counted], answer.output.size)
        return cls(tuple(names), answer.names.index(answer.counted), ending, answer.output)

    @classmethod
    def read(cls, facts: Mapping[str, str]) -> FileAnswer:
        """That of a file's metadata.

        Raises:
            KeyError, ValueError: The metadata lack something, or are not those of ``acq export``.
        """
        names, place, ending, kind = json.loads(facts["outputs"]), int(facts["counted"]), facts["ending"], facts["kind"]
        known = isinstance(names, list) and all(isinstance(name, str) for name in names) and 0 <= place < len(names)
        if not known or ending not in ("", *get_args(Ending)) or kind not in get_args(Kind):
            raise ValueError("the outputs are not described as acq export does")
        output = Output(cast(Kind, kind), int(facts["classes"]))
        return cls(tuple(names), place, cast(Ending, ending) if ending else None, output)

    def facts(self) -> dict[str, Any]:
        """The metadata that ``read`` takes."""
        return {
            "outputs": json.dumps(self.names),
            "counted": self.place,
            "ending": self.ending or "",
            "kind": self.output.kind,
            "classes": self.output.size,
        }

    def logits(self, values: Sequence[Tensor]) -> Tensor:
        """Values [N, K] that decide as the logits do, from the file's outputs."""
        return self.output.before(self.output.flat(values[self.place]), self.ending)
