"""Training masked diffusion models: LLaDA's objectives, a seeded loop, recipes."""
