"""The maths of diffusion: schedules, the forward process, losses, the variational bound."""
