"""Pictures from pictures: SDEdit, inpainting, latents and what lies between them."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.images import fit
from diffusion_jax.experiment import build_sampler
from diffusion_jax.jobs import origin_flags, sample
from diffusion_jax.jobs.shards import Shard
from diffusion_jax.runs import folder as run_folder
from diffusion_jax.runtime.errors import BadRequest
from diffusion_jax.samplers import chain
from diffusion_jax.training import train
from helpers import pictures_config, points_config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on smooth pictures of two classes."""
    folder = tmp_path_factory.mktemp("pictures")
    training = {"num_steps": 200, "checkpoint_every": 200, "eval_every": 0}
    training |= {"steps_per_dispatch": 50, "log_every": 100}
    config = pictures_config(folder, 1, 8, 0.1, **training)
    np.savez(folder / "x.npz", arr_0=smooth(40), arr_1=np.arange(40) % 2)
    config.data.labels = True
    config.model.num_groups = 1
    config.sampling.batch_size = 4
    config.sampling.steps = 10
    train.train(config, folder / "run")
    return folder / "run"


def smooth(num, seed=0):
    """Pictures of 4 x 4 that are bright above or on the left."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(220, 40, 4)[:, None] * np.ones((1, 4))
    both = np.stack([ramp, ramp.T] * num)[:num]
    return (both + rng.integers(-30, 30, (num, 4, 4)))[..., None].astype(np.uint8)


@pytest.fixture
def own(tmp_path):
    """A folder of three pictures, and a mask whose lower half is white."""
    (tmp_path / "own").mkdir()
    pixels = smooth(3, 5)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture[..., 0]).save(tmp_path / f"own/{i}.png")
    mask = np.zeros((4, 4), np.uint8)
    mask[2:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels


def drawn(run, out, num=None, given=None, sampling=None, **request):
    """Draw as sample.py does; `given` are the flags of an origin."""
    config = run_folder.read_config(run)
    for field, value in (sampling or {}).items():
        setattr(config.sampling, field, value)
    origin, num = origin_flags.choose(given or {}, config, num)
    wanted = sample.Request(**{"num": num, "origin": origin, **request})
    sample.generate(run, config, wanted, out=out)
    if wanted.shard:
        return None
    return dict(np.load(out.with_name(out.name + ".npz")))


def note_of(out):
    return json.loads(out.with_name(out.name + ".json").read_text())


def test_strength_is_how_far_the_chain_goes_back(run, own, tmp_path):
    """The timesteps are the lower ones of the list; the change grows with them."""
    whole = drawn(run, tmp_path / "noise", 1)
    assert "arr_1" in whole
    errors = []
    for strength in (0.06, 0.2, 1.0):
        out = tmp_path / f"s{strength}"
        given = {"from_image": str(tmp_path / "own"), "strength": strength}
        found = drawn(run, out, 12, given)
        assert "arr_1" not in found
        errors.append(np.abs(found["arr_0"] - own[np.arange(12) % 3].astype(int)).mean())
        every = np.arange(19, -1, -2.0)
        kept = every[every <= strength * 19].tolist()
        assert note_of(out)["timesteps"] == kept
        assert note_of(out)["network_calls"] == len(kept)
    assert errors[0] < 20 < errors[1] < errors[2]


def test_a_chain_from_a_picture_starts_with_the_noise_of_the_sample(run, own, tmp_path):
    """alpha x_0 + sigma eps at the first kept timestep, by the schedule's betas."""
    config = run_folder.read_config(run)
    given = {"from_image": str(tmp_path / "own"), "strength": 0.5}
    origin, _ = origin_flags.choose(given, config, 5)
    model = sample.build.make_model(config)
    table = origin.table(model, origin.sampling(config.sampling, model))
    start = origin.start(table, np.arange(5))
    samples = chain.Samples(jax.random.key(0), jnp.arange(5))
    noise = chain.start_chain(table, samples, (4, 4, 1)).x
    x = chain.start_chain(table, samples._replace(start=start), (4, 4, 1)).x
    share = np.prod(1 - model.process.betas[:10])  # Timestep 9 is the highest below 9.5.
    x0 = own[np.arange(5) % 3] / 127.5 - 1
    wanted = share**0.5 * x0 + (1 - share) ** 0.5 * noise
    np.testing.assert_allclose(x, wanted, atol=1e-6)


