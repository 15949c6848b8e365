"""The command's modes as functions, and the network they return."""

import errno
import gc
import io
import json
import os
import signal
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from tiny import TEST, TRAIN, records, tiny

import asap_jax
from asap_jax.configs import presets
from asap_jax.data.augment import normalise
from asap_jax.data.images import Preparation
from asap_jax.host import workdir
from asap_jax.host.errors import UserError
from asap_jax.host.interruption import Interrupted
from asap_jax.runs import inputs, inspection, resolve, runner


def test_callbacks_follow_and_may_stop(tmp_path):
    steps, epochs, pruned = [], [], []

    def stop_after_two(record):
        epochs.append(record)
        return record["epoch"] == 2

    outcome = asap_jax.search(
        tiny(),
        workdir=tmp_path,
        on_step=steps.append,
        on_epoch=stop_after_two,
        on_prune=pruned.append,
        quiet=True,
    )
    assert [(r["epoch"], r["step"]) for r in steps] == [
        (e, s) for e in (1, 2) for s in (1, 2, 3, 4)
    ]
    assert [r["epoch"] for r in epochs] == [1, 2]
    assert outcome.search["ended"] == "stopped"
    gone = [candidate for record in pruned for candidate in record["pruned"]]
    assert len(gone) == len(set(gone)) == 2 * 14 * 3 - outcome.search["candidates_left"] > 0
    cell, edge, name = gone[0]
    assert cell in ("normal", "reduce")
    assert edge in asap_jax.SPACES["asap"].edges
    assert name in tiny().search.candidates
    assert all(len(node) == 2 for node in outcome.genotype.normal)


def test_without_a_workdir_nothing_is_written(tmp_path, monkeypatch):
    """Nor is anything kept on the device until Python collects its garbage."""
    monkeypatch.chdir(tmp_path)
    gc.collect()
    before = sum(array.nbytes for array in jax.live_arrays())
    gc.disable()
    try:
        outcome = asap_jax.search(tiny(), quiet=True, epochs=1)
        after = sum(array.nbytes for array in jax.live_arrays())
    finally:
        gc.enable()
    assert after - before < TRAIN * 8 * 8  # less than the images alone
    assert outcome.search["epochs"] == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_several_searches_and_seeds(tmp_path):
    """Two searches, the better derived network trained with two seeds; interrupted in between."""
    config = tiny()
    presets.update(config, {"searches": 2, "selection": {"epochs": 1}, "train": {"seeds": 2}})
    cuts = {("select", 1, 1), ("train", 1, 2)}

    def cut(record):
        at = (record["phase"], record["run"], record["step"])
        if at in cuts:
            cuts.remove(at)
            os.kill(os.getpid(), signal.SIGTERM)

    for _ in range(2):
        with pytest.raises(Interrupted):
            asap_jax.run(config, workdir=tmp_path, on_step=cut, quiet=True)
    outcome = asap_jax.run(config, workdir=tmp_path, on_step=cut, quiet=True)
    results = outcome.results
    stages = sorted(path.stem for path in (tmp_path / "stages").iterdir())
    assert stages == ["search-0", "search-1", "select-0", "select-1", "train-0", "train-1"]
    chosen = [json.loads((tmp_path / f"stages/select-{i}.json").read_text()) for i in (0, 1)]
    best = int(np.argmax([record["val_accuracy"] for record in chosen]))
    assert results["selected"]["val_accuracy"] == chosen[best]["val_accuracy"]
    assert results["selected"]["seed"] == best
    found = json.loads((tmp_path / f"stages/search-{best}.json").read_text())["genotype"]
    assert json.loads((tmp_path / "genotype.json").read_text()) == found
    each = results["test_accuracies"]
    assert results["test_accuracy"] == pytest.approx(np.mean(each))
    assert results["test_accuracy_deviation"] == pytest.approx(np.std(each, ddof=1))
    dataset = inputs.load_data(config)
    for index in (0, 1):
        network = asap_jax.load(tmp_path, index)
        accuracy = network.accuracy(dataset.test_images, dataset.test_labels)
        assert accuracy == pytest.approx(each[index])
    confusion = np.array(results["confusion"])  # summed over both networks
    assert confusion.sum() == 2 * TEST
    assert np.trace(confusion) / (2 * TEST) == pytest.approx(np.mean(each))
    by_class = np.diagonal(confusion) / confusion.sum(1)
    assert list(results["class_accuracy"].values()) == pytest.approx(by_class)
    assert results["balanced_accuracy"] == pytest.approx(np.mean(by_class))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(workdir, outcome, data set) of a tiny run."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, asap_jax.run(tiny(), workdir=folder, quiet=True), inputs.load_data(tiny())


