"""The policy that `make demo-rft` starts from: `python -m examples.demo.supervised FOLDER SEED`.

Supervised fine-tuning of the demo's Llama on the demo's demonstrations, as `make demo` does it before PPO.
"""

import sys
from pathlib import Path

import yaml

from rlhf.data_validation.config import DataValidationConfig
from rlhf.data_validation.stage import run as validate
from rlhf.sft_trainer.config import SFTTrainerConfig
from rlhf.sft_trainer.stage import run as fine_tune

LENGTHS = ("prompt_sequence_length", "target_sequence_length")


def train(root: Path, seed: int) -> None:
    """Write the model folder `policy` under `root`, from its `data` and `llama`."""
    settings = yaml.safe_load(Path(__file__).with_name("llama.yaml").read_text(encoding="utf-8"))
    data, made = root / "data", root / "supervised"
    config = DataValidationConfig(
        prompt_dataset=str(data / "prompts.jsonl"),
        preference_dataset=str(data / "preferences.jsonl"),
        demonstration_dataset=str(data / "demonstrations.jsonl"),
        eval_dataset=str(data / "evaluation.jsonl"),
        large_model_reference=str(root / "llama"),
        **{name: settings[name] for name in LENGTHS},
    )
    names = ("preferences", "prompts", "evaluation", "demonstrations", "quarantine", "report", "findings")
    validate(config, **{name: made / name for name in names})
    fine_tune(
        # Its learning rate is written as 1e-3, which YAML 1.1 takes for text.
        SFTTrainerConfig.parse(
            {**settings["sft"], "learning_rate": float(settings["sft"]["learning_rate"]), "seed": seed}
        ),
        demonstrations=str(made / "demonstrations"),
        base_model=str(root / "llama"),
        policy=str(root / "policy"),
        report=str(made / "sft.html"),
        tensorboard=str(made / "logs"),
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
