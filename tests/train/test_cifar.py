"""CIFAR as torchvision keeps it, from a tiny folder of that layout."""

import hashlib
import pickle

import numpy as np
import pytest
import torch

from wuskern.train import data


@pytest.fixture
def datasets(torchvision):
    return torchvision.datasets


# name: folder, files for training and for testing, the file and the key of the classes' names, the key of the labels
LAYOUTS = {
    "cifar10": (
        "cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], "batches.meta",
        "label_names", "labels",
    ),
    "cifar100": ("cifar-100-python", ["train"], ["test"], "meta", "fine_label_names", "fine_labels"),
}  # fmt: skip
IMAGES = 4  # in each file


def write(root, name, kind, monkeypatch):
    """Random images in the original files' layout; the expected md5 sums become those of the new files. Returns the images."""
    folder, train, test, meta, class_key, label_key = LAYOUTS[name]
    (root / folder).mkdir()
    rng = np.random.default_rng(0)
    images, sums = {}, {}
    for file in [*train, *test, meta]:
        images[file] = rng.integers(0, 256, (IMAGES, 3, 32, 32), dtype=np.uint8)
        content = {class_key: [str(i) for i in range(int(name[5:]))]}
        if file != meta:
            content = {"data": images[file].reshape(IMAGES, -1), label_key: list(range(IMAGES))}
        packed = pickle.dumps(content)
        (root / folder / file).write_bytes(packed)
        sums[file] = hashlib.md5(packed).hexdigest()
    monkeypatch.setattr(kind, "train_list", [[file, sums[file]] for file in train])
    monkeypatch.setattr(kind, "test_list", [[file, sums[file]] for file in test])
    monkeypatch.setattr(kind, "meta", {"filename": meta, "key": class_key, "md5": sums[meta]})
    return np.concatenate([images[file] for file in train]), images[test[0]]


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_labels_and_normalisation(tmp_path, datasets, monkeypatch, name):
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    train, test = write(tmp_path, name, kind, monkeypatch)
    loaded = data.load(name, str(tmp_path))
    assert (loaded.name, loaded.classes) == (name, int(name[5:]))
    assert loaded.y_test.tolist() == [0, 1, 2, 3]
    assert loaded.y_train.tolist() == [0, 1, 2, 3] * (len(train) // IMAGES)
    mean = train.astype(np.float64).mean((0, 2, 3), keepdims=True)
    std = train.astype(np.float64).std((0, 2, 3), keepdims=True, ddof=1)
    for x, source in ((loaded.x_train, train), (loaded.x_test, test)):
        assert x.dtype == torch.float32
        assert x.is_contiguous()
        np.testing.assert_allclose(x.numpy(), (source - mean) / std, rtol=0, atol=1e-5)


def test_a_folder_without_the_files_or_with_damaged_ones(tmp_path, datasets, monkeypatch):
    with pytest.raises(ValueError, match=r"--data-dir: expected a folder with cifar-10-batches-py in it .*, got .*nowhere"):
        data.load("cifar10", str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()
    write(tmp_path, "cifar10", datasets.CIFAR10, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"else")
    with pytest.raises(ValueError, match=r"--data-dir: expected a folder .*not found or corrupted"):
        data.load("cifar10", str(tmp_path))


@pytest.mark.parametrize("error", [ImportError("No module named 'torchvision'"), RuntimeError("operator nms does not exist")])
def test_without_a_torchvision_that_works(tmp_path, without_torchvision, error):
    without_torchvision(error)
    with pytest.raises(ValueError, match="--data: cifar10 needs torchvision, install the one that fits this torch"):
        data.load("cifar10", str(tmp_path))


@pytest.mark.parametrize(("source", "folder"), [("cifar10", None), ("digits", "somewhere")])
def test_a_folder_is_for_cifar_and_cifar_needs_one(source, folder):
    with pytest.raises(ValueError, match=f"--data-dir: expected with cifar10 and cifar100, and only there, got {folder} with"):
        data.load(source, folder)