def test_a_workdir_loads_in_one_line(trained):
    folder, outcome, dataset = trained
    network = asap_jax.load(folder)
    probabilities = network.predict_proba(dataset.test_images)
    assert probabilities.shape == (TEST, 10)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    names = network.predict(dataset.test_images)
    assert set(names) <= set("0123456789")
    right = names == np.asarray(dataset.class_names)[dataset.test_labels]
    assert right.mean() == pytest.approx(outcome.results["test_accuracy"])
    features = network.features(dataset.test_images)
    assert features.shape == (TEST, 4 * 4 * 4)  # nodes x channels x two doublings
    classifier = network.variables["params"]["classifier"]
    logits = features @ classifier["kernel"] + classifier["bias"]
    np.testing.assert_allclose(jax.nn.softmax(logits), probabilities, rtol=1e-4, atol=1e-6)
    assert network.results["test_accuracy"] == outcome.results["test_accuracy"]


def test_module_and_variables_serve_flax_users_and_orbax_reads_alone(trained):
    folder, _, dataset = trained
    network = asap_jax.load(folder)
    images = normalise(jnp.asarray(dataset.test_images), network.mean, network.std)
    logits, _ = network.module.apply(network.variables, images)
    want = network.predict_proba(dataset.test_images)
    np.testing.assert_allclose(jax.nn.softmax(logits), want, rtol=1e-5, atol=1e-7)
    plain = ocp.StandardCheckpointer().restore(folder.absolute() / "network")
    jax.tree.map(np.testing.assert_array_equal, plain, network.variables)


def test_images_of_any_size_and_kind_are_prepared_as_in_training(trained, tmp_path):
    folder, _, dataset = trained
    network = asap_jax.load(folder)
    small = dataset.test_images[:5]
    large = small.repeat(4, 1).repeat(4, 2)  # averages back to the same pixels, except at borders
    color = np.concatenate([small] * 3, -1)
    Image.fromarray(small[1, ..., 0]).save(tmp_path / "one.png")
    want = network.predict_proba(small)
    np.testing.assert_array_equal(network.predict_proba(color), want)
    np.testing.assert_array_equal(network.predict_proba(small.astype(np.float32) / 255), want)
    assert network.predict_proba(large).shape == want.shape
    mixed = [small[0], tmp_path / "one.png", Image.fromarray(small[2, ..., 0]), large[3]]
    np.testing.assert_allclose(network.predict_proba(mixed)[:3], want[:3], rtol=1e-5)
    with pytest.raises(UserError, match="floats are read as"):
        network.predict(small.astype(np.float32))
    with pytest.raises(UserError, match=r"cannot read the image .*none.png"):
        network.predict([tmp_path / "none.png"])
    with pytest.raises(UserError, match="list is empty"):
        network.predict([])
    with pytest.raises(UserError, match=r"looks like one image: give images\[None\]"):
        network.predict(color[0])
    with pytest.raises(UserError, match="labels go up to 10"):
        network.accuracy(small, [0, 1, 2, 3, 10])


