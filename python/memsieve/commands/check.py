"""What was found, and whether the module works."""
import argparse
import importlib.metadata
import platform
import sys

from memsieve import _abi


def version_of(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def try_out():
    """A step of the sieve on two rows, of which the one beyond the threshold must weigh nothing."""
    import torch

    import memsieve
    config = {"filters": {"magnitude": {}}, "standardise": {"by": "none"}, "evidence": {"kind": "visit"},
              "threshold": {"kind": "fixed", "drop": 1.0}}
    sieve = memsieve.Sieve(config, dataset_size=2, batch_size=2, device="cpu")
    prediction = torch.zeros(2, 4, requires_grad=True)
    plan = sieve.inspect([0, 1], [1, 2], prediction, torch.ones(2, 4), null=torch.tensor([[0.1] * 4, [1.0] * 4]))
    plan.loss((prediction - 1).square().mean(1)).backward()
    end = sieve.end_step([prediction.grad])
    return plan.weights.tolist() == [1.0, 0.0] and end.grad_scale.item() == 0.5


def main(words=()):
    """Exit code: 0 it works; 1 it does not, and the last line says why; 2 wrong usage."""
    argparse.ArgumentParser(prog="memsieve check", description=__doc__).parse_args(words)
    try:
        build = _abi.build()
    except ImportError as error:
        print(error)
        return 1
    print(f"memsieve    {build.VERSION}, built with torch {build.TORCH}, _GLIBCXX_USE_CXX11_ABI={int(build.CXX11_ABI)}")
    print(f"python      {platform.python_version()} ({sys.executable})")
    found = _abi.torch_version()
    print(f"torch       {found or 'not installed'}")
    if why := _abi.mismatch(found):
        print(f"abi         does not fit: {why}")
        return 1
    import torch
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    print(f"cuda        torch is built with {torch.version.cuda or 'none'}; "
          f"{gpus} GPU{'' if gpus == 1 else 's'} found{': ' + torch.cuda.get_device_name(0) if gpus else ''}")
    distributed = torch.distributed
    backends = [name for name in ("gloo", "nccl") if distributed.is_available() and getattr(distributed, f"is_{name}_available")()]
    print(f"distributed {', '.join(backends) or 'none'}")
    from memsieve import _core
    print(f"hdf5        {_core.hdf5_version}")
    print("filters     " + ", ".join(_core.filters()))
    print("beside it   " + ", ".join(f"{name} {version_of(name)}" for name in ("accelerate", "diffusers", "peft", "lightning", "h5py", "pandas")))
    if not try_out():
        print("abi         loaded, but a step of two rows came out wrong; build memsieve again in this environment")
        return 1
    print("abi         fits: a step of two rows came out right")
    return 0
