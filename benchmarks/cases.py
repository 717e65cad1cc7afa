"""The cases of docs/results.md: network, test data, bit-widths, seeds and settings. A case is one line of CASES."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from runs import ROOT

from acq.config import Config
from acq.core.values import Preprocessing
from acq.files.documents import assignment, read_settings
from acq.zoo import registry

# the first commit whose results the present code still gives; change it whenever those of all networks change
ENGINE = "7befc58"
WITH_OPTION = ("preset", "placement", "first_last_bits", "add_bits", "budget", "device")  # other settings: --set


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
        config: A recipe of this repository, if one is needed.
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
    config: str | None = None
    settings: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    engine: str = ENGINE

    @property
    def needs_file(self) -> bool:
        """Whether the network itself is a file of the data folder."""
        return self.model.endswith(".onnx")


@dataclass(frozen=True)
class Case:
    """A network in one bit-width, with further settings as ``key=value``."""

    network: Network
    bits: str
    settings: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def name(self) -> str:
        """Such as ``resnet20-public/w4a4/device=cuda``."""
        return "/".join((self.network.name, self.bits, *self.settings))

    @property
    def options(self) -> str:
        """The options that this case has and other cases of its network have not."""
        return shlex.join(options_of(self.settings))

    def config(self, seed: int) -> Config:
        """All settings of a run."""
        network = self.network
        file = [read_settings(ROOT / network.config)] if network.config else []
        changes = map(assignment, (*network.settings, *self.settings))
        return Config.create("default", *file, *changes, {"bits": self.bits, "seed": seed})

    def words(self, seed: int, data: str) -> list[str]:
        """The words of ``acq`` that make a run in the folder of this repository.

        Args:
            seed: Of the run.
            data: The folder of test data, with a slash at the end.
        """
        network = self.network
        model = data + network.model if network.needs_file else network.model
        words = ["quantize", model, *network.images]
        words += ["--checkpoint", data + network.checkpoint] if network.checkpoint else []
        words += ["--config", network.config] if network.config else []
        words += ["--bits", self.bits, *options_of((*network.settings, *self.settings))]
        return [*words, "--seed", str(seed), "--data", data + network.data]

    def command(self, seed: int) -> str:
        """The command that makes a run again in the folder of this repository, with the test data in ``data/``."""
        return shlex.join(["acq", *self.words(seed, "data/")])

    def obstacle(self, data: Path) -> str | None:
        """Why this machine cannot run the case; None if it can."""
        network = self.network
        files = (network.model if network.needs_file else None, network.checkpoint, network.data)
        for name in filter(None, files):
            if not (data / name).exists():
                return f"{data / name} is missing; give its folder as --data-folder"
        if "device=cuda" in self.settings and not torch.cuda.is_available():
            return "there is no CUDA device; run it on a machine that has one"
        return None


def options_of(settings: tuple[str, ...]) -> list[str]:
    """Settings as options of ``acq quantize``."""
    words = []
    for setting in settings:
        key, _, text = setting.partition("=")
        words += [f"--{key.replace('_', '-')}", text] if key in WITH_OPTION else ["--set", setting]
    return words


CIFAR = "Test data: the 10,000 CIFAR-10 test images, `images` uint8 [N, 32, 32, 3] and `labels` [N] in one `.npz` file."
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
        "The network of the extra `zoo`, 4.65 M parameters, with `recipes/efficientnet_lite0.yaml`.",
        "Test data: 1,000 photographs, one per ImageNet class, 224 x 224 centre crops in one folder per class.",
        "An accuracy on 1,000 images has a 95 % interval of about ±2 points.",
        "The first and last layers have 8-bit weights.",
    ),
    "efficientnet-lite0",
    "imagenet-sample",
    config="recipes/efficientnet_lite0.yaml",
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

CASES = (
    Case(BUNDLED, "w8a8"),
    Case(BUNDLED, "w4a8"),
    Case(BUNDLED, "w4a4"),
    Case(BUNDLED, "w3a3"),
    Case(PUBLIC, "w8a8"),
    Case(PUBLIC, "w5a5"),
    Case(PUBLIC, "w4a4"),
    Case(PUBLIC, "w3a3"),
    Case(PUBLIC, "w2a4"),
    Case(PUBLIC, "auto"),
    Case(PUBLIC, "w4a4", ("preset=best",), seeds=(0,)),
    Case(PUBLIC, "w4a4", ("placement=relu-only",)),
    Case(PUBLIC, "w3a3", ("placement=relu-only",)),
    Case(PUBLIC, "w4a4", ("device=cuda",)),
    Case(PUBLIC, "w3a3", ("device=cuda",)),
    Case(PUBLIC, "w4a4", ("device=cuda", "precision=mixed")),
    Case(PUBLIC, "w3a3", ("device=cuda", "precision=mixed")),
    Case(LITE0, "w8a8", ("images.count=64", "generator.steps=40"), seeds=(0,)),
    Case(LITE0, "w4a8", seeds=(0,)),
    Case(LITE0, "w4a4", seeds=(0,)),
    Case(BUNDLED_FOLDED, "w8a8"),
    Case(BUNDLED_FOLDED, "w4a4"),
    Case(LITE0_FOLDED, "w8a8", ("images.count=64",), seeds=(0,)),
    Case(LITE0_FOLDED, "w4a8", seeds=(0,)),
    *(Case(network, bits, seeds=(0, 1)) for network in (GROUPNORM, NORM_FREE) for bits in ("w8a8", "w4a4")),
    *(Case(network, bits, seeds=(0, 1)) for network in (VIT, CONVNEXT) for bits in ("w8a8", "w4a8")),
)
