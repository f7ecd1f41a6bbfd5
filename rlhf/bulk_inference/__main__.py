from rlhf.bulk_inference.config import BulkInferenceConfig
from rlhf.bulk_inference.stage import run
from rlhf.job import main

main("bulk_inference", BulkInferenceConfig, run)
