from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.stage import run
from rlhf.job import main

main("data_validation", DataValidationConfig, run)