@pytest.mark.parametrize("sampler", ["ddpm", "unipc"])
def test_what_a_mask_keeps_is_kept_to_the_last_bit(sampler, run, own, tmp_path):
    """Resized pictures are kept where the mask is black, whatever the rest becomes."""
    big = np.kron(own[..., 0], np.ones((3, 5), np.uint8))
    noisy = big + np.random.default_rng(0).integers(0, 3, big.shape).astype(np.uint8)
    np.savez(tmp_path / "big.npz", arr_0=noisy[..., None])
    Image.open(tmp_path / "mask.png").resize((20, 12), 0).save(tmp_path / "mask.png")
    given = {"inpaint": str(tmp_path / "big.npz"), "mask": str(tmp_path / "mask.png")}
    given["resamplings"] = {"ddpm": 2, "unipc": 1}[sampler]
    wanted = np.stack([fit(Image.fromarray(x), (4, 4, 1), "crop") for x in noisy])
    out = tmp_path / sampler
    found = drawn(run, out, 8, given, {"sampler": sampler})["arr_0"]
    wanted = wanted[np.arange(8) % 3]
    np.testing.assert_array_equal(found[:, :2], wanted[:, :2])
    assert (found[:, 2:] != wanted[:, 2:]).mean() > 0.8
    assert note_of(out)["network_calls"] == {"ddpm": 20, "unipc": 10}[sampler]


def test_encoded_pictures_are_decoded_again(run, own, tmp_path):
    """The error falls with the steps, and is below a level on average at last."""
    errors = []
    for steps in (5, 20):
        sampling = {"sampler": "heun", "steps": steps, "spacing": "trailing"}
        given = {"encode": str(tmp_path / "own")}
        latents = drawn(run, tmp_path / f"z{steps}", None, given, sampling)["arr_0"]
        assert latents.dtype == np.float32 and latents.shape == (3, 4, 4, 1)
        given = {"decode": str(tmp_path / f"z{steps}.npz")}
        found = drawn(run, tmp_path / f"x{steps}", None, given, sampling)["arr_0"]
        errors.append(np.abs(found.astype(int) - own).mean())
    assert errors[1] < 1 and errors[1] < errors[0] / 2


DDIM = {"sampler": "ddim"}


def test_a_row_between_pictures_ends_at_their_decoded_latents(run, own, tmp_path):
    ends = [str(tmp_path / f"own/{i}.png") for i in (0, 2)]
    given = {"interpolate": ",".join(ends)}
    row = drawn(run, tmp_path / "row", 6, given, DDIM)["arr_0"]
    drawn(run, tmp_path / "z", None, {"encode": str(tmp_path / "own")}, DDIM)
    given = {"decode": str(tmp_path / "z.npz")}
    decoded = drawn(run, tmp_path / "x", None, given, DDIM)["arr_0"]
    np.testing.assert_array_equal(row[[0, -1]], decoded[[0, 2]])
    assert len(np.unique(row, axis=0)) == 6


def test_a_row_between_seeds_ends_at_the_samples_of_the_seeds(run, tmp_path):
    row = drawn(run, tmp_path / "row", None, {"interpolate": "3,8"}, DDIM, label=(1,))
    assert row["arr_0"].shape == (9, 4, 4, 1) and (row["arr_1"] == 1).all()
    for i, seed in ((0, 3), (-1, 8)):
        out = tmp_path / f"of{seed}"
        alone = drawn(run, out, 1, sampling=DDIM, seed=seed, label=(1,))["arr_0"]
        np.testing.assert_array_equal(row["arr_0"][i], alone[0])
    same = drawn(run, tmp_path / "same", 3, {"interpolate": "3,3"}, DDIM, label=(1,))
    np.testing.assert_array_equal(same["arr_0"], row["arr_0"][[0, 0, 0]])


