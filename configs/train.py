"""A training of published cells, or of cells that a search found, by the papers' recipes.

    python -m asap_jax.main --config=configs/train.py:asap_small --config.data.dir=DIR
    python -m asap_jax.main --config=configs/train.py:asap_small --config.genotype=runs/paper
    python -m asap_jax.main --config=configs/train.py:cifar100 --config.genotype=DARTS_V2

| recipe           | what it is                                  | hours | the paper's error |
|------------------|---------------------------------------------|-------|-------------------|
| `asap_small`     | ASAP on CIFAR-10, 36 channels, 1,500 epochs |    63 | 1.99 %            |
| `asap_medium`    | the same with 44 channels                   |    92 | 1.75 %            |
| `asap_large`     | with the 50 channels that the paper states  |   119 | 1.68 %            |
| `asap_large_6m`  | with the 6.0M parameters that it states     |   148 | 1.68 %            |
| `darts`          | DARTS_V2 by DARTS' recipe, 600 epochs       |    33 | 2.76 +- 0.09 %    |
| `cifar100`       | table 2's data sets, 600 epochs             |    25 | 15.6 %            |
| `svhn`           |                                             |   303 | 1.81 %            |
| `fashion_mnist`  |                                             |    23 | 3.73 %            |
| `cinic10`        | 400 epochs                                  |    60 | 6.83 %            |
| `freiburg`       |                                             |     8 | 10.7 %            |
| `imagenet`       | 14 cells of 50 channels, 250 epochs         |   305 | 24.4 % (top 1)    |
| `darts_imagenet` | DARTS_V2 by DARTS' recipe                   |   354 | 26.7 % (top 1)    |

Hours are those of one GPU of 2018, computed; no recipe has been run in full with this package. An
H200 takes 24 ms a step of 96 images at 36 channels where that GPU would take 0.29 s.

--config.train.epochs=100 shortens a recipe, and every schedule with it. asap_jax/configs/recipes.py
has the recipes and what their papers leave open.
"""

from asap_jax.configs.recipes import get_config

__all__ = ["get_config"]
