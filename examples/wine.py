"""A classifier of wines, trained with a served optimizer: nothing is tuned, and no optimizer has seen such data.

Start a server (`make serve`), then: `.venv/bin/python examples/wine.py [OPTIMIZER]`
"""

import sys

import torch
from sklearn.datasets import load_wine
from torch import nn

from optserve.torch import RemoteOptimizer

STEPS, BATCH_SIZE = 200, 32


def main() -> None:
    """Train, and test on wines that were left out."""
    torch.manual_seed(0)
    features, labels = (torch.from_numpy(array) for array in load_wine(return_X_y=True))
    features = ((features - features.mean(dim=0)) / features.std(dim=0)).float()
    order = torch.randperm(len(labels))
    train, test = order[:120], order[120:]

    model = nn.Sequential(nn.Linear(13, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = RemoteOptimizer(model.parameters(), sys.argv[1] if len(sys.argv) > 1 else None, horizon=STEPS)
    for step in range(STEPS):
        batch = train[torch.randint(len(train), (BATCH_SIZE,))]
        loss = nn.functional.cross_entropy(model(features[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss=loss)
        if step % 20 == 19:
            print(f"step {step + 1:3}  loss {loss.item():.5f}")
    right = (model(features[test]).argmax(dim=1) == labels[test]).float().mean().item()
    print(f"{right:.1%} of {len(test)} wines it has not seen are classified rightly")


if __name__ == "__main__":
    main()
