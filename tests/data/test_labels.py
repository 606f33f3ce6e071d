"""Labels as a condition: of every source, row for row with their examples, or refused."""

import gzip
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import (
    Config,
    DataConfig,
    MLPConfig,
    UNetConfig,
    from_json,
    to_json,
)
from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.experiment import setup, validation
from diffusion_jax.runtime.errors import BadRequest
from helpers import SHARED


def picture(path, number):
    """An image whose grey level is its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), number).save(path)


def config_of(path="", **options):
    options = {"source": "folder", "channels": 1, "labels": True, **options}
    return DataConfig(path=str(path), **options)


def opened(path="", **options):
    return sources.open_data_set(config_of(path, **options))


def everything(split):
    return split[np.arange(len(split))]


def both(data):
    """Numbers of all images of a set, and their labels."""
    parts = [everything(data.split(name)) for name in ("train", "held_out")]
    x = np.concatenate([batch.x[:, 0, 0, 0] for batch in parts])
    return x, np.concatenate([batch.cond["label"] for batch in parts])


@pytest.fixture
def folder(tmp_path):
    """Forty images, in sub-folders by their number modulo three."""
    for i in range(40):
        picture(tmp_path / f"pictures/{'cab'[i % 3]}/{i:02}.png", i)
    return tmp_path / "pictures"


@pytest.fixture
def flat(tmp_path):
    """Ten images without sub-folders."""
    for i in range(10):
        picture(tmp_path / f"flat/{i}.png", i)
    return tmp_path / "flat"


def damaged(folder, data):
    """Damage the pixels of an image that is followed by one of another class."""
    (i, *_) = np.flatnonzero(np.diff(data.labels))
    path = folder / data.train.encoded.names[data.train.indices[i]]
    path.write_bytes(path.read_bytes()[:-20])
    return path


def csv_of(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


# Sources


def test_digits_have_the_labels_of_scikit_learn():
    from sklearn.datasets import load_digits

    real = load_digits()
    order = np.random.default_rng(0).permutation(len(real.target))
    data = opened(source="digits")
    assert data.class_names == tuple("0123456789") and data.num_classes == 10
    for name, chosen in (("train", order[:-200]), ("held_out", order[-200:])):
        batch = everything(data.split(name))
        assert batch.cond["label"].dtype == np.int32
        np.testing.assert_array_equal(batch.cond["label"], real.target[chosen])
        back = np.rint(batch.x[..., 0] / 255 * 16)
        np.testing.assert_array_equal(back, real.images[chosen])


def test_sub_folders_are_classes(folder):
    data = opened(folder, held_out_fraction=0.2)
    assert data.class_names == ("a", "b", "c") and data.num_classes == 3
    x, label = both(data)
    assert sorted(x) == list(range(40)) and label.dtype == np.int32
    np.testing.assert_array_equal(label, np.array([2, 0, 1])[x % 3])


def test_an_npz_has_its_labels(tmp_path):
    images = np.broadcast_to(
        np.arange(20, dtype=np.uint8)[:, None, None, None], (20, 8, 8, 1)
    )
    np.savez(tmp_path / "a.npz", images, np.arange(20) % 7)
    data = opened(tmp_path / "a.npz", source="npz")
    x, label = both(data)
    np.testing.assert_array_equal(label, x % 7)
    assert data.class_names == () and data.num_classes == 7
    # A class that only held-out examples have counts.
    np.savez(tmp_path / "b.npz", images[:3] + 100, np.array([0, 1, 9]))
    other = opened(tmp_path / "a.npz", source="npz", held_out=str(tmp_path / "b.npz"))
    assert other.num_classes == 10
    np.testing.assert_array_equal(
        everything(other.split("held_out")).cond["label"], [0, 1, 9]
    )


def test_mnist_has_the_labels_of_its_files(tfds_mnist):
    def raw(name, offset):
        content = gzip.decompress((SHARED / "data/mnist" / name).read_bytes())
        return np.frombuffer(content, np.uint8, offset=offset)

    label_of = {}
    for part in ("train", "t10k"):
        images = raw(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 28 * 28)
        labels = raw(f"{part}-labels-idx1-ubyte.gz", 8)
        label_of |= {image.tobytes(): n for image, n in zip(images, labels, strict=True)}
    told = []
    config = config_of(tfds_mnist, source="tfds:mnist", image_size=(28,))
    data = sources.open_data_set(config, progress=lambda *args: told.append(args))
    assert data.class_names == tuple("0123456789")
    assert ("reading labels", 60_000, 60_000) in told
    assert told[-1] == ("reading labels", 10_000, 10_000)
    for name in ("train", "held_out"):
        split = data.split(name)
        batch = split[sources.fixed_choice(len(split), 2000)]
        wanted = [label_of[image.tobytes()] for image in batch.x]
        assert batch.cond["label"].tolist() == wanted and len(set(wanted)) == 10


def test_without_labels_nothing_is_a_condition(folder):
    for data in (opened(folder, labels=False), opened(source="digits", labels=False)):
        assert data.labels is not None
        assert not data.split("train").cond and not data.split("held_out").cond


def test_examples_of_the_callers_own_have_their_labels():
    points = np.arange(12, dtype=np.float32).reshape(6, 2)
    labels = np.array([0, 1, 2, 0, 1, 2])
    data = sources.arrays(points, points, labels, labels)
    shape = DataConfig(source="mine", image_size=(), channels=2, batch_size=4)
    config = Config(model=MLPConfig(), data=shape)
    assert not setup.make_plan(config, data).data.split("train").cond
    config.data.labels = True
    plan = setup.make_plan(config, data)
    assert plan.config.data.num_classes == 3
    np.testing.assert_array_equal(
        everything(plan.data.split("train")).cond["label"], labels
    )
    with pytest.raises(BadRequest, match="data.labels"):
        setup.make_plan(config, sources.arrays(points, points))
    for wrong in (labels[:-1], labels / 2, labels + 2**32):
        with pytest.raises(ValueError, match="held_out_labels"):
            sources.arrays(points, points, labels, wrong)


# A CSV

QUOTED = '"even, or 0"'


@pytest.mark.parametrize("header", [True, False])
def test_a_csv_gives_labels_in_place_of_sub_folders(header, folder, tmp_path):
    names = [f"{'cab'[i % 3]}/{i:02}.png" for i in range(40)]
    lines = [f"{name},{('odd', QUOTED)[i % 2 == 0]}" for i, name in enumerate(names)]
    # In any order; blank lines and repetitions do not matter.
    lines = ["file,label"] * header + lines[::-1] + ["", f"./c/00.png,{QUOTED}"]
    for place in (folder, zipped(folder, tmp_path / "a.zip")):
        data = opened(place, label_file=csv_of(tmp_path / "a.csv", *lines))
        assert data.class_names == ("even, or 0", "odd")
        x, label = both(data)
        np.testing.assert_array_equal(label, x % 2)
    # Without data.labels the file is not even looked at.
    plain = opened(folder, labels=False, label_file="nowhere.csv")
    assert plain.class_names == ("a", "b", "c")


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*.png"):
            archive.write(file, file.relative_to(folder))
    return path


def test_whole_numbers_in_a_csv_are_the_classes(flat, tmp_path):
    lines = [f"{i}.png,{i % 4 * 3}" for i in range(10)]
    data = opened(flat, label_file=csv_of(tmp_path / "a.csv", *lines))
    x, label = both(data)
    np.testing.assert_array_equal(label, x % 4 * 3)
    assert data.class_names == () and data.num_classes == 10
    # With a name among them all are names, sorted as text.
    lines = [f"{i}.png,{(9, 10, 'x')[i % 3]}" for i in range(10)]
    data = opened(flat, label_file=csv_of(tmp_path / "a.csv", *lines))
    x, label = both(data)
    assert data.class_names == ("10", "9", "x")
    np.testing.assert_array_equal(label, np.array([1, 0, 2])[x % 3])


def test_names_of_any_bytes_are_found(tmp_path):
    names = [b"caf\xe9.png", "gr\u00fc\u00df,e.png".encode(), b"a b.png"]
    for i, name in enumerate(names):
        picture(tmp_path / "x" / os.fsdecode(name), i)
    rows = [b'"%s",%d\r\n' % (name, i) for i, name in enumerate(names)]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + b"".join(rows))
    x, label = both(opened(tmp_path / "x", label_file=str(tmp_path / "a.csv")))
    np.testing.assert_array_equal(label, x)


def test_a_csv_names_held_out_images_from_data_path_on(flat, tmp_path):
    """Names that both folders have are told apart by the way to the other folder."""
    for i in range(10):
        picture(tmp_path / f"val/{i}.png", 100 + i)
    lines = [f"{i}.png,{i % 2}" for i in range(10)]
    lines += [f"../val/{i}.png,{i % 3}" for i in range(10)]
    options = {"held_out": str(tmp_path / "val")}
    data = opened(flat, label_file=csv_of(tmp_path / "a.csv", *lines), **options)
    x, label = both(data)
    np.testing.assert_array_equal(label, np.where(x < 100, x % 2, (x - 100) % 3))
    with pytest.raises(BadRequest, match=r"no label for 10 images: \.\./val/0\.png"):
        opened(flat, label_file=csv_of(tmp_path / "a.csv", *lines[:10]), **options)


GOOD = [f"{i}.png,{i % 2}" for i in range(10)]
BAD_CSVS = {
    "three fields": ([*GOOD, "9.png,1,2"], "line 11 has 3 fields"),
    "one field": (["file", *GOOD], "line 1 has 1 fields"),
    "tabs": ([line.replace(",", "\t") for line in GOOD], "line 1 has 1 fields"),
    "unknown": (
        [*GOOD, "x.png,1", "y.png,0"],
        "2 names that are not among the images: x.png",
    ),
    "first unknown": (["x.png,1", *GOOD], "1 names that are not among"),
    "missing": (GOOD[:7], "no label for 3 images: 7.png; 8.png; 9.png"),
    "twice": (
        [*GOOD, "", "3.png,0"],
        "line 12 gives 3.png the label 0, and a line before it",
    ),
    "empty label": ([*GOOD[:9], "9.png, "], "line 10 has no label for 9.png"),
    "negative": ([*GOOD[:9], "9.png,-1"], "has the label -1"),
    "too large": ([*GOOD[:9], "9.png,1048576"], "has the label 1048576"),
    "open quote": ([*GOOD[:9], '"9.png,1'], "cannot be read"),
    "one class": ([f"{i}.png,cat" for i in range(10)], "at least two classes"),
    "empty": ([], "no label for 10 images"),
}


@pytest.mark.parametrize("case", BAD_CSVS)
def test_a_csv_that_does_not_fit_is_refused(case, flat, tmp_path):
    lines, said = BAD_CSVS[case]
    with pytest.raises(BadRequest) as error:
        opened(flat, label_file=csv_of(tmp_path / "a.csv", *lines))
    assert said in str(error.value) and str(error.value).isprintable()


def test_a_csv_that_is_not_there_is_refused(flat, tmp_path):
    with pytest.raises(BadRequest, match="there is no such file"):
        opened(flat, label_file=str(tmp_path / "nowhere.csv"))
    with pytest.raises(BadRequest, match="is a folder, not a regular file"):
        opened(flat, label_file=str(tmp_path))


def test_an_image_that_is_skipped_needs_no_label(flat, tmp_path):
    (flat / "zero.png").touch()
    file = csv_of(tmp_path / "a.csv", *GOOD)
    x, label = both(opened(flat, label_file=file, unreadable="skip"))
    np.testing.assert_array_equal(label, x % 2)


# Refusals


def test_a_source_without_labels_is_refused(flat, tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((9, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "b.npz", np.zeros((9, 8, 8, 1), np.uint8), np.arange(9))
    ones = np.ones((9, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "c.npz", ones)
    for path, options, said in (
        ("", {"source": "two_moons"}, "data.source ('two_moons') has none: take a source"),
        (flat, {}, "data.source ('folder') has none: put the images of each class"),
        (tmp_path / "a.npz", {"source": "npz"}, "has none: save them in the file as arr_1"),
        (
            tmp_path / "b.npz",
            {"source": "npz", "held_out": str(tmp_path / "c.npz")},
            f"data.held_out ('{tmp_path / 'c.npz'}') has none",
        ),
    ):
        with pytest.raises(BadRequest) as error:
            opened(path, **options)
        assert "data.labels (True) needs a label" in str(error.value)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        (np.arange(9) - 1, {}, "has the label -1"),
        (np.arange(9) + 0.5, {}, r"arr_1 is float64 \[9\] \(the first is 0\.5\)"),
        (np.full(9, 4), {}, "at least two classes"),
        (np.arange(9), {"num_classes": 8}, r"data\.num_classes \(8\) is too small.* 9 cl"),
        (np.arange(9) * 2**20, {}, "has the label 8388608, and at most 1,048,576"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, options, said, tmp_path):
    np.savez(tmp_path / "a.npz", np.zeros((9, 8, 8, 1), np.uint8), labels)
    with pytest.raises(BadRequest, match=said):
        opened(tmp_path / "a.npz", source="npz", held_out_fraction=0.12, **options)


def test_fields_that_contradict_one_another_are_refused():
    for options, said in (
        ({"labels": True, "num_classes": 1}, r"data\.num_classes \(1\)"),
        ({"labels": True, "label_file": "a.csv"}, r"data\.label_file \('a\.csv'\) is for"),
    ):
        config = Config(model=UNetConfig(attn_resolutions=(8,)), data=DataConfig(**options))
        with pytest.raises(BadRequest, match=said):
            validation.check(config)


# The number of classes, and the fingerprint


def unet():
    return UNetConfig(
        base_channels=8, channel_mults=(1,), num_groups=4, attn_resolutions=()
    )


def test_the_config_of_a_run_has_the_number_of_classes(folder):
    config = Config(model=unet(), data=config_of(folder))
    assert setup.make_plan(config).config.data.num_classes == 3
    assert config.data.num_classes == 0
    config.data.num_classes = 5
    assert setup.make_plan(config).config.data.num_classes == 5
    config.data.labels, config.data.num_classes = False, 0
    assert setup.make_plan(config).config.data.num_classes == 0


def test_a_plan_without_data_assumes_a_number_of_classes(capsys):
    config = Config(model=unet(), data=config_of("nowhere", num_classes=7))
    plan = setup.make_plan_of_shapes(config, 1, "cpu")
    assert plan.config.data.num_classes == 7
    assert plan.data.split("train").cond["label"].shape == (0,)
    config.data.num_classes = 0
    plan = setup.make_plan_of_shapes(config, 1, "cpu")
    assert plan.config.data.num_classes == 1000
    assert "1,000 classes are assumed" in capsys.readouterr().out


@pytest.mark.parametrize("print_of", [sources.fingerprint, sources.whole_fingerprint])
def test_labels_count_in_a_fingerprint_if_they_are_a_condition(print_of):
    data = opened(source="digits", labels=False)
    used = data._replace(uses_labels=True)
    changed = data.labels.copy()
    changed[0] = (changed[0] + 1) % 10
    held_out = data.held_out_labels.copy()
    held_out[-1] = (held_out[-1] + 1) % 10
    # That of a set without labels, by which runs of earlier versions go on.
    assert print_of(data) == print_of(sources.arrays(data.train, data.held_out))
    assert print_of(data._replace(labels=changed)) == print_of(data)
    prints = [
        print_of(x)
        for x in (
            data,
            used,
            used._replace(labels=changed),
            used._replace(held_out_labels=held_out),
        )
    ]
    assert len(set(prints)) == 4 and "" not in prints


def test_a_fingerprint_does_not_depend_on_where_images_lie(folder):
    """Streamed or in memory, also if an image is skipped and the next one replaces it."""
    config = config_of(folder, unreadable="skip")
    data = sources.open_data_set(config)
    broken = damaged(folder, data)
    memory = sources.into_memory(data, config)
    assert isinstance(memory.train, np.ndarray)
    assert sources.fingerprint(memory) == sources.fingerprint(data)
    for of_set in (data, memory):
        x, label = both(of_set)
        np.testing.assert_array_equal(label, np.array([2, 0, 1])[x % 3])
        assert int(broken.stem) not in x


# Loading


@pytest.mark.parametrize(("memory", "workers"), [(True, 0), (False, 0), (False, 1)])
def test_rows_of_the_loader_have_their_own_labels(memory, workers, folder):
    """From memory, by threads and by a worker process, with a damaged image among them."""
    config = config_of(folder, unreadable="skip")
    data = sources.open_data_set(config)
    damaged(folder, data)
    if memory:
        data = sources.into_memory(data, config)
    batches = StepBatches(data.split("train"), 16, 0, slice(4, 12))
    seen = []
    with Loader(batches, 0, most=4, num_workers=workers) as loader:
        for at in (0, 4):
            batch = loader.load(at, 4)
            label = batch.cond["label"]
            assert label.dtype == np.int32 and label.shape == (4, 8)
            x = batch.x[..., 0, 0, 0]
            np.testing.assert_array_equal(label, np.array([2, 0, 1])[x % 3])
            seen += x.ravel().tolist()
    assert len(set(seen)) > 20


def test_the_config_of_an_earlier_run_has_no_labels():
    tree = json.loads(to_json(Config()))
    for name in ("labels", "num_classes", "label_file"):
        del tree["data"][name]
    assert from_json(json.dumps(tree)) == Config()
    assert (Config().data.labels, Config().data.num_classes) == (False, 0)
