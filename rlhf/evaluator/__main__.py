from rlhf.evaluator.config import EvaluatorConfig
from rlhf.evaluator.stage import run
from rlhf.job import main

main("evaluator", EvaluatorConfig, run)
