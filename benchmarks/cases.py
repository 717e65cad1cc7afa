"""The cases of docs/results.md: network, bit-widths, seeds and settings. A case is one line of CASES."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import torch
from case_networks import (
    BUNDLED,
    BUNDLED_FOLDED,
    CONVNEXT,
    ETINYNET,
    GROUPNORM,
    LITE0,
    LITE0_FOLDED,
    MCUNET,
    MOBILENET,
    NORM_FREE,
    PUBLIC,
    SIGNS,
    VIT,
    Network,
)  # fmt: skip

from acq.config import Config
from acq.files.documents import assignment

WITH_OPTION = ("preset", "placement", "first_last_bits", "add_bits", "budget", "device")  # other settings: --set


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
        changes = map(assignment, (*network.settings, *self.settings))
        return Config.create("default", *changes, {"bits": self.bits, "seed": seed})

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
        words += ["--bits", self.bits, *options_of((*network.settings, *self.settings))]
        return [*words, "--seed", str(seed), "--data", data + network.data]

    def command(self, seed: int) -> str:
        """The command that makes a run again in the folder of this repository, with the test data in ``data/``."""
        command = shlex.join(["acq", *self.words(seed, "data/")])
        return f"PYTHONPATH=data {command}" if self.network.module else command

    def obstacle(self, data: Path) -> str | None:
        """Why this machine cannot run the case; None if it can."""
        network = self.network
        files = (network.model if network.needs_file else None, network.module, network.checkpoint, network.data)
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


CASES = (
    Case(BUNDLED, "w8a8"),
    Case(BUNDLED, "w4a8"),
    Case(BUNDLED, "w4a4"),
    Case(BUNDLED, "w3a3"),
    Case(PUBLIC, "w8a8"),
    Case(PUBLIC, "w4a8"),
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
    Case(LITE0, "w8a8", seeds=(0, 1)),
    Case(LITE0, "w4a8", seeds=(0,)),
    Case(LITE0, "w4a4", seeds=(0,)),
    Case(BUNDLED_FOLDED, "w8a8"),
    Case(BUNDLED_FOLDED, "w4a4"),
    Case(LITE0_FOLDED, "w8a8", seeds=(0, 1)),
    Case(LITE0_FOLDED, "w4a8", seeds=(0,)),
    *(Case(network, bits, seeds=(0, 1)) for network in (GROUPNORM, NORM_FREE) for bits in ("w8a8", "w4a4")),
    *(Case(network, bits, seeds=(0, 1)) for network in (VIT, CONVNEXT) for bits in ("w8a8", "w4a8")),
    *(Case(network, bits, seeds=(0, 1)) for network in (SIGNS, MCUNET) for bits in ("w8a8", "w4a8", "w4a4")),
    *(Case(network, "w8a8", seeds=(0, 1)) for network in (MOBILENET, ETINYNET)),
    *(Case(network, bits, seeds=(0,)) for bits in ("w4a8", "w4a4") for network in (MOBILENET, ETINYNET)),  # an hour
)
