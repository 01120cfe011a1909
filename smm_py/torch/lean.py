"""The modules in PyTorch operations: for devices without the C core, and for other formulas.

Formulas as in docs/math.md. Squared distances and variances are expanded into matrix products,
centred at a point amid each image's data, so that nothing of size B x K x N x D is ever made.
float32 cancels only where clusters lie more than some hundred of their standard deviations apart:
variances and likelihoods then lose digits that the C core retains. The plain Gaussian mixture,
whose variances may come close to 0, takes differences, slot by slot.

To change a formula, derive from `Formulas`, override a method, and name the class in the module,
whose calls then run on every device so:

>>> import torch
>>> from smm_py.torch import Formulas, SlotMixture
>>> class Smoothed(Formulas):
...     def new_prior(self, gamma):
...         share = super().new_prior(gamma)
...         return (share + 1 / share.shape[1]) / 2
>>> class SmoothedMixture(SlotMixture):
...     formulas = Smoothed
>>> SmoothedMixture(dim=8, num_slots=3)(torch.rand(2, 20, 8)).shape
torch.Size([2, 3, 8])
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .._arrays import MaybeNone
from .._spec import Spec

Parameters = Mapping[str, Tensor]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
State = tuple[Tensor, Tensor | None, Tensor]  # mean (or slots), log_std, prior


class Output(NamedTuple):
    """Outputs of a module: B images, N inputs, K slots of width D; see `smm_py.Output`.

    All but iterations and history carry gradients, and the reference variant's state does not.
    """

    slots: Tensor
    mean: Tensor | MaybeNone = None
    variance: Tensor | MaybeNone = None
    prior: Tensor | MaybeNone = None
    log_likelihood: Tensor | MaybeNone = None
    attention: Tensor | MaybeNone = None
    iterations: Tensor | MaybeNone = None
    state: dict[str, Tensor] | MaybeNone = None
    history: dict[str, Tensor] | MaybeNone = None


def _linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return F.linear(x, p[name + ".weight"], p.get(name + ".bias"))


class _NarrowLinear(torch.autograd.Function):
    """x W' + b of factors rounded to bfloat16, forward and backward, and float sums."""

    generate_vmap_rule = True

    @staticmethod
    def rounded(x: Tensor) -> Tensor:
        return x.to(torch.bfloat16).to(x.dtype)

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(_NarrowLinear.rounded(x), _NarrowLinear.rounded(weight), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = map(_NarrowLinear.rounded, ctx.saved_tensors)
        narrow = _NarrowLinear.rounded(d_y)
        d_weight = narrow.flatten(0, -2).mT @ x.flatten(0, -2)
        return narrow @ weight, d_weight, d_y.flatten(0, -2).sum(0) if ctx.biased else None


def _map(spec: Spec, p: Parameters, name: str, x: Tensor) -> Tensor:
    """A linear map, in the precision that the options ask for.

    Those that it takes in float32 in any case, a mixture's queries and the output, are `_linear`.
    """
    weight, bias = p[name], p.get(name.replace("weight", "bias"))
    if spec.precision != "bfloat16":
        return F.linear(x, weight, bias)
    if x.device.type == "cpu":
        return cast(Tensor, _NarrowLinear.apply(x, weight, bias))
    narrow = torch.bfloat16
    return F.linear(x.to(narrow), weight.to(narrow), None if bias is None else bias.to(narrow)).to(
        x.dtype
    )


def _mlp(p: Parameters, name: str, x: Tensor) -> Tensor:
    return _linear(p, name + ".2", F.relu(_linear(p, name + ".0", x)))


def is_traced() -> bool:
    """Whether a graph is being made."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def least_variance(dtype: torch.dtype) -> float:
    """No variance is taken to be smaller, as in the C core."""
    return 1e-24 if dtype == torch.float32 else 1e-200


@torch.no_grad()
def channel_variances(x: Tensor, mask: Tensor | None) -> Tensor:
    """Variance of every channel over each image's real inputs, (B, D)."""
    first, count = x[:, :1], cast("int | Tensor", x.shape[1])
    if mask is not None:
        at = mask.to(torch.uint8).argmax(1)[:, None, None]
        first, count = x.gather(1, at.expand(-1, -1, x.shape[2])), mask.sum(1)[:, None]
        x = torch.where(mask[..., None], x, first)
    x = x - first  # exactly 0 in a constant channel, and where masked
    deviation = (x - (x.sum(1) / count)[:, None]).square()
    if mask is not None:
        deviation = torch.where(mask[..., None], deviation, 0)
    return deviation.sum(1) / count


def variance_floors(spec: Spec, x: Tensor, mask: Tensor | None) -> Tensor | None:
    """What is added to the variances of each image (B, D), or None where the option says it.

    As in the NumPy modules (`smm_py._draw`).
    """
    if spec.kind != "gaussian_mixture" or spec.var_floor is not None:
        return None
    variance = channel_variances(x.to(DTYPES[spec.dtype]), mask)
    largest = variance.amax(1, keepdim=True)
    variance = torch.where(variance > 0, variance, torch.where(largest > 0, largest, 1))
    return (1e-12 * variance).clamp_min(torch.finfo(variance.dtype).tiny)


def _scaled_distance(a: Tensor, centre: Tensor, weight: Tensor) -> Tensor:
    """sum_d (a - centre)^2 weight, (B,N), of one slot's centre and weight (B,D)."""
    return ((a - centre[:, None]).square() * weight[:, None]).sum(-1)


def _variance(a: Tensor, centre: Tensor, weight: Tensor) -> Tensor:
    """sum_n weight (a - centre)^2, (B,D), of one slot's centre (B,D) and weight (B,N)."""
    return ((a - centre[:, None]).square() * weight[..., None]).sum(1)


def _of_each_slot(function: Callable[..., Tensor], a: Tensor, *rows: Tensor) -> list[Tensor]:
    """function(a, row of each) for each slot; backward recomputes its (B,N,D) arrays."""
    plain = not is_traced() and not torch._C._are_functorch_transforms_active()
    if torch.is_grad_enabled() and plain:
        function = functools.partial(
            checkpoint, function, use_reentrant=False, preserve_rng_state=False
        )
    return [function(a, *slot) for slot in zip(*(r.unbind(1) for r in rows))]


def _log(prior: Tensor) -> Tensor:
    """Logarithm of a prior; that of 0 has no gradient."""
    dead = prior == 0
    return prior.masked_fill(dead, 1).log().masked_fill(dead, -math.inf)


def _where(moving: Tensor, new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """The new state of the images that move, the old one of others."""
    if new is None or old is None:
        return None
    return torch.where(moving.view(-1, *[1] * (new.dim() - 1)), new, old)


def _detached(state: State) -> State:
    return cast(State, tuple(a if a is None else a.detach() for a in state))


def _with_gradient_of(initial: tuple[Tensor, Tensor | None, Tensor | None], state: State) -> State:
    """The state, whose gradient the initial state, as far as it was given, gets too."""
    pairs = zip(state, initial)
    passed = [a if a is None or b is None else a + (b - b.detach()) for a, b in pairs]
    return cast(State, tuple(passed))


class Formulas:
    """One call of a module; the keys and values are computed when it is made, `run` iterates.

    The methods that stand for a formula may be overridden: `e_step`, `weights`, `m_step`,
    `new_prior`, `update`. K slots of width D; Slot Attention's slots pass as `mean`.

    Parameters
    ----------
    spec : Spec
        The module's options, as attributes.
    x : (B, N, input_dim)
        Of the module's dtype, or bfloat16.
    p : mapping
        Name -> parameter, as in `state_dict`.
    mask : (B, N) bool or None
        True where an input is real.

    Attributes
    ----------
    keys, values : (B, N, D)
        What slots are compared with, and what they are means of; Slot Attention (B, N, qkv_dim).
    active : (B, K) bool
        Slots that take part.
    last : bool
        Whether a step is the call's last.
    """

    active: Tensor
    last = False

    def __init__(self, spec: Spec, x: Tensor, p: Parameters, mask: Tensor | None) -> None:
        self.spec, self.p = spec, p
        x = x.to(DTYPES[spec.dtype]) if spec.bfloat16_inputs else x
        floors = variance_floors(spec, x, mask)
        floor = spec.eps if spec.is_reference else spec.var_floor or 0.0
        self.floor = floor if floors is None else floors[:, None]
        self.real = None if mask is None else mask[..., None]
        if self.real is not None:
            # masked rows keep their value for the attention alone: no gradient, and no NaN in a sum
            x = torch.where(self.real, x, torch.nan_to_num(x.detach()))
        h = x
        if spec.kind == "slot_attention":
            h = self._norm("norm_input", x)
        elif spec.kind == "slot_mixture":
            if spec.input_mlp:
                h = _map(spec, p, "mlp_input.0.weight", self._norm("norm_input", x))
                h = _map(spec, p, "mlp_input.2.weight", F.relu(h))
            h = self._norm("norm_kv", h) if spec.norm_kv or spec.is_reference else h
        self.keys = _map(spec, p, "to_k.weight", h) if spec.has_network else h
        own = spec.kind == "slot_attention" or spec.is_reference
        if spec.is_fair:
            self.values = self.keys
        else:
            self.values = _map(spec, p, "to_v.weight", h) if own else h
        self.count: int | Tensor = x.shape[1] if mask is None else mask.sum(1)[:, None]
        # centres of the expansions: points amid the data, which no result depends on
        self.key_centre = self._mean(self.keys)
        self.value_centre = self._mean(self.values)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.p[name + ".weight"], self.p[name + ".bias"]
        spec = self.spec  # it has the width as a number, which the older ONNX exporter needs
        of_inputs = name == "norm_input" or (name == "norm_kv" and not spec.input_mlp)
        width = spec.input_dim if of_inputs else spec.dim
        width *= 1 + (name == "norm_slots" and spec.is_mixture)
        return F.layer_norm(x, (width,), weight, bias, spec.norm_eps)

    def _mean(self, a: Tensor) -> Tensor:
        a = a.detach()
        if self.real is None:
            return a.mean(1, keepdim=True)
        count = cast(Tensor, self.count)
        return torch.where(self.real, a, 0).sum(1, keepdim=True) / count[..., None]

    def run(
        self,
        mean: Tensor | None,
        log_std: Tensor | None,
        prior: Tensor | None,
        indices: Tensor | None,
        slot_mask: Tensor | None,
        num_iters: int,
        attention: bool,
        history: bool = False,
    ) -> Output:
        """All steps from an initial state (B, K, D), or from the inputs at indices (B, K)."""
        spec = self.spec
        if indices is not None:
            rows = indices[..., None].expand(-1, -1, spec.dim)
            mean = self.values.detach().gather(1, rows)
        first = cast(Tensor, mean)
        if slot_mask is None:
            slot_mask = torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)
        self.active = slot_mask
        if prior is not None:
            prior = torch.where(self.active, prior, 0)
        self.uniform = self.active.to(self.keys.dtype) / self.active.sum(1, keepdim=True)
        initial = (first, log_std, prior)
        state: State = (first, log_std, self.uniform if prior is None else prior)
        moving = torch.ones_like(self.active[:, 0])
        iterations = torch.full_like(moving, 1 - spec.is_reference, dtype=torch.int64)
        steps: list[dict[str, Tensor]] = []
        every = spec.gradient == "full" or spec.is_fair
        with torch.set_grad_enabled(torch.is_grad_enabled() and every):
            for _ in range(num_iters + spec.is_reference - 1):
                new, _, density = self.step(*state)
                iterations = iterations + moving
                still = None
                if spec.tol:
                    still = self.movement(new[0], state[0]) > spec.tol
                    new = cast(State, tuple(_where(moving, a, b) for a, b in zip(new, state)))
                    moving = moving & still
                if history:
                    steps.append(self.found(new, state, density))
                state = new
        if spec.gradient != "full":
            prior = state[2]  # of the reference variants' other class, which has a gradient
            state = _detached(state)
            state = (*state[:2], prior) if spec.is_fair else state
        if spec.gradient == "bilevel":
            state = _with_gradient_of(initial, state)
        self.last = True
        new, gamma, density = self.step(*state)
        if history and not spec.is_reference:
            steps.append(self.found(new, state, density))
        if spec.gradient == "straight-through":
            new = _with_gradient_of(initial, new)
        result = self.result(*new, gamma if attention else None, density, iterations)
        if history:
            result = result._replace(history=self.history(steps, iterations))
        if spec.is_reference:  # the extra step leads to no further one
            new = _detached(state)
        return result._replace(state=dict(zip(spec.state, (a for a in new if a is not None))))

    def step(
        self, mean: Tensor, log_std: Tensor | None, prior: Tensor
    ) -> tuple[State, Tensor, Tensor | None]:
        """The next state, and this step's responsibilities and log prior + log density."""
        gamma, hidden, density = self.e_step(mean, log_std, prior)
        mean, log_std = self.m_step(gamma, hidden, mean, log_std)
        if self.spec.is_reference and not self.spec.is_fair:
            prior = self.uniform / (1 + self.spec.eps * self.uniform.amax(1, keepdim=True))
        elif self.spec.prior == "uniform" and not self.spec.is_fair:
            prior = self.uniform
        elif self.spec.is_mixture:
            prior = self.new_prior(gamma)
        return (mean, log_std, prior), gamma, density

    def found(self, new: State, old: State, density: Tensor | None) -> dict[str, Tensor]:
        """What a step has found: its entries of `history`."""
        entries = {"movement": self.movement(new[0], old[0])}
        if self.spec.is_mixture:
            entries["prior"] = new[2].detach()
        if density is not None:
            entries["log_likelihood"] = self.log_likelihood(density.detach())
        return entries

    def history(self, steps: list[dict[str, Tensor]], iterations: Tensor) -> dict[str, Tensor]:
        """The steps' entries (B, T, ...). An image that has stopped took its last step with all."""
        found = {name: torch.stack([s[name] for s in steps], 1) for name in steps[0]}
        if not self.spec.tol:
            return found
        step, last = torch.arange(1, len(steps) + 1, device=iterations.device), iterations[:, None]
        for name, value in found.items():
            late = (step >= last).view(*value.shape[:2], *[1] * (value.dim() - 2))
            if not self.spec.is_reference:  # whose last one is left out
                found[name] = torch.where(late, value[:, -1:], value)
        found["movement"] = torch.where(step > last, 0, found["movement"])
        return found

    def movement(self, new: Tensor, old: Tensor) -> Tensor:
        """The largest movement of an image's active slots, root mean square over channels: (B,)."""
        moved = (new - old).detach().square().mean(-1).sqrt()
        return torch.where(self.active, moved, 0).amax(1)

    def new_prior(self, gamma: Tensor) -> Tensor:
        """Mean responsibility of each slot (B,K)."""
        return self._real(gamma).sum(1) / self.count

    def log_likelihood(self, density: Tensor) -> Tensor:
        """Sum over real inputs of the log of the mixture's density, (B,)."""
        return self._real(torch.logsumexp(density, -1, keepdim=True)).sum((1, 2))

    def _real(self, gamma: Tensor) -> Tensor:
        return gamma if self.real is None else torch.where(self.real, gamma, 0)

    def e_step(
        self, mean: Tensor, log_std: Tensor | None, prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Assign inputs to slots.

        Parameters
        ----------
        mean : (B, K, D)
        log_std : (B, K, D), or None where slots have no variance
        prior : (B, K)

        Returns
        -------
        responsibilities : (B, N, K); Slot Attention (B, heads, N, K)
        hidden : (B, K, D)
            The GRU's hidden state.
        density : (B, N, K) or None
            Log prior + log density, where there is one.
        """
        spec, p = self.spec, self.p
        if spec.kind == "slot_attention":
            normed = self._norm("norm_slots", mean)
            hidden = normed if spec.norm_hidden else mean
            return self.attend(_map(spec, p, "to_q.weight", normed)), hidden, None
        q, s = mean, log_std
        if spec.slot_norm or spec.is_reference:
            both = torch.cat([mean, cast(Tensor, log_std)], -1)
            q, s = self._norm("norm_slots", both).chunk(2, -1)
        hidden = q if spec.is_reference or spec.norm_hidden else mean
        q = _linear(p, "to_q", q) if spec.has_network else q
        if spec.is_reference:
            s = F.linear(cast(Tensor, s), p["to_q.weight"])
        distance = self.distances(q, s)
        inactive = ~self.active[:, None]
        if spec.kind == "kmeans":
            logits = (-spec.scale * distance).masked_fill(inactive, -math.inf)
            return logits.softmax(-1), hidden, None
        if spec.is_reference:
            # the log of exp(-scale distance) + eps
            low = math.log(spec.eps)
            logits = F.softplus(-spec.scale * distance - low, threshold=1e3) + low
            return (logits + _log(prior)[:, None]).softmax(-1), hidden, None
        log_det = cast(Tensor, s).sum(-1)[:, None]
        log_prior = _log(prior)[:, None].masked_fill(inactive, -math.inf)
        gamma = (-spec.temperature * (0.5 * distance + log_det) + log_prior).softmax(-1)
        density = log_prior - 0.5 * (distance + spec.dim * math.log(2 * math.pi)) - log_det
        return gamma, hidden, density

    def attend(self, q: Tensor) -> Tensor:
        """Slot Attention's responsibilities, one map for each head: (B,h,N,K)."""
        keys, q = (a.unflatten(-1, (self.spec.heads, -1)).transpose(1, 2) for a in (self.keys, q))
        logits = keys @ q.transpose(-1, -2) * self.spec.scale
        masked: Tensor = logits.masked_fill(~self.active[:, None, None], -math.inf)
        if not self.spec.joint_softmax:
            return masked.softmax(-1)
        heads = masked.transpose(1, 2)
        return heads.flatten(2).softmax(-1).view(heads.shape).transpose(1, 2)

    def distances(self, q: Tensor, log_std: Tensor | None) -> Tensor:
        """sum_d (k - q)^2 e^{-2 log_std}, (B,N,K), by three products."""
        if self.spec.kind == "gaussian_mixture":
            weight = torch.exp(-2 * cast(Tensor, log_std))
            return torch.stack(_of_each_slot(_scaled_distance, self.keys, q, weight), -1)
        keys, q = self.keys - self.key_centre, q - self.key_centre
        if log_std is None:
            return (
                (keys * keys).sum(-1, keepdim=True)
                - 2 * keys @ q.transpose(-1, -2)
                + (q * q).sum(-1)[:, None]
            )
        weight = torch.exp(-2 * log_std)
        return (
            (keys * keys) @ weight.transpose(-1, -2)
            - 2 * keys @ (q * weight).transpose(-1, -2)
            + (q * q * weight).sum(-1)[:, None]
        )

    def weights(self, gamma: Tensor) -> Tensor:
        """Responsibilities normalised over real inputs, or otherwise as `update` says."""
        spec, real = self.spec, self.real
        if real is not None:
            real = real if gamma.dim() == 3 else real[:, None]
            gamma = torch.where(real, gamma, 0)
        # ONNX's optimizer drops a constant as small as eps where it is added to every weight
        eps = 0.0 if spec.is_reference else spec.eps
        count = self.count
        if isinstance(count, Tensor):
            count = count.to(gamma.dtype).view(-1, *[1] * (gamma.dim() - 1))
        if spec.update in ("constant", "sum"):
            return gamma / count if spec.update == "constant" else gamma
        total = gamma.sum(-2, keepdim=True) + eps * (1 if spec.eps_in == "total" else count)
        if not eps and spec.has_network:
            return gamma / (total + (total == 0))
        if not eps:  # a slot of hardly any weight has none, as in the C core
            empty = total < (1e-30 if total.dtype == torch.float32 else 1e-290)
            return torch.where(empty, 0, gamma) / torch.where(empty, 1, total)
        w = gamma / total
        if spec.eps_in == "weights":
            w = w + eps / total
            w = w if real is None else torch.where(real, w, 0)
        return w * (spec.num_slots / w.shape[-1]) if spec.update == "scaled-mean" else w

    def m_step(
        self, gamma: Tensor, hidden: Tensor, mean: Tensor, log_std: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The next mean and log standard deviation, if any, from what `e_step` returns."""
        spec = self.spec
        w = self.weights(gamma)
        if spec.kind == "slot_attention":
            values = self.values.unflatten(-1, (spec.heads, -1)).transpose(1, 2)
            found = (w.transpose(-1, -2) @ values).transpose(1, 2).flatten(-2)
            if spec.combine_heads:
                found = _map(spec, self.p, "combine_heads.weight", found)
            return self.keep(self.update(found, hidden), mean), None
        values = self.values - self.value_centre
        first = w.transpose(-1, -2) @ values
        found = first + self.value_centre
        new = self.update(found, hidden) if spec.has_network else found
        # a slot without any weight, as can be in clustering with eps = 0, retains its state
        taken = None if spec.has_network or spec.eps else (w != 0).any(1)
        if not spec.is_mixture:
            return self.keep(new, mean, taken), None
        if spec.has_network:
            variance = (w.transpose(-1, -2) @ (values * values) - first * first).clamp_min(0) + (
                found - new
            ) ** 2
        else:
            variance = torch.stack(
                _of_each_slot(_variance, self.values, found, w.transpose(-1, -2)), 1
            )
        least = least_variance(variance.dtype)
        new_log_std = 0.5 * torch.log((variance + self.floor).clamp_min(least))
        return self.keep(new, mean, taken), self.keep(new_log_std, cast(Tensor, log_std), taken)

    def keep(self, new: Tensor, old: Tensor, taken: Tensor | None = None) -> Tensor:
        """The new state of active slots (of those that are taken (B,K)), the old one of others."""
        if self.spec.update_masked:
            return new
        chosen = self.active if taken is None else self.active & taken
        return torch.where(chosen[..., None], new, old)

    def update(self, m: Tensor, hidden: Tensor) -> Tensor:
        """GRU and residual MLP (PyTorch's GRUCell for any number of leading dimensions)."""
        spec, p = self.spec, self.p
        if spec.gru:
            i = _map(spec, p, "gru.weight_ih", m).chunk(3, -1)
            g = _map(spec, p, "gru.weight_hh", hidden).chunk(3, -1)
            r, z = torch.sigmoid(i[0] + g[0]), torch.sigmoid(i[1] + g[1])
            n = torch.tanh(i[2] + r * g[2])
            h = n + z * (hidden - n)
        else:
            h = hidden + m
        if spec.slot_mlp == "never" or (spec.slot_mlp == "not-last" and self.last):
            return h
        activation = F.gelu if spec.activation == "gelu" else F.relu
        inner = activation(_map(spec, p, "mlp.0.weight", self._norm("norm_mlp", h)))
        return h + _map(spec, p, "mlp.2.weight", inner)

    def result(
        self,
        mean: Tensor,
        log_std: Tensor | None,
        prior: Tensor,
        gamma: Tensor | None,
        density: Tensor | None,
        iterations: Tensor,
    ) -> Output:
        spec, p = self.spec, self.p
        if gamma is not None:
            if gamma.dim() == 4:
                gamma = gamma.sum(1) if spec.head_attention == "sum" else gamma.mean(1)
            gamma = gamma if self.real is None else torch.where(self.real, gamma, gamma.detach())
        if log_std is None:
            return Output(mean, attention=gamma, iterations=iterations)
        variance = torch.exp(2 * log_std)
        slots = torch.cat([mean, variance], -1)
        if spec.has_network and spec.reduce:
            slots = (
                _mlp(p, "to_out", torch.cat([mean, log_std], -1))
                if spec.is_reference
                else _linear(p, "to_out", slots)
            )
        likelihood = None if density is None else self.log_likelihood(density)
        return Output(slots, mean, variance, prior, likelihood, gamma, iterations)
