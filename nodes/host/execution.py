"""How a run ends before its end: the user stops it, or memory runs out."""

import re

import comfy.lora
import comfy.model_management
import torch

Interrupted = comfy.model_management.InterruptProcessingException
"""What the host raises where the user has asked to stop."""


def memory_ran_out(error: RuntimeError) -> bool:
    """Whether an error says that the device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or bool(re.search("out of memory|can't allocate memory", str(error)))


def free_unused() -> None:
    """Give memory back that torch holds for later."""
    comfy.model_management.soft_empty_cache()


def check_interrupt() -> None:
    """Raise the host's own exception where the user has asked to stop."""
    comfy.model_management.throw_exception_if_processing_interrupted()
