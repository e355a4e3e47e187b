"""Operations that bound a training step on the CPU, each as one pass over memory."""

from hksd.kernels.layers import Layers
from hksd.kernels.norm import norm_act

__all__ = ["Layers", "norm_act"]
