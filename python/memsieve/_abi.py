"""Whether the module fits the torch that is there. Told before it is loaded: afterwards the loader would name a missing symbol."""
import importlib.metadata

from memsieve import _build


def torch_version():
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def mismatch(found):
    """Why the module cannot be loaded beside torch `found` (a version, None = there is none), "" if it can."""
    built = _build.TORCH
    again = "build memsieve again in this environment: pip install --force-reinstall --no-deps SOURCES"
    if found is None:
        return f"memsieve {_build.VERSION} needs torch {built}, but there is none in this environment; pip install torch=={built}"
    if found.split("+")[0] != built.split("+")[0]:
        return f"memsieve {_build.VERSION} was built with torch {built}, but this environment has torch {found}; {again}"
    return ""


def check():
    """Throws ImportError, one line, if the module was built for another torch; loads torch, whose libraries it needs."""
    if why := mismatch(torch_version()):
        raise ImportError(why)
    import torch
    if torch.compiled_with_cxx11_abi() != _build.CXX11_ABI:
        raise ImportError(f"memsieve {_build.VERSION} was built with _GLIBCXX_USE_CXX11_ABI={int(_build.CXX11_ABI)}, but torch "
                          f"{torch.__version__} with the other; build memsieve again in this environment")
