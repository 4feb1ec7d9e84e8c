"""The machine: device, precision, threads, versions. What plan needs is found without torch: it answers at once."""

import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

from glue_bench.config import Machine
from glue_bench.errors import UserError
from glue_bench.records import Environment

KERNELS_KEPT = "4096"  # by oneDNN, of a few ten kB each
LIBRARIES = ("torch", "transformers", "datasets", "evaluate", "tokenizers", "numpy", "scipy", "scikit-learn", "pandas")


@dataclass(frozen=True)
class Facts:
    """What of the machine enters fingerprints: threads, training precision, and for benchmark device -> machine."""

    threads: int
    precision: str
    devices: dict[str, str]
    job_threads: int  # of one fine-tuning, where several run at once on the CPU


def facts(machine: Machine) -> Facts:
    """Resolve the `auto` settings of [machine] on this machine. Raises UserError where CUDA is asked for and absent."""
    gpus = gpu_names()
    if machine.device == "cuda" and not gpus:
        raise UserError("--device cuda: no CUDA device is visible here; use --device cpu or auto")
    use_cuda = bool(gpus) and machine.device != "cpu"
    precision = machine.precision
    if precision == "auto":
        precision = "bf16" if use_cuda or has_fast_bf16() else "fp32"
    devices = {"cpu": f"{cpu_name()}, {core_count()} cores"}
    if use_cuda:
        devices["cuda"] = ", ".join(dict.fromkeys(gpus))  # one of each kind is timed
    threads = machine.threads or core_count()
    return Facts(threads, precision, devices, threads if use_cuda else max(1, threads // machine.jobs_per_device))


def core_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_processes() -> int:
    """How many processes torchrun started on this machine. They share its threads, but a fingerprint has them all: what
    several processes computed is done for a single one, and a training goes on with another number of them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return ""


def cpu_name() -> str:
    """Model name of the processor."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def has_fast_bf16() -> bool:
    """Whether the CPU multiplies bf16 matrices faster than fp32 ones: with AMX tiles about 6 times (measured: 2.1
    against 0.33 TFLOP/s), with AVX-512's bf16 dot product 2.4 times (0.42 against 0.175, two Zen 4 cores); with
    neither up to 100 times slower (0.001 against 0.115 on a Zen 3)."""
    return has_amx() or "avx512_bf16" in _cpuinfo("flags").split()


def has_amx() -> bool:
    """Whether the CPU has bf16 AMX tiles."""
    return "amx_bf16" in _cpuinfo("flags").split()


def gpu_names() -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that CUDA_VISIBLE_DEVICES leaves visible, by nvidia-smi; empty where there are none."""
    return _visible(_gpus())


def _gpus() -> list[tuple[str, ...]]:
    """(index, uuid, name) of the machine's NVIDIA GPUs; empty where none of them may be used."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1") or not Path("/dev/nvidiactl").exists():
        return []
    if not _torch_is_built_for_cuda():
        return []
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    lines = listing.stdout.splitlines() if listing.returncode == 0 else []
    return [tuple(part.strip() for part in line.split(",", 2)) for line in lines if line.count(",") >= 2]


def _visible(gpus: list[tuple[str, ...]]) -> tuple[str, ...]:
    """Names of the (index, uuid, name) that CUDA_VISIBLE_DEVICES leaves, in its order: by index or the uuid's start.

    As CUDA does, nothing counts after the first that is not there. A slice of a GPU (MIG-...), which nvidia-smi does
    not list here, counts under the first GPU's name.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return tuple(name for _, _, name in gpus)
    names: list[str] = []
    for wanted in (part.strip() for part in chosen.split(",")):
        slices = gpus[:1] if wanted.startswith("MIG-") else []
        whole = [gpu for gpu in gpus if wanted == gpu[0] or (wanted.startswith("GPU-") and gpu[1].startswith(wanted))]
        if len(found := slices + whole) != 1:
            break
        names.append(found[0][2])
    return tuple(names)


def _torch_is_built_for_cuda() -> bool:
    """Whether the installed torch is a CUDA build, read from its version file without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return False
    try:
        text = Path(next(iter(spec.submodule_search_locations)), "version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    return re.search(r"^cuda\b.*=\s*['\"]\d", text, flags=re.M) is not None


def environment(threads: int, precision: str) -> Environment:
    """The machine and versions for a record; no user, host or folder names."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Environment(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu_name(),
        cores=core_count(),
        memory_gb=round(pages / 1e9, 1),
        devices=tuple(name for _, _, name in _gpus()),  # of the machine: each of several jobs may see one alone
        threads=threads,
        precision=precision,
        versions=versions,
        commit=source_commit(),
    )


@cache
def source_commit() -> str:
    """The code that ran: the checkout's commit (with + where files differ), else a hash of the installed modules."""
    package = Path(__file__).parent
    if (package.parent / ".git").exists():
        try:
            git = ["git", "-C", str(package.parent)]
            head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10)
            dirty = subprocess.run(
                [*git, "status", "--porcelain", "--", "glue_bench"], capture_output=True, text=True, timeout=10
            )
            if head.returncode == 0:
                return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
        except (OSError, subprocess.SubprocessError):
            pass
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"package-{digest.hexdigest()[:16]}"


def use_threads(threads: int) -> None:
    """Fix torch's threads: gradients differ in the last bits between one thread and two.

    oneDNN keeps the kernels it made, 1,024 by default, and forgets those not used for longest. Fine-tuning in bf16
    needs some forty for every width of a batch: full MRPC has 26 widths, and its second epoch made many again.
    """
    import torch

    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS_KEPT)  # read once, at the first product
    torch.set_num_threads(threads)


def torch_device(device: str) -> "object":
    """The torch.device for auto, cpu or cuda. Raises UserError where CUDA is asked for and torch has none."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
        )
    if device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # under torchrun each process has a GPU of its own, also in threads that never called set_device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def is_terminal() -> bool:
    """Whether progress bars are wanted: only where stderr is a terminal."""
    return sys.stderr.isatty()
