"""A comparison of search methods over several seeds: one table, figures and a page.

    python -m asap_jax.main --mode=compare --config=configs/compare.py:digits

| size            | methods | what a run is                             | time of a run           |
|-----------------|---------|-------------------------------------------|-------------------------|
| `tiny`          | all     | shows that it runs; cannot rank           | 30 s on 2 CPU cores     |
| `digits`        | all     | scikit-learn's digits, 8 x 8              | 1 to 3 minutes, 2 cores |
| `cifar10_small` | five    | 2,000 images of CIFAR-10                  | minutes on 2 CPU cores  |
| `nb201_small`   | six     | NAS-Bench-201's space, 1,000 steps        | minutes on 2 CPU cores  |
| `cifar10`       | six     | the paper's search, 100 epochs' training  | GPU, not measured       |
| `nb201`         | six     | NAS-Bench-201's network and its recipe    | GPU, not measured       |

What to change first: --config.methods=asap,darts,random --config.seeds=5. Every run's settings are
`config.run`: --config.run.data.dir=DIR, --config.run.train.epochs=20. With a table of accuracies
(--config.run.search.benchmark=TABLE.csv --config.run.mode=search), NAS-Bench-201's cells are looked
up instead of trained. The same command resumes; runs that are done are never repeated.
"""

from asap_jax.configs.comparisons import get_config

__all__ = ["get_config"]
