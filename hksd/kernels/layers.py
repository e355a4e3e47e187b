"""A chain of layers that runs convolutions by our kernels, and normalisations together with the ReLU behind them."""

from __future__ import annotations

from torch import Tensor, nn

from hksd.kernels.conv import convolve
from hksd.kernels.norm import norm_act


class Layers(nn.Sequential):
    """`nn.Sequential` with the same results and the same names of weights, see `norm_act` and `convolve`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: what the first layer takes."""
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if type(layer) is nn.BatchNorm2d:
                relu = bool(layers) and type(layers[0]) is nn.ReLU
                x = norm_act(layer, x, relu=relu)
                del layers[: int(relu)]
            elif type(layer) is nn.Conv2d:
                x = convolve(layer, x)
            else:
                x = layer(x)
        return x
