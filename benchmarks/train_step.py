"""One training step of the network of a published cell, ours beside PyTorch's DARTS.

    python benchmarks/train_step.py --genotype=ASAP,DARTS_V2 --batch=16
    python benchmarks/train_step.py --genotype=ASAP --batch=96 --peer=PATH/TO/darts

CIFAR-10's network (36 channels, 20 cells) with auxiliary head and drop-path; otherwise as
search_step.py.
"""

import argparse
import time

import numpy as np
from measure import Results, compare, load_darts, serve

CLASSES = 10


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--genotype", default="ASAP,DARTS_V2")
    parser.add_argument("--batch", default="16")
    parser.add_argument("--channels", type=int, default=36)
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cap", type=float, default=300, help="seconds a case may take turns")
    parser.add_argument("--peer", help="checkout of quark0/darts")
    parser.add_argument("--out", help="JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def images_and_labels(options):
    rng = np.random.default_rng(0)
    count, side = int(options.batch), options.size
    images = rng.normal(size=(count, side, side, 3)).astype(np.float32)
    return images, rng.integers(0, CLASSES, count).astype(np.int32)


def ours(options):
    """(what building took, a function that does one step)."""
    import jax
    import jax.numpy as jnp

    from asap_jax import GENOTYPES, EvalNetwork, compile_cache, optim, schedules
    from asap_jax.search_step import Batch
    from asap_jax.train_step import init_state, make_train_step

    compile_cache.enable()
    batch = Batch(*map(jnp.asarray, images_and_labels(options)))
    network = EvalNetwork(
        GENOTYPES[options.genotype], CLASSES, options.channels, options.cells, auxiliary=True
    )
    optimizer = optim.sgd(schedules.constant(0.025))
    state = init_state(network, optimizer, jax.random.key(0), batch.images.shape[1:])
    step = make_train_step(
        network, optimizer, auxiliary_weight=0.4, drop_path=schedules.constant(0.2)
    )
    begin = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=0, compiler_options=compile_cache.options())
    lowered = jitted.lower(state, batch)
    traced = time.perf_counter()
    compiled = lowered.compile()
    took = {
        "device": jax.devices()[0].device_kind,
        "trace_seconds": traced - begin,
        "compile_seconds": time.perf_counter() - traced,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }

    def run():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))

    return took, run


def peer(options):
    """The same of quark0/darts' NetworkCIFAR."""
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
    images, labels = images_and_labels(options)
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
        if device == "cuda":
            torch.cuda.synchronize()

    return {"device": device}, run


def main():
    options = arguments()
    if options.worker:
        return serve(lambda: (ours if options.worker == "ours" else peer)(options))
    settings = {key: value for key, value in vars(options).items() if key != "worker"}
    results = Results(options.out, settings)
    names = ["ours"] + ["darts_channels_last", "darts_nchw"] * bool(options.peer)
    for genotype in options.genotype.split(","):
        for batch in options.batch.split(","):
            case = {"genotype": genotype, "batch": batch}
            kept = {key: value for key, value in settings.items() if key not in ("out", *case)}
            compare(results, __file__, case, kept, names, options.repeats, options.cap)
    return None


if __name__ == "__main__":
    main()
