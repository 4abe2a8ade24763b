"""`python -m benchmarks.optimizers.same FOUND SHIPPED`: whether two weights files have the same φ, bit for bit."""

import sys
from pathlib import Path

import torch

from optserve_server.optimizers import Phi, weights


def main() -> None:
    found, shipped = (Path(argument) for argument in sys.argv[1:3])
    differing = differences(*(weights.decode(file.read_bytes())[1] for file in (found, shipped)))
    if differing:
        sys.exit(f"{found} is another φ than {shipped}:\n" + "\n".join(f"  {line}" for line in differing))
    print(f"{found} has the φ of {shipped}, bit for bit")


def differences(found: Phi, shipped: Phi) -> list[str]:
    """For each array that is not the same in both, by how much it differs."""
    lines = [f"{name} is in one of them only" for name in sorted(found.keys() ^ shipped.keys())]
    for name in sorted(found.keys() & shipped.keys()):
        one, other = found[name], shipped[name]
        if one.shape != other.shape:
            lines.append(f"{name} is {list(one.shape)} in the one and {list(other.shape)} in the other")
        elif not torch.equal(one, other):
            lines.append(f"{name} differs by up to {(one - other).abs().max().item():.1e}")
    return lines


if __name__ == "__main__":
    main()