def test_shards_of_inpainting_are_put_together_and_other_pictures_refused(
    run, own, tmp_path
):
    given = {"inpaint": str(tmp_path / "own"), "mask": str(tmp_path / "mask.png")}
    wanted = drawn(run, tmp_path / "whole", 10, given)
    for k in (2, 1):
        drawn(run, tmp_path / "parts", 10, given, shard=Shard(k, 2))
    path = tmp_path / "own/1.png"
    before = path.read_bytes()
    Image.fromarray(own[1, ..., 0] ^ np.eye(4, dtype=np.uint8)).save(path)
    with pytest.raises(BadRequest, match="another request"):
        drawn(run, tmp_path / "parts", 10, given, merge=True)
    with pytest.raises(BadRequest, match="another request"):
        drawn(run, tmp_path / "parts", 10, given, shard=Shard(1, 2))
    path.write_bytes(before)
    found = drawn(run, tmp_path / "parts", 10, given, merge=True)
    np.testing.assert_array_equal(found["arr_0"], wanted["arr_0"])
    names = ("whole.png", "parts.png")
    assert len({(tmp_path / name).read_bytes() for name in names}) == 1


def test_a_row_that_was_stopped_goes_on(run, own, tmp_path, monkeypatch):
    """Stopped after its first batch of 4, it ends at the same bytes."""
    ends = [str(tmp_path / f"own/{i}.png") for i in (0, 1)]
    given = {"interpolate": ",".join(ends)}
    wanted = drawn(run, tmp_path / "whole", 9, given, DDIM)["arr_0"]
    save = sample.save_batch

    def stopped(job, i, *drawn):
        if i == 1:
            raise KeyboardInterrupt
        save(job, i, *drawn)

    monkeypatch.setattr(sample, "save_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        drawn(run, tmp_path / "row", 9, given, DDIM)
    first = (tmp_path / "row.partial/000000.npy").stat().st_mtime_ns
    saved = []
    monkeypatch.setattr(sample, "save_batch", lambda *a: (saved.append(a[1]), save(*a)))
    assert first and (drawn(run, tmp_path / "row", 9, given, DDIM)["arr_0"] == wanted).all()
    assert saved == [1, 2]


def test_pictures_are_drawn_beside_what_was_given(run, own, tmp_path):
    """A row for each picture; what is not known is grey."""
    given = {"inpaint": str(tmp_path / "own"), "mask": str(tmp_path / "mask.png")}
    given["resamplings"] = 1
    found = drawn(run, tmp_path / "p", 6, given)["arr_0"]
    sheet = np.asarray(Image.open(tmp_path / "p.png"))
    side, gap, title = 48, 2, 16  # Each of 12 times 4 pixels.
    left = side + 2 * gap + 8
    for i in range(3):
        top = title + gap + i * (side + gap)
        shown = sheet[top : top + side : 12, gap : gap + side : 12]
        np.testing.assert_array_equal(shown[:2], own[i, :2, :, 0])
        assert (shown[2:] == 128).all()
        for j in range(2):
            x = left + gap + j * (side + gap)
            shown = sheet[top : top + side : 12, x : x + side : 12]
            np.testing.assert_array_equal(shown, found[i + 3 * j, ..., 0])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--from_image own --strength 1.5", "--strength 1.5 must be in 0 .. 1"),
        ("--from_image own --strength nan", "--strength nan must be in 0 .. 1"),
        ("--from_image own --strength 0", "none of the 10 timesteps is at most 0 (the low"),
        ("--strength 0.5", "--strength 0.5 needs --from_image"),
        ("--from_image own --mask mask.png", "--mask mask.png needs --inpaint"),
        ("--resamplings 2", "--resamplings 2 needs --inpaint"),
        ("--from_image own --encode own", "--from_image and --encode: give one of them"),
        ("--decode z.npz --interpolate 1,2", "--decode and --interpolate: give one"),
        ("--from_image gone", "there is no such image, folder or zip of images, or .npz"),
        ("--from_image own --spacing auto", "needs timesteps that are known"),
        ("--from_image own --guidance 2", "give --label, or --guidance 1"),
        ("--inpaint own", "needs --mask"),
        ("--inpaint own --mask own", "must be an image"),
        ("--inpaint own --mask odd.png", "has 5 x 3 pixels, and the picture 4 x 4"),
        ("--inpaint own --mask black.png", "nothing is painted"),
        ("--inpaint own --mask mask.png --resamplings 0", "must be in 1 .. 10,000"),
        ("--inpaint own --mask mask.png --sampler unipc", "or --resamplings 1"),
        ("--encode own", "needs a chain without noise, and ddpm adds some"),
        ("--encode own --sampler ddim --eta 0.5", "needs a chain without noise"),
        ("--encode own --sampler ddim --num 4", "has 3 pictures; leave --num out"),
        ("--decode x.npz --sampler ddim", "arr_0 is uint8 [40, 4, 4, 1], but must be"),
        ("--interpolate 1,2", "needs a chain without noise"),
        ("--interpolate 1 --sampler ddim", "must be two image files or two seeds"),
        ("--interpolate 1,own --sampler ddim", "there is no such image"),
        ("--interpolate own,own --sampler ddim", "must be one image, and has more"),
        ("--interpolate 1,2 --num 1 --sampler ddim", "needs 2 or more"),
        ("--interpolate 1,2147483648 --sampler ddim", "must be in 0 .. 2,147,483,647"),
    ],
)
def test_a_bad_request_is_refused_with_one_line(flags, said, run, own, tmp_path, command):
    np.savez(tmp_path / "x.npz", arr_0=smooth(40))
    np.savez(tmp_path / "z.npz", arr_0=np.zeros((2, 4, 4, 1), np.float32))
    for name, shape in (("odd.png", (3, 5)), ("black.png", (4, 4))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "new/p"
    flags = ("--workdir", run, "--out", out, *flags.split())
    result = command("sample.py", *flags, cwd=tmp_path, check=2)
    assert said in result.stderr and result.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_results_replace_nothing_that_was_given(run, own, tmp_path):
    for out in (tmp_path / "own" / "0", tmp_path / "own" / "new"):
        with pytest.raises(BadRequest, match="would be among what was given"):
            drawn(run, out, 4, {"from_image": str(tmp_path / "own")})
    given = {"inpaint": str(tmp_path / "own"), "mask": str(tmp_path / "mask.png")}
    with pytest.raises(BadRequest, match="mask.png would be among"):
        drawn(run, tmp_path / "mask", 4, given)
    assert len(list((tmp_path / "own").iterdir())) == 3


def test_latents_of_another_chain_are_warned_of(run, own, tmp_path):
    out = tmp_path / "latents"
    drawn(run, out, None, {"encode": str(tmp_path / "own")}, {"sampler": "ddim"})
    given, same = {"decode": f"{out}.npz"}, {"sampler": "ddim"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn(run, tmp_path / "same", None, given, same)
    with pytest.warns(UserWarning, match="encoded with steps 10, and are decoded with 5"):
        drawn(run, tmp_path / "other", None, given, {**same, "steps": 5})


def test_points_have_no_pictures():
    config = points_config()
    for given in ({"from_image": "x.png"}, {"interpolate": "1,2"}, {"decode": "z.npz"}):
        with pytest.raises(BadRequest, match="is for images, and the run's examples are p"):
            origin_flags.choose(given, config, None)


def test_default_names_of_files_do_not_collide(own, run, tmp_path):
    config = run_folder.read_config(run)
    mine, mask = str(tmp_path / "own"), str(tmp_path / "mask.png")
    names = [
        origin_flags.choose(given, config, None)[0].name
        for given in (
            {},
            {"from_image": mine},
            {"from_image": mine, "strength": 0.5},
            {"inpaint": mine, "mask": mask},
            {"inpaint": mine, "mask": mask, "resamplings": 2},
            {"inpaint": mine, "mask": mask, "jump_length": 2},
            {"encode": mine},
            {"interpolate": "1,2"},
            {"interpolate": "1,3"},
            {"interpolate": f"{mine}/1.png,{mine}/2.png"},
        )
    ]
    assert names[:2] == ["", "_from_image_own_strength0.6"]
    assert "_inpaint_own_mask_resamplings2" in names
    assert "_interpolate_seeds_1_2" in names and "_interpolate_1_2" in names
    assert len(names) == len(set(names))


def test_only_a_chain_from_noise_is_warned_of_an_early_start(run, own, tmp_path, recwarn):
    config = run_folder.read_config(run)
    given = {"from_image": str(tmp_path / "own"), "strength": 0.5}
    origin, _ = origin_flags.choose(given, config, 1)
    model = sample.build.make_model(config)
    sampling = origin.sampling(config.sampling, model)
    origin.table(model, sampling)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="starts from pure noise at timestep 9"):
        build_sampler.make_table(model, sampling)
