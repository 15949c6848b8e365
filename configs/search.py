"""A search of cells, then a training of what it found, by size and method.

    python -m asap_jax.main --config=configs/search.py:SIZE,METHOD

| size            | what it is                                        | time                     |
|-----------------|---------------------------------------------------|--------------------------|
| (none), `paper` | the paper's search on CIFAR-10: 50 epochs,        | 13,000 steps: 15 minutes |
|                 | 8 cells, 16 channels; then 100 epochs of training | on an H200, computed     |
| `digits`        | scikit-learn's 8 x 8 digits, nothing to download  | 2 to 3 minutes, 2 cores  |
| `tiny`          | a quarter of them, to see that something runs     | seconds, once compiled   |
| `small`         | 4 cells of 8 channels, for a few thousand images  | minutes on 2 CPU cores   |
| `cifar10_small` | the same on 2,000 images of CIFAR-10              | minutes on 2 CPU cores   |
| `nb201`         | NAS-Bench-201's space and network, its 200 epochs | not measured             |
| `nb201_small`   | the same on 6,400 images of 16 x 16 pixels,       | search 2 to 3 minutes,   |
|                 | one cell a stage: 1,000 steps                     | 2 CPU cores              |

Test accuracy on the digits: 99.2 to 99.7 % over three seeds (docs/results.md). The cells that
`nb201_small` finds are better than random ones; those of the other small sizes, with 100 to 300
steps, cannot be told from them, and show how a method behaves (docs/search_quality.md).

Methods are `asap` (the default), `darts`, `gdas`, `pc_darts`, `random` and more (docs/methods.md).
At the paper's size a method has its authors' settings; the word `fair` gives them all one budget:
`configs/search.py:gdas,fair`.

Any value can be changed on the command line: --config.search.epochs=20. Every key stands with its
meaning in asap_jax/configs/presets.py, a method's options in its file in asap_jax/methods/.
"""

from asap_jax.configs.presets import get_config

__all__ = ["get_config"]
