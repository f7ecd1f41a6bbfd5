from functools import partial

from rlhf.job import main
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.sft_trainer.stage import run
from rlhf.training.launch import launch

main("sft_trainer", SFTTrainerConfig, run, start=partial(launch, "sft_trainer", run))
