"""Tiny models for tests: random weights and tokenizers made on the spot, in ordinary Hugging Face folders."""

import os
from pathlib import Path

import pytest

# Under pytest-xdist, a worker and all that it starts keep to one core: what computes takes a thread for every core it
# may run on, and threads of several processes that share cores wait for each other many times longer than they work.
if worker := os.environ.get("PYTEST_XDIST_WORKER"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(worker.removeprefix("gw")) % len(_cores)]})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: workers take whole files, and none is left alone with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


TEXTS = [
    "My brother sold my guitar. It was on monday. Should I sue them?\nTL;DR:",
    "So this is about my boss. I heard they broke my bike. Do I forgive them now?\nTL;DR:",
    " my brother sold my guitar on monday should i sue",
    " my boss broke my bike do i forgive",
]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of files as published by others."""
    folder = os.environ.get("RLHF_REAL_DATA")
    if not folder:
        # Their licences are not this project's, so that who has them says where they lie.
        pytest.skip("RLHF_REAL_DATA is not set: no folder of real data to read")
    return Path(folder)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory) -> Path:
    """A causal policy: Llama of 2 layers."""
    from examples.demo.base_models import write_llama

    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """An encoder-decoder policy: T5 of 2 + 2 layers."""
    from examples.demo.base_models import write_t5

    folder = tmp_path_factory.mktemp("t5")
    write_t5(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory) -> Path:
    """An encoder for reward models: BERT of 2 layers."""
    from examples.demo.base_models import write_bert

    folder = tmp_path_factory.mktemp("bert")
    write_bert(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="session")
def pythia_folder(llama_folder, tmp_path_factory) -> Path:
    """A causal model without a padding token: GPT-NeoX of 2 layers."""
    from tests.models import write_pythia

    folder = tmp_path_factory.mktemp("pythia")
    write_pythia(folder, llama_folder)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(llama_folder, tmp_path_factory) -> Path:
    """A causal model with grouped-query attention: Qwen2 of 2 layers."""
    from tests.models import write_qwen

    folder = tmp_path_factory.mktemp("qwen")
    write_qwen(folder, llama_folder)
    return folder


@pytest.fixture(scope="session")
def deberta_folder(bert_folder, tmp_path_factory) -> Path:
    """An encoder whose checkpoint lacks the pooler: DeBERTa-v3 of 2 layers."""
    from tests.models import write_deberta

    folder = tmp_path_factory.mktemp("deberta")
    write_deberta(folder, bert_folder)
    return folder


@pytest.fixture(scope="session")
def roberta_folder(bert_folder, tmp_path_factory) -> Path:
    """An encoder whose score head has two layers: RoBERTa of 2 layers."""
    from tests.models import write_roberta

    folder = tmp_path_factory.mktemp("roberta")
    write_roberta(folder, bert_folder)
    return folder


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def chat_folder(llama_folder, tmp_path_factory) -> Path:
    """The causal policy with a chat template; its tokenizer begins every text with BOS, and so does the template."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("chat")
    tokenizer = AutoTokenizer.from_pretrained(llama_folder)
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(llama_folder)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "t5"])
def policy_folder(request) -> Path:
    """A policy of either architecture."""
    return request.getfixturevalue(f"{request.param}_folder")
