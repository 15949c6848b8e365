"""A search on photographs of your own: a folder with one folder of images per class.

    python -m asap_jax.main --config=configs/photographs.py \
        --config.data.source=folder:photographs --workdir=runs/photographs

Takes any format, mode and size; a fifth of the images is held out for the test unless the folder
has `train` and `test`. `--dry_run` shows what was found, how long it takes and what memory it
needs, before anything is searched.

What to change first: `image_size` (half the side is four times as fast), `search.channels`,
`train.epochs`. A search this small cannot be expected to beat published cells; to compare:
--mode=train --config.genotype=ASAP with another workdir.
"""

from asap_jax.configs import presets


def get_config():
    config = presets.get_config("small")
    config.data.update(
        {
            "source": "folder:photographs",
            "image_size": 64,
            "resize": "crop",  # keeps the proportions; "stretch" keeps the borders
            "color": "rgb",
            "skip_unreadable": True,  # and says how many
            "class_weights": "balanced",  # classes of different size weigh the same in the loss
        }
    )
    config.search.epochs = 12
    config.train.update({"channels": 16, "cells": 5, "epochs": 40, "drop_path": 0.1})
    config.train.augmentation.jitter = (0.4, 0.4, 0.4, 0.1)  # light and colour vary, hue little
    return config
