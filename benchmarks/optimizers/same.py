"""`python -m benchmarks.optimizers.same FOUND SHIPPED`: whether two weights files have the same φ, bit for bit."""

import sys
from pathlib import Path

from optserve_server.optimizers import Phi, weights


def main() -> None:
    found, shipped = (Path(argument) for argument in sys.argv[1:])
    (_, phi, metadata), (_, other, others) = (weights.decode(file.read_bytes()) for file in (found, shipped))
    differing = differences(phi, other)
    if differing:
        made = [f"torch {each['torch']} on {each['machine']}" for each in (metadata, others)]
        sys.exit(
            f"{found} is another φ than {shipped}:\n"
            + "".join(f"  {line}\n" for line in differing)
            + f"They were made by {made[0]} and {made[1]}; other versions and other processors give other bits."
        )
    print(f"{found} has the φ of {shipped}, bit for bit")


def differences(found: Phi, shipped: Phi) -> list[str]:
    """For each array that is not the same in both, by how much it differs."""
    lines = [f"{name} is in one of them only" for name in sorted(found.keys() ^ shipped.keys())]
    for name in sorted(found.keys() & shipped.keys()):
        one, other = found[name], shipped[name]
        if one.shape != other.shape or one.dtype != other.dtype:
            forms = [f"{each.dtype} {list(each.shape)}" for each in (one, other)]
            lines.append(f"{name} is {forms[0]} in the one and {forms[1]} in the other")
        elif one.numpy().tobytes() != other.numpy().tobytes():
            lines.append(f"{name} differs by up to {(one - other).abs().max().item():.1e}")
    return lines


if __name__ == "__main__":
    main()
