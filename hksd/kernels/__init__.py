"""Operations that bound a training step on the CPU, each as one pass over memory."""

from hksd.kernels.branch import branch
from hksd.kernels.conv import convolve
from hksd.kernels.layers import Layers
from hksd.kernels.maps import aligned, average, blend, compare, energy
from hksd.kernels.norm import norm_act

__all__ = ["Layers", "aligned", "average", "blend", "branch", "compare", "convolve", "energy", "norm_act"]
