"""Early ends of a run: interruption by the user, and out-of-memory errors."""

import re

import comfy.lora
import comfy.model_management
import torch

Interrupted = comfy.model_management.InterruptProcessingException
"""The exception that the host raises when the user has asked to stop."""


def memory_ran_out(error: RuntimeError) -> bool:
    """Whether an error reports that the device or the machine is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


def free_unused() -> None:
    """Release the memory that torch keeps cached."""
    comfy.model_management.soft_empty_cache()


def check_interrupt() -> None:
    """Raise `Interrupted` if the user has asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()
