"""Where a run is kept and who watches it: folder, resumption, signals, several processes and TensorBoard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acq.core.extras import missing_package
from acq.core.memory import hand_back_freed_memory, keep_freed_memory
from acq.core.processes import ALONE, Processes, under_torchrun
from acq.core.values import Record
from acq.errors import Interrupted, RequestError, RunError
from acq.files.atomic import write_atomically
from acq.files.images import LabelledImages
from acq.quantization.student import Student
from acq.runs import student_file
from acq.runs.exporting import export_run
from acq.runs.folder import RunFolder, claim, summary_of
from acq.runs.names import MODEL, SUMMARY, TENSORBOARD
from acq.runs.rehearsal import Rehearsal
from acq.runs.samples import write_samples
from acq.runs.signals import stop_requested
from acq.runs.summary import accuracy_figures
from acq.runs.tensorboard import board, require_tensorboard
from acq.training.loop import Training

if TYPE_CHECKING:
    from acq.export.onnx_file import Exported

Watch = Callable[[Record], None]
_SAVE_EVERY = 60.0  # seconds between checkpoints: bounds what a crash loses and what saving costs


@dataclass(frozen=True)
class Session:
    """How a run is kept. By default it stays in memory.

    Attributes:
        out: The run folder; None keeps nothing.
        resume: Continue the run in the folder.
        overwrite: Delete the run in the folder.
        watches: Called with every record.
        tensorboard: Write records to the folder's ``tensorboard`` too.
        processes: Those that share every batch. Only the main one writes.
        export: Whether the student is written as an ONNX file at the end, which is tried at the start.
        engines: Names of engines on which the file must agree, beside ONNX Runtime.

    Raises:
        RequestError: An option needs the run folder or an extra that is missing.
    """

    out: Path | None = None
    resume: bool = False
    overwrite: bool = False
    watches: tuple[Watch, ...] = ()
    tensorboard: bool = False
    processes: Processes = ALONE
    export: bool = True
    engines: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tensorboard:
            require_tensorboard()
        if self.out is None and (self.tensorboard or self.resume or self.overwrite):
            what = "TensorBoard files are kept" if self.tensorboard else "a run is resumed or overwritten"
            raise RequestError(f"{what} in the run folder; give out")

    @property
    def exports(self) -> bool:
        """Whether the run ends with an ONNX file."""
        return self.export and self.out is not None

    def require(self, rehearsal: Rehearsal) -> None:
        """Refuse a run that a rehearsal has shown to be impossible, and warn of what is not.

        Raises:
            RequestError: No file can be written, or an engine that must run it does not.
        """
        rehearsal.require_file(self.engines)
        for note in rehearsal.notes() if self.exports else ():
            warnings.warn(note, stacklevel=2)

    @contextmanager
    def opened(self, settings: Mapping[str, Any], training: Training) -> Iterator[OpenRun]:
        """Claim the folder and restore the training from its checkpoint, if there is one.

        Args:
            settings: What decides the result; a run is resumed only with the same.
            training: At its beginning.

        Raises:
            RequestError: The folder cannot be used, or the run cannot be resumed.
            RunError: Something could not be written within the block.
        """
        if self.out is None or not self.processes.is_main:
            message = self.processes.broadcast(None, training.context.rng.device)
            yield self._restored(training, None, message)
            return
        with claim(self.out, settings, resume=self.resume, overwrite=self.overwrite) as folder:
            finished = student_file.exists(self.out) and (self.out / SUMMARY).exists()
            state = folder.load_state() if self.resume and not finished else None
            message = {"finished": finished, "state": state}
            yield self._restored(training, folder, self.processes.broadcast(message, training.context.rng.device))

    def _restored(self, training: Training, folder: RunFolder | None, message: Mapping[str, Any]) -> OpenRun:
        if message.get("state") is not None:
            training.restore(message["state"])
        return OpenRun(self, training, folder, bool(message.get("finished")))


@dataclass(frozen=True)
class OpenRun:
    """A run that may be trained.

    Attributes:
        session: How the run is kept.
        training: What is trained.
        folder: Where this process writes; None where it does not.
        is_finished: Whether the folder holds a finished run.
    """

    session: Session
    training: Training
    folder: RunFolder | None
    is_finished: bool

    def read_again(self, labelled: LabelledImages | None) -> tuple[Student, dict[str, Any]]:
        """The student and the summary of a finished run, with its accuracy on ``labelled`` images if given."""
        context = self.training.context
        if self.folder is None:
            return context.student, {}
        student = student_file.load(self.folder.path).to(context.rng.device)
        summary = summary_of(self.folder.path)
        if labelled is not None:
            summary |= accuracy_figures(context.teacher, student, context.preprocessing, labelled)
            self.folder.write_summary(summary)
        return student, summary

    def keep(
        self, record: Mapping[str, Any], summary: Mapping[str, Any], diagnostics: Mapping[str, Any],
        files: Mapping[str, bytes],
    ) -> None:  # fmt: skip
        """Write the results of a trained run, the summary last.

        Args:
            record: What decides the result, which is saved with the student.
            summary: The figures of the run.
            diagnostics: What the report shows beside them.
            files: The content of more files, by name.
        """
        if self.folder is None:
            return
        context = self.training.context
        write_samples(self.folder.path, context.teacher, context.preprocessing, context.examples, context.dataset)
        self.folder.write_diagnostics(diagnostics)
        for name, content in files.items():
            write_atomically(self.folder.path / name, content)
        student_file.save(context.student, self.folder.path, dict(record))
        self.folder.write_summary(summary)

    def export(self) -> Exported | None:
        """Write the student as an ONNX file; None where that is not wanted or the extra ``onnx`` is not installed.

        Raises:
            RunError: The file differs from the student; the run itself is complete.
        """
        if self.folder is None or not self.session.exports or missing_package() is not None:
            return None
        try:
            return export_run(self.folder.path, engines=self.session.engines)
        except RequestError as error:
            raise RunError(f"the run is complete in {self.folder.path}, but it has no {MODEL}: {error}") from error

    def train(self) -> None:
        """Do all remaining steps, saving checkpoints on the way.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the state is saved.
            RunError: Training diverged twice in one phase.
        """
        keep_freed_memory()
        with self._stop_requested() as stopping, self._board() as show:
            saved = time.perf_counter()
            for record in self.training.run():
                self._tell(record, show)
                due = time.perf_counter() - saved > _SAVE_EVERY
                stop, save = self.session.processes.any(stopping(), due)
                if self.folder is not None and (stop or save):
                    self.folder.save_state(self.training.state())
                    saved = time.perf_counter()
                if stop:
                    raise Interrupted(self._stopped_at(record))
            if self.folder is not None:
                self.folder.save_state(self.training.state())
        self.session.processes.close()

    def _tell(self, record: Record, show: Watch | None) -> None:
        if record.step == record.steps:
            hand_back_freed_memory()  # tensors of the next phase have other sizes
        if self.folder is not None and record.values:
            self.folder.log(record)
        for watch in (*self.session.watches, *([] if show is None else [show])):
            watch(record)

    @contextmanager
    def _stop_requested(self) -> Iterator[Callable[[], bool]]:
        """Whether the user wants to stop. A run in memory leaves signals alone, because it has nothing to save."""
        if self.folder is None and self.session.processes.size == 1:
            yield lambda: False
            return
        with stop_requested(once=not under_torchrun()) as stopping:
            yield stopping

    def _board(self) -> Any:
        if self.folder is None or not self.session.tensorboard:
            return nullcontext()
        return board(self.folder.path / TENSORBOARD, self.training)

    def _stopped_at(self, record: Record) -> str:
        if self.folder is None:
            return ""
        place = f"{record.phase} step {record.step} of {record.steps}"
        return f"stopped at {place}; the state is saved in {self.folder.path}, continue with --resume"
