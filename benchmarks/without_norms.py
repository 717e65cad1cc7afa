"""Networks without batch norms, as MODEL of ``acq quantize``.

    cd benchmarks; acq quantize without_norms:folded_resnet20 --input-size 3,32,32 \\
        --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data test.npz --preset fast --bits w4a4
"""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from acq import zoo


def folded_resnet20() -> nn.Module:
    """The built-in ResNet-20 whose batch norms are folded into its convolutions, as exporters do."""
    return folded(zoo.resolve("resnet20-cifar10").model)


def folded(network: nn.Module) -> nn.Module:
    """Fold each batch norm into the convolution that is registered before it in the same module.

    Args:
        network: In eval mode; it changes.
    """
    for module in network.modules():
        before: tuple[str, nn.Module] | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None and isinstance(before[1], nn.Conv2d):
                setattr(module, before[0], fuse_conv_bn_eval(before[1], child))
                setattr(module, name, nn.Identity())
            before = name, child
    return network
