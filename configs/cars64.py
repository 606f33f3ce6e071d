"""Photographs of cars, 64x64: Stanford Cars squashed to squares, 250 epochs.

Command:   python train.py --config configs/cars64.py --config.data.path=DIR
Hardware:  not measured
Time:      not measured
Result:    not measured

The recipe of a report of a run on Stanford Cars: train and test joined in one folder or
zip, each photograph squashed to 64x64 and mirrored at random, L1 loss on eps, Adam with
8e-5, batch 32, T = 1000 with linear betas, 250 epochs, DDIM for sampling. After each epoch
a checkpoint with the optimiser is saved (the newest two and the best by held-out loss are
kept), and ten frames of the chain are drawn. 2 % of the photographs are held out.

The network is that of the other configs, made small. The report's own network (SimpleUnet,
from a tutorial) has no attention, so that no layer sees the whole picture before the
lowest level. It has BatchNorm, whose statistics are over a batch in which each example has
another noise level: at sampling, where all have the same one, they do not fit.

The official download is gone, and tensorflow-datasets cannot prepare the set. Copies are
for research use only.
"""

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    LossConfig,
    OptimizerConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)

_ORIGIN = (
    "The official download of Stanford Cars is gone. Hugging Face and Kaggle have copies: "
    "search them for 'stanford cars', and put the pictures of train and test into one "
    "folder or zip. Pictures of your own are as good."
)


def get_config() -> Config:
    return Config(
        name="cars64",
        data=DataConfig(
            source="folder",
            origin=_ORIGIN,
            image_size=(64,),
            channels=3,
            resize="squash",
            batch_size=32,
            random_flip=True,
        ),
        model=UNetConfig(
            base_channels=16,
            channel_mults=(1, 2, 4, 8),
            num_res_blocks=1,
            attn_resolutions=(8, 16),
            num_heads=4,
            dropout=0.0,
            num_groups=8,
        ),
        process=ProcessConfig(schedule="linear", num_timesteps=1000),
        loss=LossConfig(norm="l1"),
        optimizer=OptimizerConfig(name="adam", learning_rate=8e-5, warmup_steps=0),
        ema=EMAConfig(decay=0.9999, warmup=True),
        training=TrainingConfig(
            epochs=250,
            log_every=25,
            eval_every_epochs=0.5,
            checkpoint_every_epochs=1,
            sample_every_epochs=1,
            num_samples=16,
            sample_steps=50,
            keep_strips=True,
        ),
        sampling=SamplingConfig(sampler="ddim", steps=100, batch_size=64),
    )
