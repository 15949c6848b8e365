"""Latency of a network for one image, and its throughput at the best batch size.

    python benchmarks/latency.py --workdir=runs/digits
    python benchmarks/latency.py --genotype=ASAP --channels=36 --cells=20 --out=latency.json
    python benchmarks/latency.py --genotype=ASAP --channels=50 --cells=14 --stem=imagenet \
        --squeeze=early --size=224 --classes=1000

The network is a run's, or that of a published cell with initial weights. Images are on the device
and normalized before timing starts; it ends when the logits are available. Batch sizes double from
1 until the gain falls below --gain or memory runs out; the last line is the summary.
"""

import argparse

import jax
import jax.numpy as jnp
from measure import Results, spread, timed

from asap_jax import GENOTYPES, Context, EvalNetwork, load
from asap_jax.host import compile_cache
from asap_jax.training.train_loop import evaluation_logits


def network_of(options) -> tuple:
    """(module, variables, image shape)."""
    if options.workdir:
        trained = load(options.workdir)
        return trained.module, jax.device_put(trained.variables), trained.preparation.shape
    module = EvalNetwork(
        GENOTYPES[options.genotype],
        options.classes,
        options.channels,
        options.cells,
        stem=options.stem,
        output=options.output,
        squeeze=options.squeeze,
    )
    shape = (options.size, options.size, 3)
    init = jax.jit(lambda key: module.init(key, jnp.zeros((1, *shape)), Context(reference=True)))
    return module, init(jax.random.key(0)), shape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", help="of a run whose network is measured")
    parser.add_argument("--genotype", default="ASAP", choices=GENOTYPES, metavar="NAME")
    for name, default in (("channels", 36), ("cells", 20), ("size", 32), ("classes", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("stem", "cifar"), ("output", "concat"), ("squeeze", "")):
        parser.add_argument(f"--{name}", default=default, help="as in config.train")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--largest", type=int, default=4096, help="batch size to stop at")
    parser.add_argument(
        "--gain", type=float, default=1.03, help="that a doubled batch has to bring"
    )
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    compile_cache.enable()
    module, variables, shape = network_of(options)
    logits = jax.jit(evaluation_logits(module), compiler_options=compile_cache.options())
    results = Results(options.out, {**vars(options), "device": jax.devices()[0].device_kind})
    cases, batch = [], 1
    while batch <= options.largest:
        try:
            images = jax.random.normal(jax.random.key(0), (batch, *shape))
            seconds = timed(logits, (variables, images), options.repeats)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or not cases:
                raise
            break
        case = {"batch": batch, "seconds": spread(seconds)}
        case["images_per_second"] = batch / case["seconds"]["median"]
        results.add(case)
        cases.append(case)
        if len(cases) > 1:
            gain = case["images_per_second"] / cases[-2]["images_per_second"]
            if gain < options.gain:
                break
        batch *= 2
    best = max(cases, key=lambda case: case["images_per_second"])
    results.add(
        {
            "latency_seconds": cases[0]["seconds"]["median"],
            "best_batch": best["batch"],
            "best_images_per_second": best["images_per_second"],
        }
    )


if __name__ == "__main__":
    main()
