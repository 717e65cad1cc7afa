"""What an exported file returns, kept in its metadata: the outputs by name, and how those that count decide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from torch import Tensor

from acq.core.outputs import Output
from acq.core.scores import Ending, Kind, Scores
from acq.network.outputs import end_of
from acq.quantization.student import Student


@dataclass(frozen=True)
class FileAnswer:
    """What a file returns.

    Attributes:
        names: Of the file's outputs in order.
        places: The indices of those that count.
        endings: For each of these, the softmax or sigmoid that ends it, if one does.
        output: How the values before that decide.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    endings: tuple[Ending | None, ...]
    output: Output

    @classmethod
    def of(cls, student: Student, names: Sequence[str]) -> FileAnswer:
        """That of a student whose outputs have these names in the file."""
        answer = student.answer
        endings = tuple(
            None if part.kind == "values" else end_of(student.outputs[name]).ending
            for name, part in zip(answer.counted, answer.output.parts, strict=True)
        )
        return cls(tuple(names), tuple(map(answer.names.index, answer.counted)), endings, answer.output)

    @classmethod
    def read(cls, facts: Mapping[str, str]) -> FileAnswer:
        """That of a file's metadata.

        Raises:
            KeyError, ValueError: The metadata lack something, or are not those of ``acq export``.
        """
        names, counted = json.loads(facts["outputs"]), json.loads(facts["counted"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("the outputs are not described as acq export does")
        if not isinstance(counted, list) or not counted or not all(_is_counted(entry, len(names)) for entry in counted):
            raise ValueError("the outputs that count are not described as acq export does")
        parts = tuple(Scores(entry["kind"], tuple(entry["shape"])) for entry in counted)
        places, endings = (tuple(entry[key] for entry in counted) for key in ("output", "ending"))
        return cls(tuple(names), places, endings, Output(parts))

    def facts(self) -> dict[str, Any]:
        """The metadata that ``read`` takes."""
        rows = zip(self.places, self.endings, self.output.parts, strict=True)
        counted = [
            {"output": place, "ending": ending, "kind": part.kind, "shape": part.shape} for place, ending, part in rows
        ]
        return {"outputs": json.dumps(self.names), "counted": json.dumps(counted)}

    def logits(self, values: Sequence[Tensor]) -> Tensor:
        """Values [N, L] that decide as the logits do, from the file's outputs."""
        return self.output.before(self.output.flat([values[place] for place in self.places]), self.endings)


def _is_counted(entry: Any, outputs: int) -> bool:
    """Whether an entry of the metadata says which output counts, and how."""
    if not isinstance(entry, dict) or entry.keys() != {"output", "ending", "kind", "shape"}:
        return False
    place, shape = entry["output"], entry["shape"]
    sides = isinstance(shape, list) and bool(shape) and all(type(side) is int and side > 0 for side in shape)
    known = entry["ending"] in (None, *get_args(Ending)) and entry["kind"] in get_args(Kind)
    return type(place) is int and 0 <= place < outputs and sides and known