@pytest.fixture
def wide():
    """As with JAX_ENABLE_X64=1."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.mark.parametrize("use", ["predict_proba", "features", "evaluate", "describe", "fine_tune"])
def test_networks_are_used_where_jax_knows_64_bits(use, trained, wide, tmp_path):
    folder, outcome, dataset = trained
    network = asap_jax.load(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(network.variables)} == {np.dtype("float32")}
    if use in ("predict_proba", "features"):
        got = getattr(network, use)(dataset.test_images)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, getattr(outcome.network, use)(dataset.test_images))
    elif use == "evaluate":
        told = asap_jax.evaluate(folder, quiet=True)
        assert told["accuracy"] == pytest.approx(outcome.results["test_accuracy"])
    elif use == "describe":
        config = tiny()
        config.genotype = outcome.genotype.to_json()
        told = asap_jax.describe(config, tmp_path, quiet=True)
        assert told["parameters"] == outcome.results["parameters"]
    else:
        few = dataset.train_images[:40], dataset.train_labels[:40]
        tuned = network.fine_tune(few, epochs=1, batch_size=8, save_to=tmp_path, quiet=True)
        again = asap_jax.load(tmp_path).variables
        jax.tree.map(np.testing.assert_array_equal, again, tuned.variables)


def test_fine_tuning_swaps_the_classifier_and_trains_on(trained, tmp_path):
    folder, _, dataset = trained
    network = asap_jax.load(folder)
    two = dataset.train_labels < 3
    before = jax.tree.map(np.copy, network.variables)
    seen = []
    tuned = network.fine_tune(
        (dataset.train_images[two], dataset.train_labels[two]),
        epochs=3,
        batch_size=8,
        on_epoch=seen.append,
        save_to=tmp_path,
        quiet=True,
    )
    assert tuned.class_names == ("0", "1", "2")
    assert tuned.predict_proba(dataset.test_images).shape == (TEST, 3)
    assert [record["phase"] for record in seen] == ["fine-tune"] * 3
    jax.tree.map(np.testing.assert_array_equal, network.variables, before)
    assert tuned.module.genotype == network.module.genotype
    again = asap_jax.load(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.variables, tuned.variables)
    assert seen[-1]["train_loss"] < seen[0]["train_loss"]
    with pytest.raises(UserError, match=r"save_to=.* is the workdir of a run"):
        network.fine_tune((dataset.train_images, dataset.train_labels), save_to=folder)
    with pytest.raises(UserError, match=r"unknown config key config.train.epoch \(did you mean"):
        network.fine_tune((dataset.train_images, dataset.train_labels), epoch=3)


@pytest.mark.slow
def test_start_from_begins_with_trained_weights(trained, tmp_path):
    """With a learning rate near 0 the network stays the same, except for its classifier."""
    folder, outcome, _ = trained
    config = tiny()
    changes = {"start_from": str(folder), "epochs": 1, "learning_rate": 1e-12, "weight_decay": 0.0}
    network = asap_jax.train(outcome.genotype, config, workdir=tmp_path, quiet=True, **changes)
    old, new = outcome.network.variables["params"], network.variables["params"]
    for name in old:
        same = jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), old[name], new[name])
        assert all(jax.tree.leaves(same)) == (name != "classifier"), name
    with pytest.raises(UserError, match="the network to start from does not fit"):
        asap_jax.train("ASAP", config, quiet=True, **changes)


def test_a_network_whose_parts_do_not_belong_together_is_refused(trained, tmp_path):
    folder, _, _ = trained
    asap_jax.load(folder).save(tmp_path)
    record = json.loads((tmp_path / "network.json").read_text())
    for change, message in (
        ({"class_names": ["a", "b"]}, r"classifier.bias is \(10,\), expected \(2,\)"),
        ({"channels": 8}, "does not fit"),
        ({"genotype": json.loads(asap_jax.GENOTYPES["ASAP"].to_json())}, "does not fit"),
        ({"version": 99}, "version 99; this asap_jax reads"),
        ({"mean": None}, "cannot be read"),
    ):
        workdir.write_json(tmp_path / "network.json", record | change)
        with pytest.raises(UserError, match=message):
            asap_jax.load(tmp_path)
    with pytest.raises(UserError, match=r"no trained network at .*the same command goes on"):
        asap_jax.load(tmp_path / "elsewhere")


def test_evaluate_measures_on_any_split_or_source(trained, tmp_path, capsys):
    folder, outcome, dataset = trained
    (folder / "evaluations.jsonl").unlink(missing_ok=True)  # other tests measure it too
    on_test = asap_jax.evaluate(folder, quiet=True)
    assert on_test["accuracy"] == pytest.approx(outcome.results["test_accuracy"])
    assert on_test["confusion"] == outcome.results["confusion"]
    assert on_test["top_5_accuracy"] == outcome.results["top_5_accuracy"]
    assert on_test["images"] == TEST
    shares = np.bincount(dataset.test_labels, minlength=10) / TEST
    each = np.array(list(on_test["class_accuracy"].values()))
    assert on_test["accuracy"] == pytest.approx(shares @ each)
    on_train = asap_jax.evaluate(folder, split="train")
    assert on_train["images"] == 160
    assert "of 160 images" in capsys.readouterr().out
    np.savez(
        tmp_path / "digits.npz",
        train_images=dataset.train_images,
        train_labels=dataset.train_labels,
        test_images=dataset.test_images.repeat(2, 1).repeat(2, 2),
        test_labels=dataset.test_labels,
    )
    elsewhere = asap_jax.evaluate(folder, f"npz:{tmp_path}/digits.npz", quiet=True)
    assert elsewhere["images"] == TEST
    assert abs(elsewhere["accuracy"] - on_test["accuracy"]) < 0.2
    every = asap_jax.evaluate(folder, f"npz:{tmp_path}/digits.npz", "all", quiet=True)
    assert every["images"] == TEST + 160
    with pytest.raises(UserError, match="no split 'val': it has train, test"):
        asap_jax.evaluate(folder, f"npz:{tmp_path}/digits.npz", "val")
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["split"] for line in lines] == ["test", "train", "test", "all"]


@pytest.mark.parametrize("why", ["read-only", "full", "a folder"])
@pytest.mark.parametrize("quiet", [False, True])
def test_what_evaluate_measures_is_told_though_it_cannot_be_written(
    why, quiet, trained, tmp_path, capsys, monkeypatch
):
    if why == "a folder":
        (tmp_path / "evaluations.jsonl").mkdir()
    else:
        error = OSError(errno.EROFS if why == "read-only" else errno.ENOSPC, why)
        monkeypatch.setattr(inspection, "_write_down", mock.Mock(side_effect=error))
    for name in ("network", "network.json", "config.json"):
        (tmp_path / name).symlink_to(trained[0] / name)
    with pytest.warns(UserWarning, match=r"not added to .*evaluations.jsonl"):
        result = asap_jax.evaluate(tmp_path, quiet=quiet)
    assert result["images"] == TEST
    assert ("of 60 images" in capsys.readouterr().out) != quiet


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", ["caf\u00e9", "\u732b", "caf\udce9"])
def test_evaluate_prints_names_that_the_terminal_has_no_letters_for(
    name, encoding, trained, tmp_path, monkeypatch
):
    """The last is a folder name in Latin-1, as Python reads it under UTF-8."""
    folder, _, dataset = trained
    names = [name, *dataset.class_names[1:]]
    (tmp_path / "network").symlink_to(folder / "network")
    record = json.loads((folder / "network.json").read_text())
    workdir.write_json(tmp_path / "network.json", record | {"class_names": names})
    split = [(dataset.test_images, dataset.test_labels)], ()
    opened = mock.Mock(splits={"test": None}, class_names=names)
    monkeypatch.setattr(inspection.data, "open_source", lambda *_, **__: opened)
    monkeypatch.setattr(inspection.data, "split_batches", lambda *_: split)
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", printed)
    result = asap_jax.evaluate(tmp_path, "folder:elsewhere")
    printed.flush()
    shown = printed.buffer.getvalue().decode(encoding)
    assert "of 60 images" in shown
    assert shown.count(name.encode(encoding, "backslashreplace").decode(encoding)) >= 1
    assert name in result["class_accuracy"]


def test_evaluate_maps_some_of_the_classes_by_name(trained, tmp_path, capsys):
    """A folder without splits is measured as a whole; its classes are two of the network's ten."""
    folder, _, dataset = trained
    for name in ("7", "3"):
        (tmp_path / name).mkdir()
        chosen = dataset.test_images[dataset.test_labels == int(name)]
        for i, image in enumerate(chosen):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i}.png")
    result = asap_jax.evaluate(folder, f"folder:{tmp_path}")
    capsys.readouterr()
    assert result["split"] == "all"
    assert result["images"] == sum(np.isin(dataset.test_labels, (3, 7)))
    on_test = asap_jax.evaluate(folder, quiet=True)["class_accuracy"]
    assert result["class_accuracy"] == {n: on_test[n] if n in "37" else None for n in on_test}
    (tmp_path / "7").rename(tmp_path / "seven")
    with pytest.raises(UserError, match=r"the classes seven, which the network in .* not know"):
        asap_jax.evaluate(folder, f"folder:{tmp_path}")


