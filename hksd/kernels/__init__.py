"""Operations that bound a training step on the CPU, each as one pass over memory."""

from hksd.kernels.branch import branch
from hksd.kernels.layers import Layers
from hksd.kernels.maps import aligned, average, blend, compare, energy
from hksd.kernels.norm import norm_act

__all__ = ["Layers", "aligned", "average", "blend", "branch", "compare", "energy", "norm_act"]
