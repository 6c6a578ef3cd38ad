"""GPUs for machines that have none: tests/stub_cuda stands in for CUDA's runtime and for NCCL. Without `compute` no kernel is run
and every number is 0; with it torch's CPU kernels compute what the GPU's would."""
import pytest
from conftest import BUILD

FOLDER = BUILD / "tests" / "stub_cuda"
AVAILABLE = (FOLDER / "libstub_cuda.so").exists()
needed = pytest.mark.skipif(not AVAILABLE, reason="built without CUDA")


def environment(gpus=1, compute=False, report=None):
    """`report`: the file that counts of calls go to."""
    libraries = ["libstub_cuda.so"] + ["libstub_compute.so"] * compute
    variables = {"LD_PRELOAD": " ".join(str(FOLDER / name) for name in libraries), "LD_LIBRARY_PATH": str(FOLDER),
                 "MEMSIEVE_STUB_GPUS": str(gpus)}
    if not compute:
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # every tensor in memory of its own, which is handed out zeroed
    if report:
        variables["MEMSIEVE_STUB_REPORT"] = str(report)
    return variables
