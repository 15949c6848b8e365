"""One search step: a pure function of the state and two batches."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax

from asap_jax.layers.ops import Context
from asap_jax.methods import Architecture, Strategy, bilevel
from asap_jax.methods.relaxation import normalised_entropy
from asap_jax.networks.mixture import Dropout
from asap_jax.networks.models import Supernet, live_parameters
from asap_jax.searching.costs import Constraint
from asap_jax.searching.passes import Pass, chained
from asap_jax.searching.targets import Target
from asap_jax.training import optim
from asap_jax.training.feed import Batch
from asap_jax.training.losses import accuracy, all_finite, cross_entropy

# Fields of the state that each update changes.
WEIGHTS = "params", "omega_opt", "batch_stats"
ALPHAS = "arch", "alpha_opt", "batch_stats"


class Optimizers(NamedTuple):
    """optax transformations for the network's weights and the architecture parameters.

    virtual_step: see `bilevel.Point`; None if no method looks ahead.
    """

    omega: optax.GradientTransformation
    alpha: optax.GradientTransformation
    virtual_step: Callable | None = None


class SearchState(struct.PyTreeNode):
    """Everything a search carries from step to step.

    step: steps done, int32.
    params, batch_stats: the supernet's weights (omega) and running statistics.
    arch: alphas, masks and the strategy's own state.
    omega_opt, alpha_opt: states of the two optimizers.
    key: the search's random key; each step folds in its number.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    arch: Architecture
    omega_opt: Any
    alpha_opt: Any
    key: jax.Array

    CHANGING = "step", "params", "batch_stats", "arch", "omega_opt", "alpha_opt"


class StepKeys(NamedTuple):
    """The random keys of one step, one per purpose."""

    omega: jax.Array
    alpha: jax.Array
    augment_train: jax.Array
    augment_val: jax.Array


