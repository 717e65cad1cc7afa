"""Commands that only look: inspect, models and settings."""

from __future__ import annotations

from acq import zoo
from acq.cli import options as o
from acq.cli.app import command
from acq.cli.output import plan_rows, print_json, print_lines, print_plan, print_table
from acq.cli.requests import config_of, network_of, network_options
from acq.config import Config
from acq.network.structure import NetworkStructure
from acq.recipe import Request, prepare


@command(
    "acq inspect resnet20-cifar10 --bits w4a4 --first-last-bits same",
    "acq inspect mypackage.nets:build --input-size 3,32,32 --set 'layers.layer3.*=6'",
)
def inspect(
    model: o.Model,
    checkpoint: o.Checkpoint = None,
    checkpoint_key: o.CheckpointKey = None,
    model_args: o.ModelArgs = None,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    outputs: o.Outputs = None,
    output_kind: o.OutputKind = None,
    bits: o.Bits = None,
    budget: o.Budget = None,
    first_last_bits: o.FirstLastBits = None,
    add_bits: o.AddBits = None,
    exclude: o.Exclude = None,
    placement: o.Placement = None,
    preset: o.Preset = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    as_json: o.AsJson = False,
) -> None:
    """Print what becomes of every operator of MODEL, and what stays in floating point."""
    settings = config_of(
        preset, config, set_, exclude, bits=bits, budget=budget, first_last_bits=first_last_bits, add_bits=add_bits,
        placement=placement, device="cpu", outputs=outputs, output_kind=output_kind,
    )  # fmt: skip
    options = network_options(checkpoint, checkpoint_key, model_args, input_size, mean, std)
    network = network_of(model, options, settings.outputs)
    request = Request.of(network, settings, {})
    context = prepare(request).training.context
    rehearsal = request.rehearsal_of(context.student, export=True)
    structure, plan = context.teacher.structure, context.student.plan
    if not as_json:
        print_plan(plan, rehearsal)
        print_lines([f"it answers with {structure.answer}"])
        return
    print_json(
        {
            "model": model,
            "classes": structure.answer.output.parts[0].size,
            "output": structure.answer.figures(),
            "features": context.teacher.features,
            "batch_norms": len(structure.norms),
            "attention": _attention(structure),
            "plan": plan_rows(plan, rehearsal),
            "engines": list(rehearsal.engines),
            "export": "; ".join(rehearsal.notes()) or None,
        }
    )


def _attention(structure: NetworkStructure) -> str | None:
    """How attention is found; None where the network has no features with places."""
    if structure.features is None:
        return None
    return "class activation" if structure.head else "channel energy"


@command()
def models(as_json: o.AsJson = False) -> None:
    """List the built-in networks."""
    facts = zoo.facts()
    if as_json:
        print_json({"models": [vars(fact) | {"input_size": list(fact.input_size)} for fact in facts]})
        return
    rows = [
        [fact.name, "x".join(map(str, fact.input_size)), str(fact.classes), f"{fact.parameters:,}", fact.source]
        for fact in facts
    ]
    print_table(["name", "input", "classes", "parameters", "weights"], rows)


@command("acq settings --preset best > best.yaml", "acq settings --set student.steps=1000")
def settings(
    preset: o.Preset = None,
    config: o.ConfigFile = None,
    set_: o.Set = None,
    as_json: o.AsJson = False,
) -> None:
    """Print every setting with its meaning, as YAML that --config takes."""
    found: Config = config_of(preset, config, set_)
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_lines([found.to_commented_yaml().rstrip()])