def test_without_a_test_split_the_validation_images_are_measured_on(trained, tmp_path, capsys):
    folder, _, dataset = trained
    for split, images in (("train", dataset.train_images), ("val", dataset.test_images)):
        for name in "37":
            (tmp_path / split / name).mkdir(parents=True)
            for i, image in enumerate(images[:4]):
                Image.fromarray(image[..., 0]).save(tmp_path / split / name / f"{i}.png")
    result = asap_jax.evaluate(folder, f"folder:{tmp_path}")
    assert (result["split"], result["images"]) == ("val", 8)
    assert f"folder:{tmp_path}: val" in capsys.readouterr().out


def test_labels_of_a_measured_set_have_to_be_among_its_classes(trained, tmp_path):
    folder, _, dataset = trained
    arrays = {"images": dataset.test_images, "labels": dataset.test_labels}
    np.savez(tmp_path / "few.npz", **arrays, class_names=["0", "1"])
    with pytest.raises(UserError, match=r"with 2 classes they have to lie in 0..1"):
        asap_jax.evaluate(folder, f"npz:{tmp_path}/few.npz")


def test_a_split_of_the_trainings_own_data_is_test_or_train(trained):
    folder, _, _ = trained
    with pytest.raises(UserError, match="there are test and train"):
        asap_jax.evaluate(folder, split="all")


