"""ASAP in NAS-Bench-201's space, where the accuracy of every cell is known.

    python -m asap_jax.main --mode=search --config=configs/nasbench201.py \
        --config.data.dir=DIR --config.search.benchmark=TABLE.csv --workdir=runs/nb201

The table is a CSV file with a column `architecture` and columns of accuracies, made from the public
benchmark (docs/spaces.md). The log then has the benchmark's accuracy of the cell that would be
derived after each epoch, and nothing is trained: 15 cells of 16 channels, 50 epochs.
Time on a GPU: not measured. A small form of it takes two to three minutes on two CPU cores:
configs/search.py:nb201_small.

The benchmark's best cell reaches 94.37 % on CIFAR-10's test images (Dong and Yang, 2020).
"""

from asap_jax.configs import presets


def get_config():
    config = presets.get_config("nb201")
    config.search.epochs = 50
    config.search.alpha.learning_rate = 1e-3
    config.search.watch.images = 1024  # of the alpha half, for the gap after each epoch
    return config
