"""Accuracy of `acq quantize` over bits, seeds and placements, as JSON and as a Markdown table; run by hand.

    python benchmarks/accuracy.py resnet20-cifar10 --data test.npz --bits w8a8 w4a4 --seeds 0 1 2 --ends same

The last step is what is measured; the labelled images steer nothing. A run joins those that the results hold already,
in place of one of the same settings and seed; results of several processes grow side by side.
"""

from __future__ import annotations

from runs import arguments, configs, keep, quantized, table

from acq import zoo
from acq.runs.malloc import keep_freed_memory

KEYS = ("model", "bits", "placement", "ends", "addends", "preset", "device", "precision")
FIGURES = ("agreement", "correlation", "spread", "label_agreement")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--name", default="accuracy", help="name of the result files")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    network = zoo.resolve(args.model, checkpoint=args.checkpoint)
    for run in quantized(network, configs(args), args.data):
        found = keep(args.name, run, (*KEYS, "settings", "seed"))
        print(table(args.name, found, KEYS, FIGURES), flush=True)


if __name__ == "__main__":
    main()
