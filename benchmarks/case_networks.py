"""The networks of docs/results.md with their test data."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from acq import zoo
from acq.core.values import Preprocessing
from acq.zoo import registry

# the first commit whose results the present code still gives; change it whenever those of all networks change
ENGINE = "cde7127"


@dataclass(frozen=True)
class Network:
    """A network with its test data.

    Attributes:
        name: Of the network in names of cases.
        title: On the page.
        about: Sentences of the page on the network, its data and where the files come from.
        model: As ``acq quantize`` takes it; a name that ends in .onnx is a file of the data folder.
        data: Labelled images, a file or folder of the data folder.
        checkpoint: A file of the data folder, if the network has no weights of its own.
        module: A Python file of the data folder that has the network, if this repository has not.
        settings: Of all cases, as ``key=value``.
        images: Options that say the size and normalisation of its images, if the network has none of its own.
        engine: The first commit whose results on this network the present code still gives.
    """

    name: str
    title: str
    about: tuple[str, ...]
    model: str
    data: str
    checkpoint: str | None = None
    module: str | None = None
    settings: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    engine: str = ENGINE

    @property
    def needs_file(self) -> bool:
        """Whether the network itself is a file of the data folder."""
        return self.model.endswith(".onnx")

    def resolved(self, data: Path) -> zoo.Network:
        """The network itself.

        Args:
            data: The folder of test data. Where it has the module of the network, modules are imported from there.
        """
        if self.module is not None and sys.path[0] != (folder := str(data.resolve())):
            sys.path.insert(0, folder)
        words = dict(zip(self.images[::2], self.images[1::2], strict=True))
        given = {
            name: tuple(map(number, words[option].split(",")))
            for option, name, number in (
                ("--input-size", "input_size", int),
                ("--mean", "mean", float),
                ("--std", "std", float),
            )
            if option in words
        }
        model = str(data / self.model) if self.needs_file else self.model
        return zoo.resolve(model, checkpoint=self.checkpoint and data / self.checkpoint, **given)


CIFAR = "Test data: the 10,000 CIFAR-10 test images, `images` uint8 [N, 32, 32, 3] and `labels` [N] in one `.npz` file."
PHOTOGRAPHS = (
    "Test data: 1,000 photographs, one per ImageNet class, 224 x 224 centre crops in one folder per class. "
    "An accuracy on 1,000 images has a 95 % interval of about ±2 points."
)
EIGHT_BITS = "The first and last layers have 8-bit weights."
BUNDLED = Network(
    "resnet20-bundled",
    "ResNet-20, bundled weights",
    (
        "The network that comes with `acq`, 0.27 M parameters (`recipes/train_resnet20_cifar10.py`).",
        CIFAR,
        "All settings have their defaults, so the first and last layers have 8-bit weights.",
    ),
    "resnet20-cifar10",
    "cifar10-test.npz",
)
PUBLIC = Network(
    "resnet20-public",
    "ResNet-20, public weights",
    (
        "The weights `resnet20-12fca82f.th` of <https://github.com/akamaster/pytorch_resnet_cifar10>.",
        "Here they are a safetensors file with the same values; `--checkpoint` also takes the `.th` file.",
        CIFAR,
        "All layers have the bit-widths of the row, the first and the last too (`--first-last-bits same`).",
        "The default settings were compared on this network with its test accuracy in view, mostly with seed 0.",
    ),
    "resnet20-cifar10",
    "cifar10-test.npz",
    checkpoint="resnet20-cifar10.safetensors",
    settings=("first_last_bits=same",),
)
LITE0 = Network(
    "efficientnet-lite0",
    "EfficientNet-Lite0",
    (
        "The network of the extra `zoo`, 4.65 M parameters.",
        PHOTOGRAPHS,
        EIGHT_BITS,
    ),
    "efficientnet-lite0",
    "imagenet-sample",
)


def normalised(preprocessing: Preprocessing) -> tuple[str, ...]:
    """The options that say a normalisation."""
    mean, std = (",".join(map(str, values)) for values in (preprocessing.mean, preprocessing.std))
    return ("--mean", mean, "--std", std)


def folded_file(network: Network) -> str:
    """The name of the ONNX file that ``folded.py`` makes of a network."""
    return f"{network.name}-folded.onnx"


def folded(network: Network, preprocessing: Preprocessing, *settings: str) -> Network:
    """A network as an ONNX file whose batch norms are folded, with further settings."""
    return replace(
        network,
        name=f"{network.name}-folded",
        title=f"{network.title}, an ONNX file with folded batch norms",
        about=(
            "`benchmarks/folded.py` writes the file: torch's exporter folds each batch norm into its convolution.",
            "So images start from scenes, and there is no generator. Otherwise as the network above.",
        ),
        model=folded_file(network),
        images=normalised(preprocessing),
        settings=(*network.settings, *settings),
    )


def trained(name: str, title: str, about: str) -> Network:
    """A network of ``recipes/networks.py``."""
    return Network(
        name.replace("_", "-"),
        title,
        (
            about,
            f"It never had batch norms. `recipes/train_cifar10.py {name}` trained it.",
            CIFAR,
            "The first and last layers have 8-bit weights. Images start from scenes, and there is no generator.",
        ),
        f"recipes.networks:{name}",
        "cifar10-test.npz",
        checkpoint=f"{name}/weights.safetensors",
        images=("--input-size", "3,32,32", *normalised(registry.CIFAR)),
    )


def foreign(
    name: str, title: str, about: tuple[str, ...], data: str, size: int, normalisation: tuple[str, str]
) -> Network:
    """A network of other people, whose module and weights are in the data folder."""
    mean, std = normalisation
    return Network(
        name,
        title,
        (*about, "The module `networks.py` and the weights are not part of this repository.", EIGHT_BITS),
        f"networks:{name}",
        data,
        checkpoint=f"{name}.safetensors",
        images=("--input-size", f"3,{size},{size}", "--mean", mean, "--std", std),
        module="networks.py",
    )


SIGNS = foreign(
    "signs",
    "Traffic signs",
    (
        "A spatial transformer before a small convolutional network, 43 classes (poojahira/gtsrb-pytorch).",
        "Test data: 3,000 images of GTSRB.",
    ),
    "signs-test.npz",
    32,
    ("0.3337,0.3064,0.3171", "0.2672,0.2564,0.2629"),
)
MCUNET = foreign(
    "mcunet_tiny_imagenet",
    "MCUNet for Tiny ImageNet",
    (
        "Inverted bottlenecks, 0.5 M parameters, 200 classes, 96 x 96 pixels (sanchoo1/Efficient_ML_mcunet).",
        "Test data: 1,000 images of Tiny ImageNet.",
    ),
    "tiny-imagenet-val-96.npz",
    96,
    ("0.5,0.5,0.5", "0.5,0.5,0.5"),
)
MOBILENET = foreign(
    "mobilenetv1_075",
    "MobileNetV1 0.75",
    ("Depthwise separable convolutions, 2.6 M parameters, Google's weights.", PHOTOGRAPHS),
    "imagenet-sample",
    224,
    ("0.5,0.5,0.5", "0.5,0.5,0.5"),
)
ETINYNET = foreign(
    "etinynet",
    "EtinyNet",
    (
        "42 depthwise and pointwise layers, batch norms behind rectifiers, 0.96 M parameters (aztc/EtinyNet).",
        PHOTOGRAPHS,
    ),
    "imagenet-sample",
    224,
    ("0.50196,0.50196,0.50196", "0.0039216,0.0039216,0.0039216"),
)
BUNDLED_FOLDED = folded(BUNDLED, registry.CIFAR)
LITE0_FOLDED = folded(LITE0, registry.LITE0, "generator.steps=0")
GROUPNORM = trained("groupnorm_resnet", "ResNet with group norms", "Three stages of two blocks, 0.70 M parameters.")
NORM_FREE = trained(
    "norm_free_resnet",
    "ResNet without norms",
    "Standardised weights and scaled sums (NF-ResNet), three stages of two blocks, 0.70 M parameters.",
)
VIT = trained(
    "vit", "Vision transformer", "A stem of three convolutions and five blocks of width 96, 0.46 M parameters."
)
CONVNEXT = trained("convnext", "ConvNeXt", "Three stages of two blocks, 0.64 M parameters.")