def step_keys(key, step) -> StepKeys:
    """The keys of `step`, derived from the search's key alone."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), 4))


def init_state(
    network: Supernet, strategy: Strategy, optimizers: Optimizers, key, image_shape
) -> SearchState:
    """The initial state, for images of `image_shape` [H, W, C]."""
    key_params, key_arch, key_steps = jax.random.split(key, 3)
    arch = strategy.init(key_arch)

    def begin(arch, key_params, key_steps):
        mixtures = strategy.mixture(arch, jnp.int32(0), key_arch)
        variables = network.init(key_params, jnp.zeros((1, *image_shape)), mixtures)
        return SearchState(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            arch=arch,
            omega_opt=optimizers.omega.init(variables["params"]),
            alpha_opt=optimizers.alpha.init(arch.alphas),
            key=key_steps,
        )

    return jax.jit(begin)(arch, key_params, key_steps)


def make_search_step(
    network: Supernet, strategy: Strategy, optimizers: Optimizers, **options
) -> Callable[[SearchState, Batch, Batch], tuple[SearchState, dict[str, jax.Array]]]:
    """Builds step(state, omega batch, alpha batch) -> (state, metrics); see `SearchStep`."""
    return chained(SearchStep(network, strategy, optimizers, **options).passes())


@dataclasses.dataclass(frozen=True, eq=False)
class SearchStep:
    """One search step: lines 4 to 9 of Algorithm 1, in the order of `strategy.updates`.

    For ASAP these are an update of omega, then, once the temperature is low enough, an update of
    the alphas and pruning. Both forward passes update the running statistics, as in DARTS.

    Attributes:
      network, strategy, optimizers: the supernet, the search method and the optimizers.
      class_weights: [classes], weights of both losses, or None.
      dtype: of the feature maps, see `ops.Context`.
      constraint, target: terms in the loss of the alphas; reported losses exclude them.
      drop_path: probability that an edge drops a sample, in both passes.
    """

    network: Supernet
    strategy: Strategy
    optimizers: Optimizers
    class_weights: Any = None
    dtype: str | None = None
    constraint: Constraint | None = None
    target: Target | None = None
    drop_path: float = 0.0

    def passes(self, learns: bool | None = None) -> tuple[Pass, ...]:
        """The passes of the step, in order.

        Args:
          learns: whether the alphas learn in this step; None to decide it inside the step.
        """
        updates, advance = self.strategy.updates, Pass("advance", ("step",), self.advance)
        both = tuple(dict.fromkeys(WEIGHTS + ALPHAS))
        if learns is None and self.fuses_updates:
            return Pass("fused", both, self.update_fused), advance
        if updates.joint and learns is False:
            rest = partial(self.update_jointly, learns=False)
            return Pass("joint, alphas rest", WEIGHTS, rest), advance
        learn = self.maybe_alphas if learns is None else self.update_alphas
        parts = {
            "omega": Pass("omega", WEIGHTS, self.update_omega),
            "alpha": Pass("alpha", ALPHAS, learn),
            "joint": Pass("joint", both, partial(self.update_jointly, learns=learns)),
        }
        order = [name for name in updates.order if name != "alpha" or learns is not False]
        return *(parts[name] for name in order), advance

    # The updates. Each is (state, omega batch, alpha batch) -> (state, metrics).

    def update_omega(self, state, train, val):
        """Line 4: updates omega on the training loss, with the alphas fixed."""
        key = step_keys(state.key, state.step).omega
        (value, (batch_stats, logits)), gradients = self.strategy.updates.omega(
            self.loss(state), self.point(state, train, val, key)
        )
        state = self.apply_omega_gradients(state, gradients, key).replace(batch_stats=batch_stats)
        return state, self.training_metrics(value, logits, train)

    def update_alphas(self, state, train, val):
        """Lines 6 to 9: updates the alphas on the validation loss, then prunes candidates."""
        key = step_keys(state.key, state.step).alpha
        (value, (batch_stats, _)), gradients = self.gradient(state, train, val, key)
        state = self.apply_alpha_gradients(state, gradients, key)
        return state.replace(batch_stats=batch_stats), {"val_loss": value}

    def maybe_alphas(self, state, train, val):
        """`update_alphas` in a step in which the alphas learn, else a no-op."""

        def rest(state):
            return state, {"val_loss": jnp.full((), jnp.nan, train.images.dtype)}

        learn = partial(self.update_alphas, train=train, val=val)
        return lax.cond(self.strategy.learns(state.step), learn, rest, state)

    def update_jointly(self, state, train, val, learns=None):
        """Updates omega and the alphas on one loss, at one point and with one sample."""
        key = step_keys(state.key, state.step).alpha
        (value, (batch_stats, logits)), (g_params, g_alphas) = self.gradient(state, train, val, key)

        def learn(state):
            return self.apply_alpha_gradients(state, g_alphas, key)

        def rest(state):
            return state

        if learns is None:
            learned = lax.cond(self.strategy.learns(state.step), learn, rest, state)
        else:
            learned = (learn if learns else rest)(state)
        moved = self.apply_omega_gradients(state, g_params, key)
        state = moved.replace(
            batch_stats=batch_stats, arch=learned.arch, alpha_opt=learned.alpha_opt
        )
        return state, self.training_metrics(value, logits, train)

    @property
    def fuses_updates(self) -> bool:
        """Whether `update_fused` computes the step: first-order gradients by the plan "loop".

        A GPU uses the other plan; there the turns would be conditionals.
        """
        return self.strategy.updates.alternates_first_order and self.network.plan.name == "loop"

    def update_fused(self, state, train, val):
        """`update_omega` and `update_alphas` as two turns of one loop, with the same results.

        The network is then compiled once for both. Each turn computes both gradients on its own
        batch and uses one; the gradients of the kernels, expensive and not needed for the alphas,
        are skipped in the alphas' turn (`Context.kernel_gradients`).
        """
        alphas_first = self.strategy.updates.order[0] == "alpha"
        batches = jax.tree.map(lambda *pair: jnp.stack(pair), train, val)
        keys = jnp.stack(step_keys(state.key, state.step)[:2])
        both = jnp.asarray(self.strategy.learns(state.step), jnp.int32)
        first, last = (1 - both, 2) if alphas_first else (0, 1 + both)

        def turn(i, carry):
            state, metrics = carry
            half = 1 - i if alphas_first else i  # 0 for omega, 1 for alpha
            batch = jax.tree.map(lambda pair: pair[half], batches)
            (value, (batch_stats, logits)), gradients = jax.value_and_grad(
                self.loss(state, kernel_gradients=half == 0), (0, 1), has_aux=True
            )(state.params, state.arch.alphas, state.batch_stats, batch, keys[half])
            state = lax.cond(
                half == 0,
                lambda state: self.apply_omega_gradients(state, gradients[0], keys[0]),
                lambda state: self.apply_alpha_gradients(state, gradients[1], keys[1]),
                state,
            ).replace(batch_stats=batch_stats)
            measured = {"loss": value, "accuracy": accuracy(logits, batch.labels)}
            return state, jax.tree.map(lambda m, new: m.at[half].set(new), metrics, measured)

        nothing = jnp.full(2, jnp.nan, train.images.dtype)
        state, metrics = lax.fori_loop(
            first, last, turn, (state, {"loss": nothing, "accuracy": nothing})
        )
        return state, {
            "train_loss": metrics["loss"][0],
            "train_accuracy": metrics["accuracy"][0],
            "val_loss": metrics["loss"][1],
        }

    def advance(self, state: SearchState, train, val):
        """Advances the step counter and computes the metrics."""
        strategy, arch = self.strategy, state.arch
        key = step_keys(state.key, state.step).alpha
        mixtures = strategy.mixture(arch, state.step, key)
        learned = jnp.logical_and(strategy.updates.has_val_loss, strategy.learns(state.step))
        metrics = strategy.readings(state.step) | strategy.measured(arch)
        metrics |= {
            "candidates_left": sum((mask.sum() for mask in arch.masks.values()), jnp.int32(0)),
            **entropies(strategy, arch, mixtures),
            **({} if self.constraint is None else {"cost": self.constraint.expected(mixtures)}),
            **self.size(arch, mixtures),
            **self.regularization(arch, state.step),
            "finished": strategy.finished(arch),
            "alphas_learned": learned,
            "alphas_finite": all_finite((arch.alphas, arch.extra)),
        }
        return state.replace(step=state.step + 1), metrics

    # What the updates are built from.

    def loss(self, state, kernel_gradients=None):
        """Builds loss(params, alphas, batch_stats, batch, key), for the state's masks and step.

        `kernel_gradients`, a bool scalar or None for yes, says whether those are needed.
        """
        strategy, twice = self.strategy, self.strategy.updates.differentiations > 1
        context = Context(train=True, twice=twice, dtype=self.dtype)

        def loss(params, alphas, batch_stats, batch, key):
            mixtures = strategy.mixture(state.arch._replace(alphas=alphas), state.step, key)
            if self.drop_path:
                # A key distinct from those that the strategy draws with.
                dropout = Dropout(jax.random.fold_in(key, 0x0D), jnp.float32(self.drop_path))
                mixtures = {c: mix._replace(drop_path=dropout) for c, mix in mixtures.items()}
            logits, new = self.network.apply(
                {"params": params, "batch_stats": batch_stats},
                batch.images,
                mixtures,
                context,
                kernel_gradients,
                mutable=["batch_stats"],
            )
            value = cross_entropy(logits, batch.labels, self.class_weights)
            return value, (new["batch_stats"], logits)

        return loss

    def gradient(self, state, train, val, key):
        """The method's own gradient, for updates of which the alphas are part."""
        gradient = self.strategy.updates.gradient
        assert gradient is not None  # without alphas, no pass comes here
        return gradient(self.loss(state), self.point(state, train, val, key))

    def point(self, state, train, val, key):
        """The point at which a method takes its gradient."""
        return bilevel.Point(
            state.params,
            state.arch.alphas,
            state.batch_stats,
            state.omega_opt,
            state.step,
            train,
            val,
            key,
            self.optimizers.virtual_step,
        )

    def apply_omega_gradients(self, state, gradients, key):
        """Applies omega's optimizer to the weights of the candidates that are computed."""
        trained = self.strategy.trained or self.strategy.mixture
        params, omega_opt = optim.update_where(
            self.optimizers.omega,
            live_parameters(self.network, state.params, trained(state.arch, state.step, key)),
            gradients,
            state.omega_opt,
            state.params,
        )
        return state.replace(params=params, omega_opt=omega_opt)

    def apply_alpha_gradients(self, state, gradients, key):
        """Applies the alphas' optimizer, then the strategy's pruning."""
        strategy = self.strategy
        for term in self.terms(state.step, key):
            added = jax.grad(term)(state.arch.alphas, state.arch)
            gradients = jax.tree.map(jnp.add, gradients, added)
        alphas, alpha_opt = optim.update_where(
            self.optimizers.alpha,
            strategy.live(state.arch, state.step, key),
            gradients,
            state.alpha_opt,
            state.arch.alphas,
        )
        arch = state.arch._replace(alphas=alphas)
        pruned = strategy.prune(arch, gradients, state.step)
        # NaN compares as false with every threshold and must not prune anything.
        sound = all_finite(alphas)
        masks = jax.tree.map(lambda new, old: jnp.where(sound, new, old), pruned.masks, arch.masks)
        return state.replace(arch=pruned._replace(masks=masks), alpha_opt=alpha_opt)

    def terms(self, step, key) -> list[Callable]:
        """What is added to the loss of the alphas: functions (alphas, architecture) -> scalar.

        They depend neither on omega nor on images.
        """
        strategy, constraint, target = self.strategy, self.constraint, self.target
        regularizer, found = strategy.regularizer, []

        def mixtures(alphas, arch):
            return strategy.mixture(arch._replace(alphas=alphas), step, key)

        if constraint is not None:
            found.append(
                lambda alphas, arch: constraint.weight * constraint.expected(mixtures(alphas, arch))
            )
        if target is not None:
            found.append(
                lambda alphas, arch: target.penalty(
                    self.distribution(arch._replace(alphas=alphas), mixtures(alphas, arch))
                )
            )
        if regularizer is not None:
            found.append(lambda alphas, arch: regularizer(arch._replace(alphas=alphas), step))
        return found

    def distribution(self, arch, mixtures):
        """The method's distribution over the candidates, or the mixtures if it has none."""
        known = self.strategy.distribution
        return mixtures if known is None else known(arch, mixtures)

    def size(self, arch, mixtures) -> dict[str, jax.Array]:
        """{"size": relative to the target}, if there is one."""
        if self.target is None:
            return {}
        return {"size": self.target.ratio(self.distribution(arch, mixtures))}

    def regularization(self, arch, step) -> dict[str, jax.Array]:
        """{"regularizer": its value}, if the strategy has one."""
        regularizer = self.strategy.regularizer
        return {} if regularizer is None else {"regularizer": regularizer(arch, step)}

    def training_metrics(self, value, logits, train):
        return {"train_loss": value, "train_accuracy": accuracy(logits, train.labels)}


def entropies(strategy: Strategy, arch: Architecture, mixtures) -> dict[str, jax.Array]:
    """Normalized entropies of the strategy's distribution: per cell type, and their mean."""
    if strategy.distribution is None:
        return {}
    distribution = strategy.distribution(arch, mixtures)
    of_cells = {cell: normalised_entropy(mix.weights) for cell, mix in distribution.items()}
    return {
        "entropy": jnp.mean(jnp.stack(list(of_cells.values()))),
        **{f"entropy_{cell}": entropy for cell, entropy in of_cells.items()},
    }
