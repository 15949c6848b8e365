"""Small data sets in the format that tfds prepares, created without TensorFlow."""

import io
import json

from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_generated_pb2 as tf_example_pb2

_MODULE = "tensorflow_datasets.core.features."

# (version, shape of an image, features besides image and label, classes) as in tfds.
KNOWN = {
    "cifar10": ("3.0.2", (32, 32, 3), ("id",), 10),
    "cifar100": ("3.0.2", (32, 32, 3), ("id", "coarse_label"), 100),
    "fashion_mnist": ("3.0.1", (28, 28, 1), (), 10),
    "svhn_cropped": ("3.1.0", (32, 32, 3), ("id",), 10),
    "imagenet2012": ("5.1.0", (None, None, 3), ("file_name",), 1000),
}
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


def prepare_tfds(folder, name, splits):
    """Writes splits {split: (images, labels)} as data set `name` in `folder`.

    Images are uint8 arrays [H, W, C]; those of unknown shape become JPEG, the others PNG.
    """
    version, shape, others, classes = KNOWN[name]
    target = folder / name / version
    target.mkdir(parents=True)
    infos = []
    for split, (images, labels) in splits.items():
        file = target / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image, label in zip(images, labels, strict=True):
            writer.write(_record(image, label, shape, others))
        writer.close()
        infos.append(
            {
                "name": split,
                "numBytes": str(file.stat().st_size),
                "shardLengths": [str(len(labels))],
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    names = CIFAR10 if name == "cifar10" else [f"class {i}" for i in range(classes)]
    (target / "label.labels.txt").write_text("\n".join(names) + "\n")
    (target / "coarse_label.labels.txt").write_text("\n".join(map(str, range(20))) + "\n")
    (target / "features.json").write_text(json.dumps(_features(shape, others, classes)))
    info = {"name": name, "version": version, "fileFormat": "array_record", "splits": infos}
    info["supervisedKeys"] = {
        "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}
    }
    (target / "dataset_info.json").write_text(json.dumps(info))
    return target


def _record(image, label, shape, others) -> bytes:
    encoded = io.BytesIO()
    image = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image.save(encoded, "PNG" if None not in shape else "JPEG")
    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(encoded.getvalue())
    example.features.feature["label"].int64_list.value.append(int(label))
    for other in others:
        if other == "coarse_label":
            example.features.feature[other].int64_list.value.append(0)
        else:
            example.features.feature[other].bytes_list.value.append(b"0")
    return example.SerializeToString()


def _features(shape, others, classes) -> dict:
    label = {"pythonClassName": f"{_MODULE}class_label_feature.ClassLabel"}
    text = {"pythonClassName": f"{_MODULE}text_feature.Text", "text": {}}
    dimensions = [str(side or -1) for side in shape]
    features = {
        "image": {
            "pythonClassName": f"{_MODULE}image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": dimensions}},
        },
        "label": label | {"classLabel": {"numClasses": str(classes)}},
    }
    for other in others:
        coarse = label | {"classLabel": {"numClasses": "20"}}
        features[other] = coarse if other == "coarse_label" else text
    return {
        "pythonClassName": f"{_MODULE}features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }
