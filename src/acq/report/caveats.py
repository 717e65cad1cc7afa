"""What a reader must know before trusting the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from acq.quantization.node_plan import Plan
from acq.runs.summary import STOPPED_IN, accuracies

_SEES = {
    "class": "sees the requested class in", "multilabel": "gives the requested answer to",
    "map": "sees the requested class in the cells of", "sequence": "sees the requested class in the steps of",
}  # fmt: skip
_ENOUGH = 0.9  # share of images of the requested class, below which agreement says little
_FOLLOWED = 0.8  # correlation of requested and realised centres, below which attention is often elsewhere


def caveats(summary: Mapping[str, Any], settings: Mapping[str, Any], plan: Plan) -> list[str]:
    """The caveats that apply to a run.

    Args:
        summary: The figures of the run.
        settings: The whole tree of its settings.
        plan: The plan of the student.
    """
    return [
        *_on_use(summary), *_on_quality(summary), *_on_obedience(summary, settings), *_on_training(summary),
        *_on_plan(plan), _ON_SENSITIVITY,
    ]  # fmt: skip


def asks_for_centres(settings: Mapping[str, Any]) -> bool:
    """Whether a loss of refinement, or of a generator that is trained, asks for the centre."""
    return bool(_with_centres(settings))


def _with_centres(settings: Mapping[str, Any]) -> list[str]:
    """The sections whose images are asked for a centre, the last ones of a run first."""
    sections = ("images", "generator")
    return [name for name in sections if settings[name]["steps"] and settings[name]["losses"]["centre"]]


_ON_SENSITIVITY = (
    "The sensitivities show one quantized layer at a time, with weights rounded to the nearest integer. "
    "Rounding layer by layer and training reduce the error of the student."
)


def _on_use(summary: Mapping[str, Any]) -> Iterator[str]:
    """That the student is of no use; a finished run of an earlier version does not say it."""
    if summary.get("is_at_chance"):
        yield (
            f"The student is of no use. It agrees with the teacher on {summary['agreement']:.1f} % of the synthetic "
            "images, no more often than one that always answers the same. Give more --bits."
        )


def _on_quality(summary: Mapping[str, Any]) -> Iterator[str]:
    if accuracies(summary) is None:
        yield (
            "No real images were given, so the accuracy is unknown. The expected loss, where there is one, is an "
            "estimate. Agreement is measured on synthetic images. It is usually higher there than on real images."
        )
    else:
        yield "Intervals of accuracy cover the choice of test images. They do not cover the variation between seeds."


def _on_obedience(summary: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    """Whether finished images do not show what they were asked for, and the setting that helps."""
    found, kind, stop = summary["attention"], summary["output"]["kind"], summary.get("stopped")
    few = stop is not None and stop["phase"] == "few"  # these images are finished briefly, whatever the settings are

    def way_out(section: str) -> str:
        return "" if few else f" More {section}.steps may help."

    share, correlation = found["label_agreement"], found["correlation"]
    if share is not None and share < _ENOUGH:
        yield (
            f"The teacher {_SEES.get(kind, 'gives the requested answers to')} only {100 * share:.0f} % of the "
            "finished images. Agreement then says little about real images."
            + way_out("images" if settings["images"]["steps"] else "generator")
        )
    asking = _with_centres(settings) if settings["generator"]["centre_std"] else []
    if correlation is not None and correlation < _FOLLOWED and asking and not few:
        yield (
            f"Attention follows the requested centres with a correlation of {correlation:.2f} in the finished images. "
            f"So what the teacher looks at is often elsewhere than requested.{way_out(asking[0])}"
        )


def _on_training(summary: Mapping[str, Any]) -> Iterator[str]:
    """Where the run stopped, and why the last student was not kept, if it was not."""
    stop = summary.get("stopped")  # a finished run of an earlier version has none
    if stop is not None:
        way_on = "" if summary["preset"] == "best" else " --preset best goes on."
        yield f"The run stopped {STOPPED_IN[stop['phase']]}, because {stop['reason']}.{way_on}"
    kept, found = summary["student_loss"]["selected"], summary.get("student_divergence")  # nor these figures
    last = "calibrated" if found is None or found["trained"] is None else "trained"
    if found is not None and kept != last:
        yield (
            f"The {kept} student was kept, because no later one is better on synthetic images. Its divergence from the "
            f"teacher is {found[kept]}, and that of the {last} student is {found[last]}."
        )


def _on_plan(plan: Plan) -> Iterator[str]:
    count = len(plan.missed_nodes)
    if plan.format.weights_alone:
        yield "Weights alone are quantized. Engines then compute in floating point: a smaller file, and no more speed."
        return
    if plan.placement == "relu-only":
        yield "The relu-only placement is for comparison with papers. Parts of the student stay in floating point."
    elif count:
        subject = "1 operator stays" if count == 1 else f"{count} operators stay"
        yield f"{subject} in floating point. The notes of the plan say why."
    activation, add = plan.format.multiplied, plan.format.add or 0
    if plan.placement == "deployable" and add > activation:
        yield f"Tensors that enter an addition have {add} bits. Inputs of layers have {activation} bits."
