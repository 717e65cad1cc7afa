"""What all phases share: teacher, generator, student, dataset and random state.

This is the one place that knows about several processes: networks run on this process's rows of a batch, and results
are those of the whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from acq.core.evaluate import evaluating
from acq.core.pixels import normalise
from acq.core.processes import ALONE, Processes
from acq.core.values import Condition, GeneratorBatch, Preprocessing, TeacherOutput
from acq.core.whole_batch_norm import over_whole_batches
from acq.network.teacher import Teacher, mixed_precision
from acq.quantization.student import Student
from acq.synthesis.condition import ConditionSampler
from acq.synthesis.dataset import DistillationBatch, Examples, SyntheticDataset, augmented, generate, teach
from acq.synthesis.pictures import pictures
from acq.training.selection import Selection


class Context:
    """The shared objects of a run and the operations on whole batches.

    Args:
        teacher: The frozen network.
        generator: Conditions to images; None where images begin as pictures.
        student: The quantized network, uncalibrated at first.
        preprocessing: Of the network's images.
        conditions: Draws conditions.
        rng: Random state of the whole run.
        drawn: Share of drawings among the pictures that images start from (``acq.synthesis.pictures``).
        mixed: Whether images are made with bfloat16 products.
        processes: Those that share every batch.

    Attributes:
        candidates: States of students from which the best is selected, by name, in order of training.
        examples: A few images on their way to the dataset; None where images are as generated.
    """

    def __init__(
        self,
        teacher: Teacher,
        generator: nn.Module | None,
        student: Student,
        preprocessing: Preprocessing,
        conditions: ConditionSampler,
        rng: torch.Generator,
        drawn: float = 0.0,
        mixed: bool = False,
        processes: Processes = ALONE,
    ) -> None:
        if processes.size > 1 and generator is not None:
            over_whole_batches(generator)
        self.teacher, self._generator, self.student = teacher, generator, student
        self.preprocessing, self.conditions = preprocessing, conditions
        self.rng, self.drawn, self.mixed, self.processes = rng, drawn, mixed, processes
        self.candidates: dict[str, dict[str, Tensor]] = {}
        self.examples: Examples | None = None
        self._dataset: SyntheticDataset | None = None
        self._selection: Selection | None = None

    @property
    def generator(self) -> nn.Module:
        """The generator.

        Raises:
            RuntimeError: The run has none.
        """
        if self._generator is None:
            raise RuntimeError("this run has no generator; its images begin as pictures")
        return self._generator

    @property
    def has_generator(self) -> bool:
        """Whether images begin as proposals of a generator, not as pictures alone."""
        return self._generator is not None

    @property
    def dataset(self) -> SyntheticDataset:
        """The synthetic images.

        Raises:
            RuntimeError: No phase has made them yet.
        """
        if self._dataset is None:
            raise RuntimeError("there are no synthetic images yet; run the phase that makes them first")
        return self._dataset

    @dataset.setter
    def dataset(self, dataset: SyntheticDataset) -> None:
        self._dataset = dataset

    def drop_dataset(self) -> None:
        """Forget the synthetic images and the examples of their making."""
        self._dataset, self.examples = None, None

    @property
    def selection(self) -> Selection:
        """The quality of all candidates.

        Raises:
            RuntimeError: No candidate is selected yet.
        """
        if self._selection is None:
            raise RuntimeError("no student is selected yet; run the conversion first")
        return self._selection

    @selection.setter
    def selection(self, selection: Selection) -> None:
        self._selection = selection

    def imagine(self, condition: Condition, *, batch_statistics: bool) -> GeneratorBatch:
        """Let the generator make an image per condition, and the teacher read the images, with gradients."""
        rows = Condition(*map(self.processes.local, vars(condition).values()))
        with mixed_precision(self.rng.device, self.mixed):
            images = self.generator(rows)
        return self._read(images, condition, batch_statistics)

    def observe(self, images: Tensor, condition: Condition, *, batch_statistics: bool) -> GeneratorBatch:
        """Let the teacher read the images [N, C, H, W] of a whole batch, with gradients."""
        return self._read(self.processes.local(images), condition, batch_statistics)

    def teach(self, images: Tensor) -> DistillationBatch:
        """The teacher's outputs for a whole batch of images [N, C, H, W], without gradients."""
        processes = self.processes if self.processes.can_share(len(images)) else ALONE
        rows = teach(processes.local(images), self.teacher)
        logits, features = (processes.gather(part, len(images)) for part in (rows.logits, rows.features))
        return DistillationBatch(images, logits, features)

    def augmented(self, batch: DistillationBatch, share: float) -> DistillationBatch:
        """The batch with the first ``share`` of its images augmented."""
        return augmented(batch, share, self.rng, self.teach)

    def proposals(self, condition: Condition) -> Tensor | None:
        """The generator's images [N, C, H, W] in eval mode; None where there is no generator."""
        if self._generator is None:
            return None
        with evaluating(self._generator):
            images: Tensor = self._generator(condition)
        return images

    def pictures(self, count: int) -> Tensor:
        """What ``count`` images start from, pixels in [0, 1], [count, C, H, W]."""
        return pictures(count, self.preprocessing.input_size, self.rng, self.drawn)

    def scenes(self, count: int, rng: torch.Generator) -> Tensor:
        """``count`` pictures as images that networks take, normalised [count, C, H, W]."""
        found = pictures(count, self.preprocessing.input_size, rng, self.drawn)
        return normalise(found, self.preprocessing)

    def generated(self, count: int) -> SyntheticDataset:
        """``count`` new images with the teacher's outputs, from the generator, or pictures where there is none."""
        if self._generator is None:
            asked = self.conditions.draw((count + 1) // 2, self.rng)
            images = self.scenes(count, self.rng)
            return SyntheticDataset(self.teach(images), asked.label[:count], asked.centre[:count])
        images, condition = generate(self._generator, self.conditions, count, self.rng)
        return SyntheticDataset(self.teach(images), condition.label, condition.centre)

    def student_output(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and features of the student for a whole batch of images, with gradients."""
        rows = self.student.read_features(self.processes.local(images), self.teacher.features)
        logits, features = (self.processes.gather(part, len(images)) for part in rows)
        return logits, features

    def require_rows(self, smallest: int) -> None:
        """Check that every process has a pair of the smallest batch; RequestError where one has none."""
        self.processes.require_rows(smallest)

    def any_process(self, answer: bool) -> bool:
        """Whether any process answers yes, because processors may round differently."""
        (anywhere,) = self.processes.any(answer)
        return anywhere

    def synchronize_student(self) -> None:
        """Give all processes the main one's student."""
        self.processes.synchronize(self.student.state_dict().values())

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor, factor: float) -> None:
        """One optimizer step, with ``factor`` times the learning rate of each parameter group."""
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
        rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def state(self) -> dict[str, Any]:
        """Everything that the phases share. Later steps do not change the returned value."""
        dataset, examples, selection = self._dataset, self.examples, self._selection
        return {
            "rng": self.rng.get_state(),
            "generator": None if self._generator is None else copy.deepcopy(self._generator.state_dict()),
            "student": copy.deepcopy(self.student.state_dict()),
            "candidates": dict(self.candidates),
            "examples": None if examples is None else dict(vars(examples)),
            "dataset": None if dataset is None else {**vars(dataset), "batch": dict(vars(dataset.batch))},
            "selection": None if selection is None else selection.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state``, which stays as it is."""
        device = self.rng.device
        self.rng.set_state(state["rng"].cpu())
        if self._generator is not None:
            self._generator.load_state_dict(state["generator"])
        self.student.load_state_dict(state["student"])
        self.candidates = dict(state["candidates"])
        examples, dataset, selection = (state[name] for name in ("examples", "dataset", "selection"))
        self.examples = None if examples is None else _restored_examples(examples, device)
        self._dataset = None if dataset is None else _restored(dataset, device)
        self._selection = None if selection is None else Selection.restored(selection)

    def _read(self, rows: Tensor, condition: Condition, batch_statistics: bool) -> GeneratorBatch:
        def output(**what: bool) -> TeacherOutput:
            return self.teacher.read(rows, condition.label, mixed=self.mixed, processes=self.processes, **what)

        eval_output = output(moments=True)
        train_output = output(batch_statistics=True) if batch_statistics else None
        images = self.processes.gather(rows, len(condition.label))
        return GeneratorBatch(
            condition, images, eval_output, train_output, self.teacher.stored_moments, self.teacher.output,
            self.preprocessing,
        )  # fmt: skip


def _restored_examples(state: Mapping[str, Any], device: torch.device) -> Examples:
    moved: dict[str, Any] = {name: None if value is None else value.to(device) for name, value in state.items()}
    return Examples(**moved)


def _restored(state: Mapping[str, Any], device: torch.device) -> SyntheticDataset:
    batch = DistillationBatch(**{name: value.to(device) for name, value in state["batch"].items()})
    return SyntheticDataset(batch, state["label"].to(device), state["centre"].to(device), state["oldest"])
