"""`hierarchical`, recomputed with NumPy from its equations alone."""

import math

import numpy as np

from optserve_server.optimizers import Phi, Shapes

SHAPES: Shapes = ((3, 4), (2,), (5,))


class Recomputed:
    """The equations, tensor by tensor, in float64."""

    def __init__(self, phi: Phi) -> None:
        self.w = {key: value.double().numpy() for key, value in phi.items()}
        self.tensors = [
            {"g": [], "h": np.zeros(8), "drift": 0.0, "align": np.zeros(2), "m": np.zeros((4, math.prod(shape)))}
            for shape in SHAPES
        ]
        self.losses: list[float] = []
        self.t, self.together, self.caution, self.reference = 0, 0.0, 0.0, 0.0
        self.slope, self.pending, self.expected, self.achieved = 0.0, 0.0, [], []
        self.reach = 0.0

    def step(self, gradients: np.ndarray, loss: float | None, horizon: float | None) -> np.ndarray:
        self.t += 1
        length = max(300.0, 2 * (self.t - 1)) if horizon is None else max(30.0, horizon)
        self.see_loss(loss, length)
        raw = np.split(gradients, np.cumsum([math.prod(shape) for shape in SHAPES])[:-1])
        for tensor, g in zip(self.tensors, raw, strict=True):
            self.follow(tensor, g)
        slope = sum(abs(g * tensor["a"]).sum() for tensor, g in zip(self.tensors, raw, strict=True))
        products, now, past = (sum(tensor[key] for tensor in self.tensors) for key in ("gm", "gg", "mm"))
        self.together = self.blend(self.together, products / math.sqrt(now * past + 1e-24), 0.9, self.t)
        updates = [self.update(tensor, slope, length, horizon) for tensor in self.tensors]
        self.slope = max(self.slope, min(slope, 2 * self.slope if self.slope else slope))
        self.pending -= sum((g * update).sum() for g, update in zip(raw, updates, strict=True))
        return np.concatenate(updates)

    @staticmethod
    def blend(mean, value, beta: float, count: int):
        return mean + (1 - beta) / (1 - beta**count) * (value - mean)

    @staticmethod
    def forgetting(values: list, beta: float) -> float:
        ages = beta ** np.arange(len(values))[::-1]
        return float((ages * values).sum() / ages.sum()) if values else 0.0

    def see_loss(self, loss: float | None, length: float) -> None:
        rested = min(0.0, self.caution + 40 / length)
        if loss is None:
            self.caution = rested
            return
        if self.losses:
            self.expected.append(self.pending)
            self.achieved.append(self.losses[-1] - loss)
            expected, achieved = self.forgetting(self.expected, 0.7), self.forgetting(self.achieved, 0.7)
            if expected and abs(achieved) <= 30 * abs(expected):
                self.reach = min(7.0, self.reach + math.log(2))
        self.pending = 0.0
        self.losses.append(loss)
        recent, first = self.forgetting(self.losses, 0.9), len(self.losses) == 1
        self.reference = recent if first else min(recent, self.reference + 0.02 * (recent - self.reference))
        allowed = 2 * self.deviation() + 0.5 * abs(self.losses[0] - self.reference)
        alarmed = len(self.losses) > 10 and recent > self.reference + allowed
        self.caution = max(-4.0, self.caution - 0.2) if alarmed else rested

    def deviation(self) -> float:
        pairs = [(self.forgetting(self.losses[:i], 0.9), self.losses[i]) for i in range(1, len(self.losses))]
        return self.forgetting([0.0, *(abs(loss - mean) for mean, loss in pairs)], 0.95)

    def follow(self, tensor: dict, g: np.ndarray) -> None:
        before, steps = tensor["m"].copy(), len(tensor["g"]) + 1
        if steps > 1:
            g = g / math.sqrt(max(1.0, (g**2).mean() / (100 * before[2].mean() + 1e-24)))
        tensor["g"].append(g)
        for row, (beta, power) in enumerate([(0.9, 1), (0.99, 1), (0.95, 2), (0.999, 2)]):
            tensor["m"][row] = sum(beta**age * past**power for age, past in enumerate(tensor["g"][::-1])) / sum(
                beta**age for age in range(steps)
            )
        m, slow_m, fast_v, v = tensor["m"]
        root = np.sqrt(v + 1e-24)
        now, past, slow_past = g / root, before[0] / root, before[1] / root
        tensor["a"], tensor["slow"], tensor["now"] = m / root, slow_m / root, now
        tensor["agile"] = m / np.sqrt(fast_v + 1e-24)
        tensor["gm"], tensor["gg"], tensor["mm"] = (now * past).sum(), (now**2).sum(), (past**2).sum()
        slow_cosine = (now * slow_past).sum() / math.sqrt(tensor["gg"] * (slow_past**2).sum() + 1e-24)
        tensor["cosine"] = np.array([tensor["gm"] / math.sqrt(tensor["gg"] * tensor["mm"] + 1e-24), slow_cosine])
        tensor["align"] = self.blend(tensor["align"], tensor["cosine"], 0.9, steps)

    def update(self, tensor: dict, slope: float, length: float, horizon: float | None) -> np.ndarray:
        w, t = self.w, self.t - 1
        m, _, fast_v, v = tensor["m"]
        change = (fast_v - v) / (fast_v + v + 1e-24)
        scale = max(abs(self.losses[0]), self.losses[0] - min(self.losses)) if self.losses else 0.0
        steepest = max(self.slope, slope)
        base = np.clip(4 + math.log(scale / steepest), -12, 5 + self.reach) if scale else 0.0
        y = np.array(
            [
                tensor["cosine"][0],
                *(2 * tensor["align"]),
                2 * self.together,
                np.log((tensor["a"] ** 2).mean() + 1e-4) / 3,
                np.log((tensor["slow"] ** 2).mean() + 1e-4) / 3,
                np.abs(change).mean(),
                math.log(min(4096, v.size)) / 8 - 0.5,
                *self.read_losses(),
                *(
                    (-1.0, 0.0)
                    if horizon is None
                    else (2 * min(1, t / horizon) - 1, math.log(max(0.01, 1 - t / horizon)) / 4)
                ),
                np.clip(math.log(length / 300) / 3, -1.2, 1.2),
                float(horizon is not None),
                10 / (10 + t),
                math.exp(-t / 4),
                base / 4,
                max(-16, math.log(slope / steepest)) / 4,
                math.log(sum(each["m"][0].size for each in self.tensors)) / 8 - 0.5,
                math.log(len(self.tensors)) / 3,
                self.read_achieved(0.7) if self.losses else 0.0,
            ]
        )
        hy = np.concatenate([tensor["h"], y])
        gate = 1 / (1 + np.exp(-(w["scheduler.gate.weight"] @ hy + w["scheduler.gate.bias"])))
        candidate = np.tanh(w["scheduler.candidate.weight"] @ hy + w["scheduler.candidate.bias"])
        tensor["h"] = (1 - gate) * tensor["h"] + gate * candidate
        hy = np.concatenate([tensor["h"], y])
        if horizon is None or t < horizon:
            way = np.tanh(2 * (w["rate.drift.weight"] @ hy + w["rate.drift.bias"])[0])
            tensor["drift"] = np.clip(tensor["drift"] + 5 / length * way, -5, 5)
        level = np.clip(2 * (w["rate.level.weight"] @ hy + w["rate.level.bias"])[0], -9, 5)
        rate = 0.01 * math.exp(np.clip(base + tensor["drift"] + level + self.caution, -20, 14))
        a, slow, now, agile = (tensor[key] for key in ("a", "slow", "now", "agile"))
        size = np.sqrt(v + 1e-24) / math.sqrt(v.mean() + 1e-24)
        features = np.stack(
            [
                *np.minimum(np.abs([a, slow, now, agile]), 5),
                np.clip(a * slow, -3, 3),
                np.clip(now * a, -3, 3),
                change,
                size / (1 + size),
            ]
        )
        context = w["coordinates.0.context"] @ tensor["h"] + w["coordinates.0.bias"]
        layer = np.maximum(w["coordinates.0.weight"] @ features + context[:, None], 0)
        layer = np.maximum(w["coordinates.1.weight"] @ layer + w["coordinates.1.bias"][:, None], 0)
        o = np.clip(w["coordinates.2.weight"] @ layer + w["coordinates.2.bias"][:, None], -4, 4)
        unit = m / math.sqrt((m**2).mean() + 1e-24)
        d = a * (1 + o[0] / 16) ** 8 + 0.5 * (o[1] * slow + o[2] * unit + o[3] * now + o[4] * agile)
        return -rate * np.clip(d, -10, 10)

    def read_losses(self) -> list[float]:
        if not self.losses:
            return [0.0] * 5
        recent, usual = self.forgetting(self.losses, 0.9), self.forgetting(self.losses, 0.98)
        expected = self.forgetting(self.expected, 0.95)
        trend = (recent - usual) / (self.deviation() + 1e-6 * abs(recent) + 1e-20)
        to_zero = math.log(abs(recent) / (abs(expected) + 1e-20))
        return [
            np.clip(trend, -3, 3) / 3,
            np.clip(math.log(abs(recent) / abs(self.losses[0])), -16, 16) / 4,
            np.clip(to_zero, -4, 10) / 5 if self.expected else 0.0,
            self.read_achieved(0.95),
            1.0,
        ]

    def read_achieved(self, decay: float) -> float:
        expected, achieved = self.forgetting(self.expected, decay), self.forgetting(self.achieved, decay)
        recent = self.forgetting(self.losses, 0.9)
        return np.clip(achieved / (abs(expected) + 1e-12 * abs(recent) + 1e-20), -2, 2) / 2
