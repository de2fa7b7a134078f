"""What this machine offers to a run."""

import importlib.metadata
import importlib.util
import os
import shutil
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

GIB = 2**30
_HUB_SECONDS = 5.0


def describe_machine(run_dir: Path, cache_dir: Path) -> dict[str, Any]:
    """Versions, processors, memory (GiB), DeepSpeed's operators, the hub, and the disks behind the two folders."""
    import torch

    return {
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "gpus": [
            {"name": torch.cuda.get_device_name(i), "memory": torch.cuda.get_device_properties(i).total_memory / GIB}
            for i in range(torch.cuda.device_count())
        ],
        "nccl": torch.cuda.is_available() and torch.distributed.is_nccl_available(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": available_memory(),
        "flash_attn": version("flash-attn") if importlib.util.find_spec("flash_attn") else None,
        "deepspeed": version("deepspeed"),
        "deepspeed_ops": deepspeed_ops(),
        "hub": hub_problem() or "answers",
        "disk": {"run": free_disk(run_dir), "cache": free_disk(cache_dir)},
    }


def version(package: str) -> str | None:
    """Of an installed package; None where it is absent."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def available_memory() -> float:
    """GiB that new processes can have without swapping, on Linux; elsewhere all there is."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        line = next(
            line for line in meminfo.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable:")
        )
        return int(line.split()[1]) * 1024 / GIB
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def deepspeed_ops() -> dict[str, bool]:
    """DeepSpeed's operators, and whether each can be built here. The run itself needs none of them."""
    import logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    return {name: bool(builder.is_compatible(verbose=False)) for name, builder in sorted(ALL_OPS.items())}


def hub_problem() -> str | None:
    """Why the hub (`HF_ENDPOINT`) cannot be reached within five seconds; None where it answers."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return "not asked: HF_HUB_OFFLINE is set"
    try:
        with urllib.request.urlopen(f"{address}/api/models?limit=1", timeout=_HUB_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 else f"{address}: {error}"
    except (OSError, ValueError) as error:
        return f"{address}: {error}"


def free_disk(folder: Path) -> float:
    """GiB free where `folder` is, or will be."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free / GIB
