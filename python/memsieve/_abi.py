"""Whether the module fits the torch that is there. Told before it is loaded: afterwards the loader would name a missing symbol."""
import functools
import importlib
import importlib.metadata
from pathlib import Path


def build():
    """`memsieve._build`: what the module was built with. Throws ImportError, one line, in a source tree, which has no module."""
    try:
        return importlib.import_module("memsieve._build")
    except ModuleNotFoundError:
        raise ImportError(f"memsieve's compiled module is not in {Path(__file__).parent}: these are its sources; install it with "
                          "`pip install .`, or put the folder python of a build first on PYTHONPATH (docs/python.md)") from None


def torch_version():
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def mismatch(found):
    """Why the module cannot be loaded beside torch `found` (a version, None = there is none), "" if it can."""
    version, built = build().VERSION, build().TORCH
    again = "build memsieve again in this environment: pip install --force-reinstall --no-deps SOURCES"
    if found is None:
        return f"memsieve {version} needs torch {built}, but there is none in this environment; pip install torch=={built}"
    if found.split("+")[0] != built.split("+")[0]:
        return f"memsieve {version} was built with torch {built}, but this environment has torch {found}; {again}"
    return ""


@functools.cache
def check():
    """Throws ImportError, one line, if the module was built for another torch; loads torch, whose libraries it needs."""
    if why := mismatch(torch_version()):
        raise ImportError(why)
    import torch
    if torch.compiled_with_cxx11_abi() != build().CXX11_ABI:
        raise ImportError(f"memsieve {build().VERSION} was built with _GLIBCXX_USE_CXX11_ABI={int(build().CXX11_ABI)}, but torch "
                          f"{torch.__version__} with the other; build memsieve again in this environment")
