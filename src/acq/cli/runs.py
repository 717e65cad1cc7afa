"""Commands on finished runs: export, benchmark, report and compare."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from acq import api
from acq.cli import options as o
from acq.cli.app import command
from acq.cli.output import parity_figures, parity_lines, print_json, print_lines, print_table, shortened
from acq.core.settings import names_of
from acq.core.units import in_kilobytes


@command("acq export runs/first", "acq export runs/mine --raw-images --out deploy.onnx")
def export(
    run_folder: o.RunFolder,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.onnx", help="where to write it (default RUN/model.onnx)")
    ] = None,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="make a file that takes bytes [N, H, W, C] and normalises them itself")
    ] = False,
    engines: o.Engines = None,
    as_json: o.AsJson = False,
) -> None:
    """Write RUN's student as an ONNX file of integers, after comparing it with the student on ONNX Runtime."""
    clock = time.perf_counter()
    made = api.export_run(run_folder, out, raw_images=raw_images, engines=names_of(engines))
    if as_json:
        print_json({"file": str(made.path), "bytes": made.bytes, **parity_figures(made.parity)})
        return
    took = time.perf_counter() - clock
    print_lines(
        [f"file         {made.path}, {in_kilobytes(made.bytes)}    time {took:.0f} s", *parity_lines(made.parity)]
    )


@command()
def report(run_folder: o.RunFolder, as_json: o.AsJson = False) -> None:
    """Write RUN/report.html: the run on one page that loads nothing else."""
    page = str(api.write_report(run_folder))
    if as_json:
        print_json({"report": page})
    else:
        print_lines([page])


@command("acq compare runs/first runs/mixed --html both.html")
def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN", help="the folders of two or more finished runs")],
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="also write the table as a page")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Print the figures of several runs side by side; what differs comes first."""
    rows = api.compare(run_folders, html)
    if as_json:
        print_json({"runs": list(map(str, run_folders)), "figures": dict(rows)})
        return
    print_table(["", *map(str, run_folders)], [[name, *values] for name, values in rows])


@command()
def benchmark(
    run_folder: o.RunFolder,
    seconds: Annotated[float, typer.Option(metavar="S", help="how long each latency is measured", min=0.0)] = 5.0,
    as_json: o.AsJson = False,
) -> None:
    """Measure RUN's ONNX file of integers beside the same network in floating point, on this machine's CPU."""
    found = shortened(asdict(api.benchmark(run_folder, seconds=seconds)))
    if as_json:
        print_json(found)
        return
    latencies, fixed, without_tail = (found.pop(name) for name in ("latencies", "fixed_batch", "without_tail"))
    print_table(["", ""], [[name.replace("_", " "), str(value)] for name, value in found.items()], numbers_from=1)
    titles = ["threads", "batch", "float ms", "integer ms", "integer / float"]
    print_table(titles, [[f"{value:.3g}" for value in row.values()] for row in latencies], numbers_from=0)
    if fixed is not None:
        print_lines([f"the file takes {fixed} image{'' if fixed == 1 else 's'} at once, so no other batch is measured"])
    if without_tail:
        print_lines(["both files end at the network's outputs: what --outputs cut off is not measured"])
