"""A small recurrent network that foretells the symbols of a random Markov chain."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.nn.functional import cross_entropy

from optserve_server.tasks.base import Batch, Split, TaskData, Theta, in_half, unflatten
from optserve_server.tasks.networks import BatchSize


@dataclass(frozen=True)
class MarkovRNN:
    """Cross-entropy per symbol of a GRU (Cho et al. 2014) on sequences of a Markov chain of second order.

    A symbol's probabilities follow from the two before it: softmax(sharpness · L[a, b]), L standard normal and each
    task's own. So the network has to remember, and the chain's entropy is what its loss can fall to.
    """

    name: ClassVar[str] = "markov-rnn"
    description: ClassVar[str] = (
        "cross-entropy of a small recurrent network (GRU) that predicts the next symbol of a random Markov chain of "
        "second order, new sequences at every step; each task has a chain of its own"
    )

    symbols: Annotated[int, Ge(2), Le(64)] = 6
    sharpness: Annotated[float, Gt(0), Le(100)] = 2.0
    length: Annotated[int, Ge(3), Le(256)] = 12
    hidden_size: Annotated[int, Ge(1), Le(256)] = 16
    batch_size: BatchSize = 32

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The GRU's tensors, named as `torch.nn.GRU`'s with gates in its order r, z, n; then a linear layer's."""
        gates = 3 * self.hidden_size
        return {
            "weight_ih": (gates, self.symbols),
            "weight_hh": (gates, self.hidden_size),
            "bias_ih": (gates,),
            "bias_hh": (gates,),
            "output.weight": (self.symbols, self.hidden_size),
            "output.bias": (self.symbols,),
        }

    def sample(self, generator: torch.Generator, tasks: int, split: Split) -> TaskData:
        """L `[tasks, symbols, symbols, symbols]`, the first entry of which tells the half."""
        logits = torch.randn(tasks, *[self.symbols] * 3, generator=generator, device=generator.device)
        return {"logits": in_half(logits, split)}

    def initial(self, generator: torch.Generator, tasks: int) -> Theta:
        """Uniform in ±1/√hidden_size, as `torch.nn.GRU`."""
        bound = self.hidden_size**-0.5
        coordinates = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        theta = torch.empty(tasks, coordinates, device=generator.device)
        return theta.uniform_(-bound, bound, generator=generator)

    def batch(self, generator: torch.Generator, task_data: TaskData, tasks: int) -> Batch:
        """Sequences of symbols, one-hot, `[tasks, batch_size, length, symbols]`; the first two symbols are uniform."""
        device = generator.device
        logits = self.sharpness * task_data["logits"]
        chains = torch.arange(tasks, device=device)[:, None]
        start = torch.randint(self.symbols, (2, tasks, self.batch_size), generator=generator, device=device)
        sequence = [*start]
        for _ in range(2, self.length):
            # Of exponential waiting times, the first is distributed as the softmax of the logarithms of their rates.
            uniform = torch.rand(tasks, self.batch_size, self.symbols, generator=generator, device=device)
            waits = -uniform.log()
            sequence.append((logits[chains, sequence[-2], sequence[-1]] - waits.log()).argmax(dim=-1))
        one_hot = torch.eye(self.symbols, dtype=logits.dtype, device=device)
        return {"sequences": one_hot[torch.stack(sequence, dim=2)]}

    def loss(self, theta: Theta, task: TaskData, batch: Batch) -> Tensor:
        """Mean cross-entropy of every symbol but the first, given those before it."""
        tensors = unflatten(theta, self.shapes)
        sequences = batch["sequences"].transpose(0, 1)  # time first
        hidden_states = _gru(tensors, sequences[:-1])
        logits = hidden_states @ tensors["output.weight"].T + tensors["output.bias"]
        return cross_entropy(logits.flatten(0, 1), sequences[1:].flatten(0, 1))


def _gru(tensors: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """h_t = (1 − z) ⊙ n + z ⊙ h_{t−1} from h = 0, for inputs `[time, batch, in]`: `[time, batch, hidden]`."""
    from_inputs = (inputs @ tensors["weight_ih"].T + tensors["bias_ih"]).chunk(3, dim=2)
    weight, bias = tensors["weight_hh"].T, tensors["bias_hh"]
    hidden, states = torch.zeros_like(from_inputs[0][0]), []
    for to_r, to_z, to_n in zip(*(part.unbind() for part in from_inputs), strict=True):
        hidden_to_r, hidden_to_z, hidden_to_n = (hidden @ weight + bias).chunk(3, dim=1)
        r, z = torch.sigmoid(to_r + hidden_to_r), torch.sigmoid(to_z + hidden_to_z)
        n = torch.tanh(to_n + r * hidden_to_n)
        hidden = n + z * (hidden - n)
        states.append(hidden)
    return torch.stack(states)
