"""What workers compute on."""

import torch

from optserve_server.machine import memory_bytes


def find_device(setting: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means here.

    Raises:
        ValueError: there is no GPU.
    """
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise ValueError("PyTorch finds no GPU on this machine; say --device cpu, or auto")
    return torch.device("cpu" if setting == "cpu" or not available else "cuda")


def describe(device: torch.device) -> str:
    """A device for people, with the model of a GPU."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def device_memory_bytes(device: torch.device) -> int:
    """All the memory that a computation on the device can have."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory_bytes()
