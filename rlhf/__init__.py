"""The RLHF library baked into every stage's image. It knows nothing of Kubeflow Pipelines."""

__version__ = "0.1.0"