def test_describe_tells_size_cost_memory_and_draws(trained, tmp_path):
    _, outcome, _ = trained
    config = tiny()
    config.genotype = outcome.genotype.to_json()
    told = asap_jax.describe(config, tmp_path, quiet=True)
    assert told["parameters"] == outcome.results["parameters"]
    assert told["multiply_adds"] == outcome.results["multiply_adds"]
    assert told["memory"]["activations"] > told["memory"]["state"] > 0
    assert (tmp_path / "cells.svg").exists()
    folder = trained[0]
    before = (folder / "cells.svg").read_bytes()
    config.genotype = "DARTS_V2"
    with pytest.raises(UserError, match="the workdir of a run with other cells"):
        asap_jax.describe(config, folder, quiet=True)
    assert (folder / "cells.svg").read_bytes() == before
    config.genotype = "ASAPP"
    with pytest.raises(UserError, match="did you mean 'ASAP'"):
        asap_jax.describe(config, tmp_path, quiet=True)


@pytest.mark.slow
def test_published_cells_train_by_name_with_average_pieces_and_weights(tmp_path):
    """An unusual mix of options at once, and the run's own description of itself."""
    dataset = inputs.load_data(tiny())
    config = tiny()
    config.data.class_weights = "balanced"
    network = asap_jax.train(
        "ASAP",
        config,
        data=dataset,
        workdir=tmp_path,
        quiet=True,
        average=0.9,
        accumulate=2,
        auxiliary_weight=0.4,
        drop_path=0.2,
        label_smoothing=0.1,
        epochs=1,
    )
    assert network.module.genotype == asap_jax.GENOTYPES["ASAP"]
    assert (tmp_path / "genotype.json").exists()
    assert network.accuracy(dataset.test_images, dataset.test_labels) == pytest.approx(
        network.results["test_accuracy"]
    )
    assert "auxiliary_head" in network.variables["params"]
    assert [record["phase"] for record in records(tmp_path)] == ["train"]


