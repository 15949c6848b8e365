"""One alpha step and one omega step of the paper-size supernet, ours next to PyTorch's DARTS.

    python benchmarks/search_step.py --batch=16,64,96 --masks=full,half,one,grace
    python benchmarks/search_step.py --batch=16 --masks=full --peer=PATH/TO/darts

Prints a JSON object per case and writes all of them to --out. `--peer` names a checkout of
github.com/quark0/darts (you install torch yourself); its first-order step then takes turns with
ours, once as it is (NCHW) and once in channels_last. Cases: all candidates live (`full`), half of
them (`half`), one per edge (`one`), and a grace epoch, omega only (`grace`; PyTorch's omega step).
"""

import json

import numpy as np
from measure import arguments, build, compiler_options, load_darts, main, random_images

CLASSES = 10


def masks_of(space, name):
    """{cell type: [E, O] bool}: the live candidates of a case."""
    rng = np.random.default_rng(1)
    edges, candidates = space.shape
    found = {}
    for cell in space.cell_types:
        mask = np.ones((edges, candidates), bool)
        if name == "half":
            mask = rng.permuted(mask.cumsum(-1) <= (candidates + 1) // 2, axis=-1)
        elif name == "one":
            mask = np.eye(candidates, dtype=bool)[rng.integers(0, candidates, edges)]
        found[cell] = mask
    return found


def ours(options):
    """Returns (what building took, a function that starts a step)."""
    import jax
    import jax.numpy as jnp

    from asap_jax.host import compile_cache, precisions
    from asap_jax.methods import STRATEGIES, schedules
    from asap_jax.networks import plans
    from asap_jax.networks.models import Supernet
    from asap_jax.networks.spaces import ASAP
    from asap_jax.searching.passes import Pass, SplitState, chained, of_programs, program
    from asap_jax.searching.search_step import Optimizers, SearchStep, init_state
    from asap_jax.training import optim
    from asap_jax.training.feed import Batch

    compile_cache.enable()
    half = int(options.batch)
    images, labels = map(jnp.asarray, random_images(2 * half, options.size, CLASSES))
    batches = Batch(images[:half], labels[:half]), Batch(images[half:], labels[half:])
    masks = masks_of(ASAP, options.masks)
    plan = plans.choose(options.plan)
    live = plans.freeze(masks) if plan == "unrolled" else None
    network = Supernet(ASAP, CLASSES, options.channels, options.cells, plan=plans.Plan(plan, live))
    strategy = STRATEGIES["asap"](ASAP, 50, 1, threshold=1e-6)  # prunes nothing meanwhile
    optimizers = Optimizers(
        optim.sgd(schedules.constant(0.025)), optim.adam(1e-3, weight_decay=1e-3)
    )
    state = init_state(network, strategy, optimizers, jax.random.key(0), images.shape[1:])
    masks = jax.tree.map(jnp.asarray, masks)
    step = 0 if options.masks == "grace" else 20  # T = 1.24 and 0.44
    state = state.replace(step=jnp.int32(step), arch=state.arch._replace(masks=masks))
    dtype = precisions.map_dtype(options.precision)
    search_step = SearchStep(network, strategy, optimizers, dtype=dtype)
    if plan == "unrolled":  # as in a search
        passes = search_step.passes(learns=options.masks != "grace")
    else:
        passes = [Pass("step", state.CHANGING, chained(search_step.passes()))]
    programs = {}
    for each in passes:
        run = precisions.computed_in(options.precision, each.run)
        jitted = jax.jit(
            program(each._replace(run=run)),
            donate_argnums=0,
            compiler_options=compiler_options(options),
        )
        parted = SplitState.of(state, each)
        programs[each.name] = jitted, (*parted, np.bool_(False), *batches)
    took, compiled = build(programs)
    step_function = of_programs([(each, compiled[each.name]) for each in passes])
    took |= {"plan": plan, "precision": precisions.resolve(options.precision)}

    def run(masks=""):
        """`masks`: {cell type: [E, O] of 0 and 1} as JSON, used from this step on."""
        nonlocal state
        if masks:
            given = {cell: jnp.asarray(mask, bool) for cell, mask in json.loads(masks).items()}
            state = state.replace(arch=state.arch._replace(masks=given))
        state, metrics = step_function(state, np.bool_(False), *batches)
        state = state.replace(step=jnp.int32(step))
        return lambda: jax.block_until_ready((state, metrics))

    return took, run


def peer(options):
    """The same for quark0/darts: its first-order alpha step, then its omega step."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load_darts(options.peer, device)
    import model_search

    criterion = torch.nn.CrossEntropyLoss()
    network = model_search.Network(options.channels, CLASSES, options.cells, criterion).to(device)
    half = int(options.batch)
    images, labels = random_images(2 * half, options.size, CLASSES)
    x = torch.as_tensor(images.transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.as_tensor(labels.astype(np.int64)).to(device)
    if options.worker != "darts_nchw":
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    omega = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)
    alpha = torch.optim.Adam(
        network.arch_parameters(), lr=1e-3, betas=(0.5, 0.999), weight_decay=1e-3
    )

    forward = torch.compile(network) if options.worker == "darts_compiled" else network

    def run():
        if options.masks != "grace":
            alpha.zero_grad()
            criterion(forward(x[half:]), y[half:]).backward()
            alpha.step()
        omega.zero_grad()
        criterion(forward(x[:half]), y[:half]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        omega.step()
        return torch.cuda.synchronize if device == "cuda" else lambda: None

    return {"device": device}, run


if __name__ == "__main__":
    parser = arguments(__doc__, batch="16,64,96", channels=16, cells=8, repeats=7)
    parser.add_argument("--masks", default="full,half,one,grace")
    parser.add_argument("--plan", default="auto", help="loop or unrolled: see networks/plans.py")
    # The peer has no masks: its full step is compared with each of ours.
    main(__file__, parser.parse_args(), ours, peer, ("batch", "masks"))
