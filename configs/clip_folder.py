"""Clips of your own, 16 frames of 64x64: a folder or zip of GIF, WebP or MP4 files.

Command:   python train.py --config configs/clip_folder.py --config.data.path=DIR
Hardware:  one GPU with 80 GB
Time:      not measured
Result:    not measured

MP4 needs PyAV: pip install 'diffusion-jax[clips]'. The first 16 frames of each file are an
example; files with fewer are refused. docs/clips.md has the details.

After Ho et al. 2022, "Video Diffusion Models": 16 frames of 64x64, the cosine schedule, a
network that predicts v, attention over space and then over time with relative positions,
and single images beside clips. There, other images were added to each clip; here a share of
the clips counts as single images (`loss.focus`). The sizes of the network and of the batch
are ours.
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


def get_config() -> Config:
    return Config(
        name="clip_folder",
        data=DataConfig(
            source="folder",
            image_size=(64,),
            num_frames=16,
            channels=0,
            batch_size=32,
            random_flip=False,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 2, 4, 4),
            num_res_blocks=2,
            attn_resolutions=(8, 16, 32),
            num_heads=4,
            dropout=0.1,
            num_groups=32,
            dtype="bfloat16",
            remat=True,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        loss=LossConfig(focus=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1000),
        ema=EMAConfig(decay=0.9999, warmup=True),
        training=TrainingConfig(
            num_steps=200_000,
            log_every=100,
            eval_every=2000,
            checkpoint_every=2000,
            sample_every=5000,
            num_samples=16,
        ),
        sampling=SamplingConfig(sampler="ddim", steps=250, batch_size=16),
    )
