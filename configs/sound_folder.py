"""Sounds of your own, 1.02 s at 16 kHz: a U-Net for a folder or zip of sound files.

Command:   python train.py --config configs/sound_folder.py --config.data.path=DIR
Hardware:  one GPU
Time:      not measured
Result:    not measured

WAV, FLAC and OGG of any sample rate, mono or stereo; sub-folders are classes. The beginning
of each is taken, with zeros behind a shorter one. Another length must be divisible by 256.
Reading sounds needs soundfile: pip install 'diffusion-jax[sound]'.
"""

from diffusion_jax.config import (
    Config,
    DataConfig,
    EMAConfig,
    OptimizerConfig,
    ProcessConfig,
    SamplingConfig,
    TrainingConfig,
    UNetConfig,
)


def get_config() -> Config:
    return Config(
        name="sound_folder",
        data=DataConfig(
            source="folder",
            image_size=(),
            sound_length=16384,
            sample_rate=16000,
            channels=0,
            batch_size=32,
        ),
        model=UNetConfig(
            base_channels=64,
            channel_mults=(1, 1, 1, 2, 2, 2, 4, 4, 4),
            num_res_blocks=1,
            attn_resolutions=(256, 128),
            dropout=0.1,
            num_groups=32,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000),
        ema=EMAConfig(decay=0.9999, warmup=True),
        training=TrainingConfig(
            num_steps=200_000,
            log_every=100,
            eval_every=2000,
            checkpoint_every=2000,
            sample_every=2000,
        ),
        sampling=SamplingConfig(sampler="ddim", steps=100, batch_size=32),
    )
