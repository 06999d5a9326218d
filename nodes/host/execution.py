"""Early ends of a run: interruption by the user, and out-of-memory errors."""

import re

import comfy.model_management
import torch

Interrupted = comfy.model_management.InterruptProcessingException
"""The exception that the host raises when the user has asked to stop."""


NO_MEMORY = re.compile("out of memory|can't allocate memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED", re.IGNORECASE)
"""What an error says if memory ran out where torch has no exception of its own for that: on the CPU, and within libraries."""


def memory_ran_out(error: RuntimeError) -> bool:
    """Whether an error reports that the device or the machine is out of memory."""
    known = getattr(comfy.model_management, "is_oom", None)  # newer hosts also clear the device's pending error
    return (known is not None and known(error)) or isinstance(error, torch.OutOfMemoryError) or bool(NO_MEMORY.search(str(error)))


def free_unused() -> None:
    """Release the memory that torch keeps cached."""
    comfy.model_management.soft_empty_cache()


def check_interrupt() -> None:
    """Raise `Interrupted` if the user has asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()
