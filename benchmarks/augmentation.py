"""The share of a recipe's training step spent on augmentation, on the training device.

    python benchmarks/augmentation.py --recipes=darts,asap_small,svhn,imagenet --out=augment.json

A batch of the recipe's size is augmented as in the training step, but in a program of its own;
train_step.py times the rest of a step. Image sizes are the recipe's, or --size for all; a recipe
without one uses 32x32 images.
"""

import argparse
from types import SimpleNamespace

import jax
from measure import Results, spread, timed

from asap_jax.configs import recipes
from asap_jax.data.augment import augment
from asap_jax.host import compile_cache
from asap_jax.training.train_loop import make_augmentation


def seconds_of(recipe: str, options) -> dict:
    """One case: seconds per batch, and the augmentation applied."""
    config = recipes.get_config(recipe)
    batch = options.batch or config.train.batch_size
    size = options.size or config.data.image_size or 32
    channels = SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)  # in place of a data set
    done = make_augmentation(config.train, channels)
    images = jax.random.bits(jax.random.key(0), (batch, size, size, 3), "uint8")
    run = jax.jit(
        lambda images, key: augment(images, done, key), compiler_options=compile_cache.options()
    )
    seconds = spread(timed(run, (images, jax.random.key(1)), options.repeats))
    return {
        "recipe": recipe,
        "batch": batch,
        "size": size,
        **{key: value for key, value in done._asdict().items() if key not in ("mean", "std")},
        "seconds": seconds,
        "milliseconds_an_image": 1e3 * seconds["median"] / batch,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", default="darts,asap_small,svhn,imagenet", help="with commas")
    parser.add_argument("--batch", type=int, help="in place of the recipe's")
    parser.add_argument("--size", type=int, help="side of the images, in place of the recipe's")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", help="JSON file")
    options = parser.parse_args()
    compile_cache.enable()
    results = Results(options.out, {**vars(options), "device": jax.devices()[0].device_kind})
    for recipe in options.recipes.split(","):
        results.add(seconds_of(recipe, options))


if __name__ == "__main__":
    main()
