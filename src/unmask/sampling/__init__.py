"""From logits to proposed tokens: parameters, sampler, random numbers, token frequencies."""
