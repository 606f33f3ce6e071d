"""tensorflow-datasets: prepared once, then read where TensorFlow does not exist.

A tiny set of known pixels is written in TFDS's own form; and where the folder
../shared/data is, the real MNIST is prepared from the files that TFDS downloads.
"""

import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from diffusion_jax.config import DataConfig
from diffusion_jax.data import sources
from diffusion_jax.data.pipeline import Loader, StepBatches
from diffusion_jax.runtime.errors import BadRequest
from helpers import ROOT, SHARED

needs_real_data = pytest.mark.skipif(
    not (SHARED / "data").is_dir(), reason="needs the real data in ../shared/data"
)

TINY = '''
import sys
import numpy as np
from PIL import Image
import io
import tensorflow_datasets as tfds

def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file

class Base(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    splits = ("train", "test")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.features())

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(len(name)) for name in self.splits}

class Tiny(Base):
    """Ten by seven pixels in colour."""

    def features(self):
        return tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(10, 7, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
        })

    def _generate_examples(self, seed):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (8 * seed, 10, 7, 3), np.uint8)
        for i, image in enumerate(images):
            yield i, {"image": png(image), "label": i % 2}

class OneSplit(Tiny):
    splits = ("train",)

class Validated(Tiny):
    splits = ("train", "validation", "test")

class Varied(Base):
    """Of any size, colour or not; another image beside it."""

    def features(self):
        return tfds.features.FeaturesDict({
            "image": tfds.features.Image(),
            "a_mask": tfds.features.Image(shape=(2, 2, 1)),
        })

    def _generate_examples(self, seed):
        for i in range(4):
            image, mask = np.full((3, 5), 40 + i, np.uint8), np.zeros((2, 2), np.uint8)
            yield i, {"image": png(image), "a_mask": png(mask)}

class Deep(Base):
    """Of sixteen bits."""

    def features(self):
        return tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(2, 2, 1), dtype=np.uint16)})

    def _generate_examples(self, seed):
        yield 0, {"image": png(np.zeros((2, 2), np.uint16))}

class NoImages(Base):
    splits = ("train",)

    def features(self):
        return tfds.features.FeaturesDict({"number": np.int64})

    def _generate_examples(self, seed):
        yield 0, {"number": 7}

for kind in (Tiny, OneSplit, NoImages, Validated, Varied, Deep):
    kind(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder of prepared sets, made by TFDS itself in a process of its own."""
    folder = tmp_path_factory.mktemp("tfds")
    code = folder / "tiny.py"
    code.write_text(TINY)
    result = subprocess.run(
        [sys.executable, code, folder / "data"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return folder / "data"


def opened(name, path, **options):
    options = {"image_size": (10, 7), "channels": 0, **options}
    config = DataConfig(source=f"tfds:{name}", path=str(path), **options)
    return sources.open_data_set(config, prepare=False)


def all_of(source):
    return source[np.arange(len(source))]


def rows(images):
    return sorted(image.tobytes() for image in images)


def test_a_prepared_set_gives_the_pixels_that_were_put_in(tiny):
    data = opened("tiny", tiny)
    assert data.shape == (10, 7, 3) and data.class_names == ("even", "odd")
    for split, seed in ((data.train, 5), (data.held_out, 4)):
        wanted = np.random.default_rng(seed).integers(
            0, 256, (8 * seed, 10, 7, 3), np.uint8
        )
        assert rows(all_of(split)) == rows(wanted)
    memory = sources.into_memory(data, DataConfig())
    np.testing.assert_array_equal(memory.train, all_of(data.train))
    np.testing.assert_array_equal(memory.held_out, all_of(data.held_out))


def test_labels_are_those_of_the_records(tiny):
    """Labels of both splits, and of a part that is held out of one, beside the pixels."""
    for name, seeds, options in (
        ("tiny", (5, 4), {}),
        ("one_split", (5, 5), {"held_out_fraction": 0.2}),
        ("tiny", (5, 5), {"split": "train[:60%]", "held_out": "train[60%:]"}),
    ):
        data = opened(name, tiny, labels=True, **options)
        assert data.class_names == ("even", "odd")
        for split, seed in zip(("train", "held_out"), seeds, strict=True):
            images = np.random.default_rng(seed).integers(
                0, 256, (8 * seed, 10, 7, 3), np.uint8
            )
            number_of = {image.tobytes(): i for i, image in enumerate(images)}
            batch = all_of(data.split(split))
            numbers = np.array([number_of[image.tobytes()] for image in batch.x])
            np.testing.assert_array_equal(batch.cond["label"], numbers % 2)
    assert opened("tiny", tiny).labels is None
    with pytest.raises(BadRequest, match="has none: it has no feature of the type ClassL"):
        opened("varied", tiny, labels=True, image_size=(2, 2))


def test_splits_are_taken_as_tfds_writes_them(tiny):
    whole = all_of(opened("tiny:1.0.0", tiny).train)
    data = opened("tiny", tiny, split="train[:25%]", held_out="train[30:]")
    np.testing.assert_array_equal(all_of(data.train), whole[:10])
    np.testing.assert_array_equal(all_of(data.held_out), whole[30:])
    # Test is not held out if it is trained on.
    data = opened("tiny", tiny, split="test", held_out_fraction=0.25)
    assert (len(data.train), len(data.held_out)) == (24, 8)


def test_what_is_held_out_is_never_trained_on(tiny):
    assert len(opened("validated", tiny).held_out) == 8 * len("validation")
    assert len(opened("tiny", tiny, split="train[:90%]").held_out) == 32
    # If validation is trained on, test is held out; if all of them are, a part is.
    data = opened("validated", tiny, split="train+validation[:50%]")
    assert (len(data.train), len(data.held_out)) == (80, 32)
    data = opened("tiny", tiny, split="train+test", held_out_fraction=0.25)
    assert (len(data.train), len(data.held_out)) == (54, 18)
    both = rows(np.concatenate([all_of(data.train), all_of(data.held_out)]))
    assert len(set(both)) == 72
    for held_out in ("train", "train[90%:]", "test+train[:1]"):
        with pytest.raises(BadRequest, match="have examples in common"):
            opened("tiny", tiny, held_out=held_out)
    assert len(opened("tiny", tiny, split="train[:20]", held_out="train[20:]").train) == 20


def test_channels_are_those_of_the_set_or_of_the_config(tiny):
    colours = all_of(opened("tiny", tiny).train)
    data = opened("tiny", tiny, channels=1)
    assert data.shape == (10, 7, 1)
    luma = colours @ np.array([0.299, 0.587, 0.114])
    assert abs(all_of(data.train)[..., 0] - luma).max() <= 0.51
    # A set of unknown channels is read in colour; `image` is taken of two images.
    data = opened("varied", tiny, image_size=(2, 2))
    assert data.shape == (2, 2, 3)
    assert sorted(all_of(data.train)[:, 0, 0, 0]) == [40, 41, 42, 43]


def damaged(tiny, tmp_path, file, content):
    folder = tmp_path / "data"
    shutil.copytree(tiny, folder)
    (path,) = (folder / "tiny/1.0.0").glob(file)
    path.write_bytes(content(path.read_bytes()))
    return folder, path


def test_a_damaged_set_is_refused_or_its_images_are_named(tiny, tmp_path):
    folder, _ = damaged(tiny, tmp_path / "a", "dataset_info.json", lambda b: b"")
    with pytest.raises(BadRequest, match="cannot be read"):
        opened("tiny", folder)
    folder, path = damaged(tiny, tmp_path / "b", "*train.array*", lambda b: b)
    path.unlink()
    with pytest.raises(BadRequest, match="train.array_record.* is missing"):
        opened("tiny", folder)
    folder, path = damaged(
        tiny, tmp_path / "c", "*train.array*", lambda b: b[:9000] + b"?" * 99 + b[9099:]
    )
    config = DataConfig(
        source="tfds:tiny", path=str(folder), image_size=(10, 7), channels=3
    )
    with pytest.raises(BadRequest, match=r"cannot be read: image \d+ of train: "):
        sources.into_memory(sources.open_data_set(config), config)
    # The label of a damaged record goes with it.
    config.labels = True
    with pytest.raises(BadRequest, match=r"a label cannot be read: image \d+ of train: "):
        sources.open_data_set(config)
    config.unreadable = "skip"
    data = sources.open_data_set(config)
    whole = opened("tiny", tiny, labels=True).split("train")
    label_of = dict(
        zip(map(bytes, all_of(whole).x), all_of(whole).cond["label"], strict=True)
    )
    for split in (data.split("train"), sources.into_memory(data, config).split("train")):
        batch = all_of(split)
        assert 1 < len(set(map(bytes, batch.x))) < 40
        assert [label_of[bytes(x)] for x in batch.x] == batch.cond["label"].tolist()


STRANGE = ("a [v2]", "b*?", "c%20#", "d\n\t", "e'\"\\", os.fsdecode(b"f\xe9"), "{x,y}~")


@pytest.mark.parametrize("name", STRANGE)
def test_any_place_is_a_place(name, tiny, tmp_path):
    place = tmp_path / name
    place.symlink_to(tiny)
    data = opened("tiny", place)
    np.testing.assert_array_equal(all_of(data.train), all_of(opened("tiny", tiny).train))
    with pytest.raises(BadRequest) as error:
        opened("tiny:9.9.9", place)
    assert str(error.value).isprintable()


def test_worker_processes_read_from_any_place(tiny, tmp_path):
    place = tmp_path / "runs [v2]*"
    shutil.copytree(tiny, place)
    data = opened("tiny", place)
    batches = StepBatches(data.split("train"), 8, 0, slice(0, 8))
    with Loader(batches, 0, most=2, num_workers=1) as loader:
        np.testing.assert_array_equal(loader.load(0, 2).x, [batches[0].x, batches[1].x])
    # What is missing is named by the place that the user has given.
    (record,) = (place / "tiny/1.0.0").glob("*train.array*")
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(BadRequest) as error:
        opened("tiny", place)
    assert f"{record} is a named pipe" in str(error.value)


def test_a_set_of_one_split_has_a_fixed_part_held_out(tiny):
    data = opened("one_split", tiny, held_out_fraction=0.1)
    assert (len(data.train), len(data.held_out)) == (36, 4)
    whole = rows(np.concatenate([all_of(data.train), all_of(data.held_out)]))
    assert len(set(whole)) == 40
    again = opened("one_split", tiny, held_out_fraction=0.1)
    np.testing.assert_array_equal(all_of(again.held_out), all_of(data.held_out))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tiny", {"split": "trian"}, "data.split ('trian') is not a split of tiny with"),
        ("tiny", {"held_out": "validation"}, "it has train, test"),
        ("tiny", {"split": "train[:0]"}, "with examples in it"),
        ("tiny", {"split": ""}, "with examples in it"),
        ("tiny", {"split": "train[50%:40%]"}, "with examples in it"),
        ("deep", {}, "is not a set of 8-bit images"),
        ("tiny:9.9.9", {}, "9.9.9"),
        ("no_images", {}, "is not a set of 8-bit images: it has number"),
        ("cifr10", {}, "TFDS has no set 'cifr10'; did you mean cifar10"),
        ("fashion_mnist", {}, "python -m diffusion_jax.data.prepare fashion_mnist"),
    ],
)
def test_what_cannot_be_read_is_refused(name, options, said, tiny):
    with pytest.raises(BadRequest) as error:
        opened(name, tiny, **options)
    assert said in " ".join(str(error.value).split())
    if name == "fashion_mnist":
        assert f"looked in {tiny}" in str(error.value)


# Python finds no TensorFlow, as on a machine without it: importing it raises
# ModuleNotFoundError and no other error.
WITHOUT_TENSORFLOW = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *args, **kwargs):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_cpu"):
            return None
        return super().find_spec(name, *args, **kwargs)

sys.meta_path[:] = [Finder if f is PathFinder else f for f in sys.meta_path]
"""


@pytest.fixture(scope="module")
def without_tensorflow(tmp_path_factory):
    """Environment of a Python that finds no TensorFlow, nor do its workers."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    found = subprocess.run(
        [sys.executable, "-c", "import tensorflow"], env=environment, capture_output=True
    )
    assert b"ModuleNotFoundError" in found.stderr
    return environment


SMALL = (
    f"--config={ROOT / 'configs/mnist.py'}",
    "--config.model.base_channels=8",
    "--config.model.channel_mults=(1,)",
    "--config.model.attn_resolutions=()",
    "--config.model.num_groups=4",
    "--config.data.batch_size=16",
    "--config.process.num_timesteps=20",
    "--config.sampling.steps=20",
    "--config.training.sample_steps=5",
    "--config.training.num_samples=4",
    "--config.training.num_steps=4",
)


@pytest.mark.slow
def test_a_run_on_prepared_data_needs_no_tensorflow(
    tiny, without_tensorflow, command, tmp_path
):
    for name, options in (
        ("memory", ()),
        ("streamed", ("--config.data.memory_gib=0", "--config.data.num_workers=1")),
    ):
        result = command(
            "train.py",
            *SMALL,
            "--config.data.source=tfds:tiny",
            "--config.data.image_size=(10,7)",
            "--config.data.channels=0",
            f"--config.data.path={tiny}",
            f"--workdir={tmp_path / name}",
            *options,
            env=without_tensorflow,
            check=0,
        )
        assert "40 examples to train on, 32 held out" in result.stdout
    command("sample.py", f"--workdir={tmp_path / name}", env=without_tensorflow, check=0)
    # TensorFlow is needed to prepare another set, and the error says so.
    args = ("--config.data.source=tfds:fashion_mnist", f"--config.data.path={tiny}")
    result = command(
        "train.py", *SMALL, *args, "--workdir=no", env=without_tensorflow, check=2
    )
    assert "needs TensorFlow, which is not installed: pip install" in result.stderr
    assert result.stderr.count("\n") == 1 and not (ROOT / "no").exists()


def test_nothing_here_imports_tensorflow(tiny):
    all_of(opened("tiny", tiny).train)
    assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]


@pytest.mark.slow
@needs_real_data
def test_the_real_mnist_is_prepared_by_the_first_run(command, tmp_path):
    """Pixels from TFDS's own download files, against MNIST's own file format."""
    place = tmp_path / "tfds"
    subprocess.run(
        [sys.executable, SHARED / "tools/prepare_tfds.py", place, "mnist"],
        check=True,
        capture_output=True,
    )
    path = (f"--config.data.path={place}", f"--workdir={tmp_path / 'run'}")
    result = command("train.py", *SMALL, *path, "--dry_run", check=2)
    assert "is not prepared" in result.stderr
    part = "--config.data.split=train[:2000]"
    result = command("train.py", *SMALL, *path, part, check=0)
    assert f"preparing tfds:mnist in {place}, once" in result.stdout
    assert "2,000 examples to train on, 10,000 held out" in result.stdout
    assert (tmp_path / "run/samples/step_000004.png").exists()

    real = {}
    for name in ("train", "t10k"):
        (file,) = (SHARED / "data/mnist").glob(f"{name}-images*.gz")
        pixels = np.frombuffer(gzip.decompress(file.read_bytes())[16:], np.uint8)
        real[name] = rows(pixels.reshape(-1, 28, 28, 1))
    data = opened("mnist", place, image_size=(28,))
    assert len(data.train) == 60_000
    some = data.train[np.random.default_rng(0).permutation(60_000)[:2000]]
    assert set(rows(some)) <= set(real["train"])
    assert rows(all_of(data.held_out)) == real["t10k"]
