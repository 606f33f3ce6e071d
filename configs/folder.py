"""Pictures of your own, 64x64: the DDPM U-Net for a folder or zip of images.

Command:   python train.py --config configs/folder.py --config.data.path=DIR
Hardware:  one GPU
Time:      not measured
Result:    not measured

PNG, JPEG and WebP of any size; sub-folders are classes. The middle of each image is taken,
or all of it with --config.data.resize=squash; --config.data.image_size=96,64 is (height,
width). Grey pictures give a grey model, coloured pictures
a coloured one.
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
        name="folder",
        data=DataConfig(
            source="folder",
            image_size=(64,),
            channels=0,
            batch_size=64,
            random_flip=False,
        ),
        model=UNetConfig(
            base_channels=128,
            channel_mults=(1, 2, 2, 2),
            num_res_blocks=2,
            attn_resolutions=(16,),
            dropout=0.1,
            num_groups=32,
            dtype="float32",
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000),
        optimizer=OptimizerConfig(learning_rate=2e-4, warmup_steps=1000),
        ema=EMAConfig(decay=0.9999, warmup=True),
        training=TrainingConfig(
            num_steps=200_000,
            log_every=100,
            eval_every=2000,
            checkpoint_every=2000,
            sample_every=2000,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, batch_size=64),
    )
