"""One of several processes that stream a folder's images: prints what it read and what it holds.

    python share_of_stream.py FOLDER BATCH

JSON: {"reads": number of records read for an epoch of training batches and the test's, "train",
"test": [rows and labels that its devices hold of each batch]}.
"""

import dataclasses
import json
import sys

import numpy as np

from asap_jax import data
from asap_jax.host import devices, processes


def main(folder, batch_size):
    processes.join()
    stream, reads = data.stream(data.open_source(f"folder:{folder}"), image_size=16, workers=0), []

    def counted(split):
        def read(index):
            reads.append(index)
            return split.read(index)

        return dataclasses.replace(split, read=read)

    stream = dataclasses.replace(stream, train=counted(stream.train), test=counted(stream.test))
    shared = devices.local()

    def held(labels):
        found = [
            (shard.index[0].indices(len(labels))[:2], shard.data)
            for shard in labels.addressable_shards
        ]
        return [[list(rows), np.asarray(values).tolist()] for rows, values in found]

    train = [held(labels) for _, labels in stream.train_batches(batch_size, 5, 1, 0, 0, shared)]
    test = [held(labels) for _, labels, _ in stream.test_batches(batch_size, shared)]
    print(json.dumps({"reads": len(reads), "train": train, "test": test}))
    processes.leave()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