def test_arrays_and_overrides_reach_the_config():
    with pytest.raises(UserError, match=r"unknown config key config\.search\.epoch "):
        asap_jax.search("digits", epoch=3)
    with pytest.raises(UserError, match=r"config.search.omega.clipp \(did you mean 'clip'\?\)"):
        asap_jax.search("digits", omega={"clipp": 3})
    with pytest.raises(UserError, match="data is passed by name"):
        asap_jax.search(np.zeros((3, 8, 8)))
    with pytest.raises(UserError, match=r"config\.search\.epochs cannot be"):
        asap_jax.search("digits", epochs="many")
    with pytest.raises(UserError, match=r"or .images, labels. with or without"):
        asap_jax.search("digits", data=(1, 2, 3))
    images = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8)
    with pytest.raises(UserError, match="each half of the 32 training images holds only 16"):
        asap_jax.search("digits", data=(images, np.arange(40) % 2), quiet=True)


def test_several_seeds_are_in_the_results_of_train(trained):
    network = asap_jax.train("ASAP", tiny(), epochs=1, seeds=2, quiet=True)
    assert len(network.results["test_accuracies"]) == 2


def test_cells_come_from_a_file_or_a_workdir(trained, tmp_path):
    folder, outcome, _ = trained
    config = tiny()
    for place in (folder, folder / "genotype.json"):
        config.genotype = str(place)
        assert inputs.find_genotype(config, tmp_path) == outcome.genotype
    (tmp_path / "genotype.json").write_text("{}")
    config.genotype = str(tmp_path)
    with pytest.raises(UserError, match="a genotype file is a JSON object"):
        inputs.find_genotype(config, None)


@pytest.mark.slow
def test_a_search_is_trained_in_its_own_workdir(tmp_path):
    """Mode by mode, the results equal those of a run without a mode."""
    runner.run(tiny(), tmp_path, mode="search", quiet=True)
    assert not (tmp_path / "results.json").exists()
    outcome = runner.run(tiny(), tmp_path, mode="train", quiet=True)
    assert outcome.results["candidates_left"] == 28
    searched = [record for record in records(tmp_path) if record["phase"] == "search"]
    assert outcome.results["epochs"] == {"search": len(searched), "train": 2}
    assert 1 < len(searched) <= tiny().search.epochs


def test_a_training_is_stopped_by_a_callback(tmp_path):
    network = asap_jax.train(
        "ASAP",
        tiny(),
        workdir=tmp_path,
        on_step=lambda record: record["step"] == 3,
        quiet=True,
    )
    assert network.results["epochs"]["train"] == 1
    assert records(tmp_path)[-1]["steps"] == 3


class Tensor:
    """Like torch's: no conversion to NumPy with gradients, nor from bfloat16."""

    def __init__(self, values, dtype="torch.float32", gradient=True):
        self.values, self.dtype, self.gradient = values, dtype, gradient
        self.shape, self.ndim = values.shape, values.ndim

    def detach(self):
        return Tensor(self.values, self.dtype, False)

    def cpu(self):
        return self

    def float(self):
        return Tensor(self.values, "torch.float32", self.gradient)

    def __array__(self, dtype=None, copy=None):
        if self.gradient or "bfloat16" in self.dtype:
            raise RuntimeError("can't call numpy() on it")
        return np.asarray(self.values, dtype)


