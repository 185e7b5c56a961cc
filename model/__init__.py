"""A compact GPT: model, trainer, evaluator. Imports no Beam and nothing from `pipelines`."""
