"""One step of a search: a pure function of the state and two batches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from asap_jax import bilevel, optim
from asap_jax.costs import Constraint
from asap_jax.losses import all_finite, cross_entropy
from asap_jax.networks import Supernet, live_parameters
from asap_jax.ops import Context
from asap_jax.relaxation import Dropout, normalised_entropy
from asap_jax.strategies import Architecture, Strategy


class Batch(NamedTuple):
    """images [N, H, W, C] float, labels [N] int32."""

    images: jax.Array
    labels: jax.Array


class Optimizers(NamedTuple):
    """optax transformations of the network's weights and of the architecture parameters.

    virtual_step: see `bilevel.Point`; None where no method looks ahead.
    """

    omega: optax.GradientTransformation
    alpha: optax.GradientTransformation
    virtual_step: Callable | None = None


@flax.struct.dataclass
class SearchState:
    """Everything a search carries from step to step.

    step: steps done, int32.
    params, batch_stats: the supernet's weights (omega) and running statistics.
    arch: alphas, masks and the strategy's own state.
    omega_opt, alpha_opt: optimizer states, apart.
    key: the search's random key; each step folds its number in.
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
    """The random keys of one step, each for one use."""

    omega: jax.Array
    alpha: jax.Array
    augment_train: jax.Array
    augment_val: jax.Array


def step_keys(key, step) -> StepKeys:
    """The keys of `step`, from the search's key alone."""
    return StepKeys(*jax.random.split(jax.random.fold_in(key, step), 4))


def init_state(
    network: Supernet, strategy: Strategy, optimizers: Optimizers, key, image_shape
) -> SearchState:
    """The state before the first step, for images of `image_shape` [H, W, C]."""
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


def halves_are_turns(network: Supernet, strategy: Strategy) -> bool:
    """Whether a step computes the omega and the alpha half as turns of one loop."""
    gradients = strategy.alpha_gradient, strategy.omega_gradient
    plain = gradients == (bilevel.first_order, bilevel.omega_of_train)
    return plain and not strategy.single_level and network.plan.name == "loop"


def make_search_step(
    network: Supernet,
    strategy: Strategy,
    optimizers: Optimizers,
    axis_name: str | None = None,
    class_weights=None,
    dtype: str | None = None,
    constraint: Constraint | None = None,
    drop_path: float = 0.0,
) -> Callable[[SearchState, Batch, Batch], tuple[SearchState, dict[str, jax.Array]]]:
    """Builds step(state, omega batch, alpha batch) -> (state, metrics).

    Algorithm 1's lines 4 to 9: an omega step; then, where the strategy learns, an alpha step and
    pruning. The running statistics follow both passes, as in DARTS. With `axis_name` the batches
    are one device's part; batch statistics and gradients are those of the whole. `class_weights`
    [classes] weigh both losses. `dtype` is that of the maps, see `ops.Context`. `constraint` is
    added to the loss that the alphas learn from; the losses of the metrics are without it.
    `drop_path` is the probability with which an edge drops a sample, in both passes.
    """
    options = network, strategy, optimizers, axis_name, class_weights, dtype, constraint, drop_path
    return in_turn(_passes(*options, learns=None))


class Pass(NamedTuple):
    """A part of a step.

    name: by which it is told from the other parts.
    changes: the fields of the state that it changes.
    run: (state, omega batch, alpha batch) -> (state, its part of the metrics).
    """

    name: str
    changes: tuple[str, ...]
    run: Callable[[SearchState, Batch, Batch], tuple[SearchState, dict[str, jax.Array]]]


def make_passes(
    network: Supernet,
    strategy: Strategy,
    optimizers: Optimizers,
    axis_name: str | None = None,
    class_weights=None,
    dtype: str | None = None,
    constraint: Constraint | None = None,
    drop_path: float = 0.0,
) -> dict[bool, tuple[Pass, ...]]:
    """The same step in parts that may be programs of their own, without a condition in any.

    {what `strategy.learns` says of a step: its parts in their order}; those of one name are one.
    A GPU waits for conditions, and two small programs are compiled sooner than a large one.
    """
    options = network, strategy, optimizers, axis_name, class_weights, dtype, constraint, drop_path
    return {learns: _passes(*options, learns=learns) for learns in (False, True)}


def in_turn(passes) -> Callable[..., tuple[SearchState, dict]]:
    """The passes as one step, of the operands that each of them takes."""

    def step(state, *operands):
        metrics = {"val_loss": np.float32(np.nan)}  # of a step in which the alphas rest
        for each in passes:
            state, found = each.run(state, *operands)
            metrics |= found
        return state, metrics

    return step


class Parts(NamedTuple):
    """A state as a pass takes it: what it changes, whose memory it may have, and the rest.

    changing: {field: value}.
    resting: the state without those fields, None in their places.
    """

    changing: dict[str, Any]
    resting: SearchState

    @classmethod
    def of(cls, state: SearchState, each: Pass) -> "Parts":
        changing = {name: getattr(state, name) for name in each.changes}
        return cls(changing, state.replace(**dict.fromkeys(each.changes)))

    @property
    def state(self) -> SearchState:
        return self.resting.replace(**self.changing)