FORMS = {
    "array": lambda x, paths: x,
    "list": lambda x, paths: list(x),
    "tuple": lambda x, paths: tuple(x),
    "generator": lambda x, paths: (image for image in x),
    "map": lambda x, paths: map(np.asarray, x),
    "floats": lambda x, paths: x / 255,
    "floats in a list": lambda x, paths: list(x / 255),
    "half": lambda x, paths: (x / 255).astype(np.float16),
    "integers in a list": lambda x, paths: list(x.astype(int)),
    "nested lists": lambda x, paths: x.tolist(),
    "bfloat16": lambda x, paths: jnp.asarray(x / 255, jnp.bfloat16),
    "bfloat16 in a list": lambda x, paths: list(jnp.asarray(x / 255, jnp.bfloat16)),
    "jax": lambda x, paths: jnp.asarray(x),
    "torch": lambda x, paths: Tensor(x / 255),
    "torch in a list": lambda x, paths: [Tensor(image / 255) for image in x],
    "torch bfloat16": lambda x, paths: Tensor(x / 255, "torch.bfloat16"),
    "objects": lambda x, paths: np.array([*x, None], object)[:-1],
    "paths": lambda x, paths: paths,
    "array of paths": lambda x, paths: np.array(list(map(str, paths))),
    "array of Path": lambda x, paths: np.array(paths, object),
    "generator of paths": lambda x, paths: (path for path in paths),
    "open files": lambda x, paths: [Image.open(path) for path in paths],
}


@pytest.mark.parametrize("form", FORMS)
def test_images_come_in_many_forms(form, tmp_path):
    """What a network sees of them; it need not be trained."""
    preparation = Preparation(8, 8, "rgb")
    network = asap_jax.TrainedNetwork(None, {}, ("a", "b"), preparation, (0.5,) * 3, (0.2,) * 3)
    x = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, x, strict=True):
        Image.fromarray(image).save(path)
    got = network._pixels(FORMS[form](x, paths))
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - x).max() <= ("bfloat16" in form)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"a": 1}, "a dict has none: give a list"),
        ({"a.png"}, "a set has none: give a list"),
        (7, r"an array \[N, H, W, C\] or a list, got int"),
        ([np.full((8, 8, 3), 2.5)], r"image number 0: it is float64 from 2.5 .*read as \[0, 1\]"),
        ([np.full((8, 8, 3), np.nan)], "image number 0: it holds pixels that are not finite"),
        ([np.full((8, 8, 3), 256)], "image number 0: it is int64 from 256"),
        (iter(["none.png"]), r"cannot read the image none\.png"),
    ],
)
def test_what_is_no_image_is_refused(given, message):
    preparation = Preparation(8, 8, "rgb")
    network = asap_jax.TrainedNetwork(None, {}, ("a", "b"), preparation, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(UserError, match=message):
        network._pixels(given)


def test_a_training_may_be_judged_by_held_out_training_images(capsys):
    """A quarter of the 160, the same number per class; the test images have no influence."""
    config = tiny()
    config.genotype = "ASAP"
    whole = inputs.load_data(config)
    config.train.validation_share = 0.25
    held = resolve._hold_out_validation(config, "train", whole)
    assert (held.train_count, held.test_count) == (120, 40)
    both = np.concatenate([held.train_images, held.test_images]).reshape(160, -1)
    assert sorted(map(bytes, both)) == sorted(map(bytes, whole.train_images))
    counts = np.bincount(held.test_labels, minlength=10)
    assert counts.max() - counts.min() <= 2
    network = asap_jax.train("ASAP", config, epochs=1)
    results = network.results
    assert np.sum(results["confusion"]) == 40
    assert results["val_accuracy"] == 1 - results["val_error"]
    assert results["test_readings"] == 0
    assert not any(key.startswith("test_") for key in results if key != "test_readings")
    printed = capsys.readouterr().out
    assert "120 training and 40 validation images" in printed
    assert "validation accuracy" in printed
    with pytest.raises(UserError, match=r"validation_share is 0.25, .* add --mode=train"):
        asap_jax.run(tiny(), train={"validation_share": 0.25}, quiet=True)
    config.train.validation_share = 0.001
    with pytest.raises(UserError, match="leaves 0 to validate on"):
        resolve._hold_out_validation(config, "train", whole)
