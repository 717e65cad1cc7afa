from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers import CLASSES, SIZE, images, student_of

from acq.core.values import Preprocessing
from acq.errors import RequestError
from acq.export import onnx_file
from acq.export.check import EngineMatch, Match, Parity, check
from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.export.onnx_file import export_onnx
from acq.quantization.integers import convert_to_integers
from acq.quantization.student import Student

KNOWN = Preprocessing(SIZE, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def student() -> Student:
    made = student_of("resnet")
    convert_to_integers(made)
    made.preprocessing = KNOWN
    return made.eval()


def test_a_checked_file_gets_its_name(student: Student, tmp_path: Path) -> None:
    """Its folder is created, the result has the comparison, and no other file remains."""
    made = export_onnx(student, tmp_path / "new" / "model.onnx", images(40))
    assert list((tmp_path / "new").iterdir()) == [made.path]
    assert made.bytes == made.path.stat().st_size
    assert made.parity.openvino is not None
    plain, optimised = (Match(100, 100, match.difference) for match in (made.parity.plain, made.parity.optimised))
    openvino = EngineMatch(Match(100, made.parity.openvino.match.equal, made.parity.openvino.match.difference), 8, 8)
    found = {"onnxruntime": EngineMatch(optimised, 8, 8), "openvino": openvino}
    assert made.parity == Parity(40, "class", plain, found, {})
    assert max(plain.difference, optimised.difference) < 1e-5  # sums of the last layer in another order


@pytest.mark.parametrize("raw", [False, True])
def test_the_file_returns_the_students_logits(student: Student, tmp_path: Path, raw: bool) -> None:
    """This holds for any number of images; a file that takes bytes normalises them like the student's."""
    made = export_onnx(student, tmp_path / "model.onnx", images(8), raw_images=raw)
    engine = Engine(made.path)
    assert engine.raw == raw
    assert (engine.preprocessing, engine.answer.output) == (KNOWN, CLASSES)
    pixels = torch.randint(256, (7, 16, 16, 3), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (KNOWN.mean, KNOWN.std))
    normalised = (pixels.permute(0, 3, 1, 2) / 255 - mean) / std
    for count in (1, 7):
        with torch.no_grad():
            wanted = student(normalised[:count])
        torch.testing.assert_close(engine(normalised[:count]), wanted, rtol=1e-4, atol=1e-4)
        if raw:
            torch.testing.assert_close(*engine.run(pixels[:count].numpy()), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("runtime", "openvino", "words", "way_out"),
    [
        (97.5, 98, "on ONNX Runtime", "evaluate or load the run folder instead"),
        (100, 97.5, "on OpenVINO", "leave it out of --engines"),
    ],
)
def test_a_file_that_disagrees_is_not_kept(
    student: Student,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: float,
    openvino: float,
    words: str,
    way_out: str,
) -> None:
    """An earlier file of that name stays as it was."""
    path = tmp_path / "model.onnx"
    path.write_bytes(b"earlier")
    monkeypatch.setattr(onnx_file, "check", lambda *_: parity(runtime, openvino, 1000))
    with pytest.raises(RequestError, match=rf"{words} .* on only 97\.5 % of 1000 images, below 99 %, .*; {way_out}"):
        export_onnx(student, path, images(8), engines=["openvino"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"earlier"


def test_naming_the_reference_changes_nothing(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's own meaning is still checked, and it is no way out to leave ONNX Runtime out."""
    wrong = replace(parity(100, 100, 1000), plain=Match(97.5, 60, 3))
    monkeypatch.setattr(onnx_file, "check", lambda *_: wrong)
    with pytest.raises(RequestError, match=r"on only 97\.5 % .*; evaluate or load the run folder instead"):
        export_onnx(student, tmp_path / "model.onnx", images(8), engines=["onnxruntime"])


def test_a_file_that_differs_on_another_engine_is_kept(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless that engine is named; the comparison says by how much it differs."""
    monkeypatch.setattr(onnx_file, "check", lambda *_: parity(100, 66, 1000))
    made = export_onnx(student, tmp_path / "model.onnx", images(8))
    assert made.path.exists()
    assert made.parity.engines["openvino"].match.agreement == 66


def test_chance_on_few_images_refuses_no_file(
    student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of 40 images may differ where one of 100 does on average, and 25 of 1,000 may not."""
    monkeypatch.setattr(onnx_file, "check", lambda *_: parity(97.5, 97.5, 40))
    assert export_onnx(student, tmp_path / "model.onnx", images(8), engines=["openvino"]).path.exists()


def parity(runtime: float, openvino: float, count: int) -> Parity:
    """A comparison with these agreements on so many images."""
    engines = {"onnxruntime": Match(runtime, 60, 3), "openvino": Match(openvino, 60, 3)}
    found = {name: EngineMatch(match, 7, 8) for name, match in engines.items()}
    return Parity(count, "class", Match(100, 100, 0), found, {})


def test_a_student_that_is_not_in_integers_is_found(tmp_path: Path) -> None:
    """The check compares with the student itself, whose biases are not whole units."""
    loose = student_of("resnet", "w2a3")
    onnx.save(onnx_model(loose.eval()), tmp_path / "model.onnx")
    found = check(tmp_path / "model.onnx", loose, images(40))
    assert found.optimised.equal < 100
    assert found.optimised.difference > 0


def test_a_path_that_cannot_be_written_is_refused(student: Student, tmp_path: Path) -> None:
    """Such as one below a file."""
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written: .*; choose another --out"):
        export_onnx(student, tmp_path / "file" / "model.onnx", images(8))


def test_a_full_disk_leaves_nothing(student: Student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No part of a file remains."""

    def full(path: Path, content: bytes) -> int:
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RequestError, match="No space left on device"):
        export_onnx(student, tmp_path / "model.onnx", images(8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [images(0), images(3, (3, 8, 8)), images(3, (1, 16, 16))])
def test_images_that_check_nothing_are_refused(student: Student, tmp_path: Path, wrong: torch.Tensor) -> None:
    """Without images, or with others, the file would not be checked."""
    with pytest.raises(RequestError, match=r"cannot check the file; give at least one of \(3, 16, 16\)"):
        export_onnx(student, tmp_path / "model.onnx", wrong)
    assert not list(tmp_path.iterdir())


def test_only_names_of_onnx_files_are_written(student: Student, tmp_path: Path) -> None:
    """Folders and other files, such as a run's settings, stay as they are."""
    folder, settings = tmp_path / "folder.onnx", tmp_path / "config.yaml"
    folder.mkdir()
    settings.write_text("mine")
    for path in (folder, settings, Path(".")):
        with pytest.raises(RequestError, match=r"is not the name of an ONNX file; give one that ends in \.onnx"):
            export_onnx(student, path, images(8))
    assert settings.read_text() == "mine"


def test_training_mode_stays(student: Student, tmp_path: Path) -> None:
    """Every submodule is in the mode it was in."""
    student.train()
    export_onnx(student, tmp_path / "model.onnx", images(8))
    assert all(part.training for part in student.modules())
    student.eval()