def program(each: Pass) -> Callable:
    """A pass as a program: (*Parts, over, *operands) -> (what it changes {field: value}, metrics).

    It gives nothing that it does not change, since a program copies what it hands on as it got it.
    Where the bool scalar `over` is true, all stays as it was: a search that has ended may be asked
    for one step more, and its state's memory be given to that.
    """

    def run(changing, resting, over, *operands):
        after, metrics = each.run(Parts(changing, resting).state, *operands)
        changed = {name: getattr(after, name) for name in changing}
        return jax.tree.map(lambda new, old: jnp.where(over, old, new), changed, changing), metrics

    return run


def of_programs(passes) -> Callable[..., tuple[SearchState, dict]]:
    """The step (state, over, *operands) of programs: [(pass, what `program` made of it)]."""

    def whole(each, run):
        def after(state, *operands):
            parts = Parts.of(state, each)
            changed, metrics = run(*parts, *operands)
            return Parts(changed, parts.resting).state, metrics

        return each._replace(run=after)

    return in_turn([whole(each, run) for each, run in passes])


def _drop_key(key):
    """The key of drop-path, apart from what a strategy draws by `key`."""
    return jax.random.fold_in(key, 0x0D)


def _passes(
    network, strategy, optimizers, axis_name, class_weights, dtype, constraint, drop_path, learns
):
    """The passes of a step; `learns` None has each step ask."""
    twice = strategy.alpha_gradient is bilevel.second_order_exact
    context = Context(train=True, twice=twice, axis_name=axis_name, dtype=dtype)

    def mean(tree):
        return tree if axis_name is None else lax.pmean(tree, axis_name)

    def loss_at(arch, step, learn=None):
        """loss(params, alphas, batch_stats, batch, key) at this step's masks and temperature."""

        def loss(params, alphas, batch_stats, batch, key):
            mixtures = strategy.mixture(arch._replace(alphas=alphas), step, key)
            if drop_path:
                mixtures = {
                    cell: mix._replace(drop_path=Dropout(_drop_key(key), jnp.float32(drop_path)))
                    for cell, mix in mixtures.items()
                }
            logits, new = network.apply(
                {"params": params, "batch_stats": batch_stats},
                batch.images,
                mixtures,
                context,
                learn,
                mutable=["batch_stats"],
            )
            value = cross_entropy(logits, batch.labels, class_weights, axis_name=axis_name)
            return value, (new["batch_stats"], logits)

        return loss

    def point(state, train, val, key):
        return bilevel.Point(
            state.params,
            state.arch.alphas,
            state.batch_stats,
            state.omega_opt,
            state.step,
            train,
            val,
            key,
            optimizers.virtual_step,
        )

    def omega_step(state, train, val):
        key = step_keys(state.key, state.step).omega
        (value, (batch_stats, logits)), gradients = strategy.omega_gradient(
            loss_at(state.arch, state.step), point(state, train, val, key)
        )
        state = move_omega(state, gradients, batch_stats, key)
        correct = jnp.mean(logits.argmax(-1) == train.labels)
        return state, mean({"train_loss": value, "train_accuracy": correct})

    def move_omega(state, gradients, batch_stats, key):
        mixtures = strategy.mixture(state.arch, state.step, key)
        params, omega_opt = optim.update_where(
            optimizers.omega,
            live_parameters(network, state.params, mixtures),
            mean(gradients),
            state.omega_opt,
            state.params,
        )
        return state.replace(params=params, batch_stats=batch_stats, omega_opt=omega_opt)

    def alpha_step(state, train, val):
        key = step_keys(state.key, state.step).alpha
        (value, (batch_stats, _)), gradients = strategy.alpha_gradient(
            loss_at(state.arch, state.step), point(state, train, val, key)
        )
        state = move_alphas(state, gradients, key)
        return state.replace(batch_stats=batch_stats), {"val_loss": mean(value)}

    def constrained(state, gradients, key):
        """The alphas' gradients with those of the constraint, which knows nothing of omega."""
        if constraint is None:
            return gradients

        def expected(alphas):
            mixtures = strategy.mixture(state.arch._replace(alphas=alphas), state.step, key)
            return constraint.weight * constraint.expected(mixtures)

        return jax.tree.map(jnp.add, gradients, jax.grad(expected)(state.arch.alphas))

    def move_alphas(state, gradients, key):
        gradients = constrained(state, mean(gradients), key)
        alphas, alpha_opt = optim.update_where(
            optimizers.alpha,
            strategy.live(state.arch, state.step, key),
            gradients,
            state.alpha_opt,
            state.arch.alphas,
        )
        arch = state.arch._replace(alphas=alphas)
        pruned = strategy.prune(arch, gradients, state.step)
        # Nothing is pruned by numbers that are none, which compare as false with all others.
        sound = all_finite(alphas)
        masks = jax.tree.map(lambda new, old: jnp.where(sound, new, old), pruned.masks, arch.masks)
        return state.replace(arch=pruned._replace(masks=masks), alpha_opt=alpha_opt)

    def joint_step(state, train, val):
        key = step_keys(state.key, state.step).alpha
        (value, (batch_stats, logits)), (g_params, g_alphas) = strategy.omega_gradient(
            loss_at(state.arch, state.step), point(state, train, val, key)
        )
        moved = if_learning(
            state, lambda state: move_alphas(state, g_alphas, key), lambda state: state
        )
        # omega's move is that of the point where both gradients were taken.
        after = move_omega(state, g_params, batch_stats, key)
        after = after.replace(arch=moved.arch, alpha_opt=moved.alpha_opt)
        correct = jnp.mean(logits.argmax(-1) == train.labels)
        return after, mean({"train_loss": value, "train_accuracy": correct})

    def maybe_alpha_step(state, train, val):
        return if_learning(
            state,
            lambda state: alpha_step(state, train, val),
            lambda state: (state, {"val_loss": jnp.full((), jnp.nan, train.images.dtype)}),
        )

    def if_learning(state, act, rest):
        if learns is not None:
            return (act if learns else rest)(state)
        return lax.cond(strategy.learns(state.step), act, rest, state)

    def halves(state, train, val):
        """Both halves as turns of one loop, so that the network is compiled once for the two.

        For the plan that is a loop itself; on a GPU the turns would be conditions.

        Each turn takes both gradients at its own batch and uses one. The gradients of the kernels,
        dear and of no use to the alphas, are skipped in their turn (`Context.learn`).
        """
        batches = jax.tree.map(lambda *pair: jnp.stack(pair), train, val)
        keys = jnp.stack(step_keys(state.key, state.step)[:2])
        both = strategy.learns(state.step).astype(jnp.int32)
        first, last = (1 - both, 2) if strategy.alpha_first else (0, 1 + both)

        def turn(i, carry):
            state, metrics = carry
            half = 1 - i if strategy.alpha_first else i  # 0 for omega, 1 for alpha
            batch = jax.tree.map(lambda pair: pair[half], batches)
            loss = loss_at(state.arch, state.step, learn=half == 0)
            (value, (batch_stats, logits)), gradients = jax.value_and_grad(
                loss, (0, 1), has_aux=True
            )(state.params, state.arch.alphas, state.batch_stats, batch, keys[half])
            state = lax.cond(
                half == 0,
                lambda state: move_omega(state, gradients[0], batch_stats, keys[0]),
                lambda state: move_alphas(
                    state.replace(batch_stats=batch_stats), gradients[1], keys[1]
                ),
                state,
            )
            correct = jnp.mean(logits.argmax(-1) == batch.labels)
            measured = mean({"loss": value, "accuracy": correct})
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

    def entropies_of(arch, mixtures):
        if strategy.distribution is None:
            return {}
        found = strategy.distribution(arch, mixtures)
        entropies = {cell: normalised_entropy(mix.weights) for cell, mix in found.items()}
        return {
            "entropy": jnp.mean(jnp.stack(list(entropies.values()))),
            **{f"entropy_{cell}": entropy for cell, entropy in entropies.items()},
        }

    def close(state, train, val):
        """Counts the step, and tells what it has come to."""
        key = step_keys(state.key, state.step).alpha
        mixtures = strategy.mixture(state.arch, state.step, key)
        metrics = strategy.readings(state.step) | strategy.measured(state.arch)
        metrics |= {
            "candidates_left": sum(mask.sum() for mask in state.arch.masks.values()),
            **entropies_of(state.arch, mixtures),
            **({} if constraint is None else {"cost": constraint.expected(mixtures)}),
            "finished": strategy.finished(state.arch),
            "alphas_learned": jnp.logical_and(alphas_apart, strategy.learns(state.step)),
            "alphas_finite": all_finite((state.arch.alphas, state.arch.extra)),
        }
        return state.replace(step=state.step + 1), metrics

    alphas_apart = strategy.alpha_gradient is not None and not strategy.single_level
    statistics, of_omega = ("batch_stats",), ("params", "omega_opt")
    of_alphas = "arch", "alpha_opt"
    omega = Pass("omega", of_omega + statistics, omega_step)
    end = Pass("close", ("step",), close)
    if strategy.single_level:
        if learns is False:
            return Pass("joint, alphas at rest", of_omega + statistics, joint_step), end
        return Pass("joint", of_omega + of_alphas + statistics, joint_step), end
    if learns is None and halves_are_turns(network, strategy):
        return Pass("halves", of_omega + of_alphas + statistics, halves), end
    if strategy.alpha_gradient is None or learns is False:
        return omega, end
    alpha = Pass("alpha", of_alphas + statistics, maybe_alpha_step)
    return (alpha, omega, end) if strategy.alpha_first else (omega, alpha, end)
