"""Submit a pipeline to a cluster: `python -m pipelines.submit kubeflow|vertex`."""
