from rlhf.job import main
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.sft_trainer.stage import run

main("sft_trainer", SFTTrainerConfig, run)
