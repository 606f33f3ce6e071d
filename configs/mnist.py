"""MNIST, 28x28, by tensorflow-datasets: readable digits in minutes on a laptop.

Command:   python train.py --config configs/mnist.py
Hardware:  2 CPU cores
Time:      15 min
Result:    FD-pca20 0.283 +- 0.028, held-out loss 0.118 (of v); pictures in docs/results

The set is downloaded and prepared once (11 MB; docs/data.md explains where it is).
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
        name="mnist",
        data=DataConfig(source="tfds:mnist", image_size=(28,), channels=1, batch_size=64),
        model=UNetConfig(
            base_channels=16,
            channel_mults=(1, 2, 4),
            num_res_blocks=1,
            attn_resolutions=(7,),
            dropout=0.0,
            num_groups=8,
        ),
        process=ProcessConfig(schedule="cosine", num_timesteps=1000, prediction="v"),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, decay="cosine"),
        ema=EMAConfig(decay=0.995, warmup=True),
        training=TrainingConfig(
            num_steps=2000,
            log_every=50,
            eval_every=500,
            checkpoint_every=500,
            sample_every=500,
        ),
        sampling=SamplingConfig(sampler="ddpm", steps=1000, batch_size=64),
    )
