"""One training step of the network of a published cell, ours next to PyTorch's DARTS.

    python benchmarks/train_step.py --genotype=ASAP,DARTS_V2 --batch=16
    python benchmarks/train_step.py --genotype=ASAP --batch=96 --peer=PATH/TO/darts

CIFAR-10's network (36 channels, 20 cells) with auxiliary head and drop-path; otherwise like
search_step.py.
"""

import numpy as np
from measure import arguments, build, compiler_options, load_darts, main, random_images

CLASSES = 10


def ours(options):
    """Returns (what building took, a function that starts a step)."""
    import jax
    import jax.numpy as jnp

    from asap_jax import GENOTYPES, EvalNetwork
    from asap_jax.host import compile_cache, precisions
    from asap_jax.methods import schedules
    from asap_jax.training import optim
    from asap_jax.training.feed import Batch
    from asap_jax.training.train_step import init_state, make_train_step

    compile_cache.enable()
    batch = Batch(*map(jnp.asarray, random_images(int(options.batch), options.size, CLASSES)))
    network = EvalNetwork(
        GENOTYPES[options.genotype], CLASSES, options.channels, options.cells, auxiliary=True
    )
    optimizer = optim.sgd(schedules.constant(0.025))
    state = init_state(network, optimizer, jax.random.key(0), batch.images.shape[1:])
    step = make_train_step(
        network,
        optimizer,
        auxiliary_weight=0.4,
        drop_path=schedules.constant(0.2),
        dtype=precisions.map_dtype(options.precision),
    )
    step = precisions.computed_in(options.precision, step)
    jitted = jax.jit(step, donate_argnums=0, compiler_options=compiler_options(options))
    took, compiled = build({"step": (jitted, (state, batch))})
    took["precision"] = precisions.resolve(options.precision)

    def run():
        nonlocal state
        state, metrics = compiled["step"](state, batch)
        return lambda: jax.block_until_ready((state, metrics))

    return took, run


def peer(options):
    """The same for quark0/darts' NetworkCIFAR."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load_darts(options.peer, device)
    import genotypes
    import model

    from asap_jax import GENOTYPES

    cell = GENOTYPES[options.genotype]
    flat = genotypes.Genotype(
        normal=[pair for node in cell.normal for pair in node],
        normal_concat=cell.normal_concat,
        reduce=[pair for node in cell.reduce for pair in node],
        reduce_concat=cell.reduce_concat,
    )
    network = model.NetworkCIFAR(options.channels, CLASSES, options.cells, True, flat).to(device)
    network.drop_path_prob = 0.2
    images, labels = random_images(int(options.batch), options.size, CLASSES)
    x = torch.as_tensor(images.transpose(0, 3, 1, 2).copy()).to(device)
    y = torch.as_tensor(labels.astype(np.int64)).to(device)
    if options.worker == "darts_channels_last":
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    criterion = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.025, momentum=0.9, weight_decay=3e-4)

    def run():
        optimizer.zero_grad()
        logits, auxiliary = network(x)
        (criterion(logits, y) + 0.4 * criterion(auxiliary, y)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        return torch.cuda.synchronize if device == "cuda" else lambda: None

    return {"device": device}, run


if __name__ == "__main__":
    parser = arguments(__doc__, batch="16", channels=36, cells=20, repeats=5)
    parser.add_argument("--genotype", default="ASAP,DARTS_V2")
    main(__file__, parser.parse_args(), ours, peer, ("genotype", "batch"))
