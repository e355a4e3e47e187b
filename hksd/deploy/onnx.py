"""A network as ONNX, and its check in ONNX Runtime. Heavy imports are inside: most runs need neither."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hksd.deploy.capture import quiet
from hksd.errors import RunError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUT, OUTPUT = "images", "logits"


def to_onnx(program: nn.Module, example: Tensor) -> bytes:
    """Translate a network for inference.

    Args:
        program: the network, in eval mode, normalisation included (see `hksd.deploy.export.Deployed`).
        example: images of the right shape, (2 or more, channels, H, W); their values do not matter.

    Returns:
        An ONNX model with input `images` (batch, channels, H, W), float32, 0..1, and output `logits` (batch, C); the
        number of images is free.

    Raises:
        RunError: the network does what ONNX, or torch.export before it, cannot express.
        ModuleNotFoundError: what writes ONNX is not installed.
    """
    batch, buffer = torch.export.Dim("batch", min=1), io.BytesIO()
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            made.save(buffer)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("onnx"):
            raise
        raise RunError(f"the network cannot be written as ONNX: {_reason(error)}") from error
    except Exception as error:  # a network of the user's own may do anything
        raise RunError(f"the network cannot be written as ONNX: {_reason(error)}") from error
    return buffer.getvalue()


def _reason(error: BaseException) -> str:
    """First line of the first cause; what the exporter itself says is general and long."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def session(model: bytes, threads: int = 1) -> InferenceSession:
    """ONNX Runtime's CPU provider for a model: sequential, `threads` threads inside an operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors alone
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def answers(running: InferenceSession, images: Tensor) -> Tensor:
    """Logits (N, C) of images (N, channels, H, W), float32, 0..1."""
    (logits,) = running.run([OUTPUT], {INPUT: images.numpy()})
    return torch.from_numpy(logits)
