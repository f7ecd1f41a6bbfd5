"""What to do about errors whose message names the fault alone, for `docs.errors`; a test sees that none is stale."""

_READABLE = "Correct the path or the rights of the file; what the system said stands in brackets."
_COPY = "Copy the file again; what the reader said stands in brackets."
_MEANT = "Name the folder that a stage wrote, whole and as it was written."
_TEMPLATE = "Leave `data_validation.chat_template` at `none`, or take a model whose template is sound."
_ASK_AGAIN = "Try again; if it stays, what the service said stands at the end."
_LOGIN = "`gcloud auth application-default login`."

# By the message, with a gap for each thing that differs.
CURES = {
    # Parameters
    "--config …: cannot be read as YAML (…)": "Correct the file at the place that stands in brackets.",
    "…: cannot be read (…)": _READABLE,
    "…: cannot be read (…: …)": _READABLE,
    "…: … cannot be read (…: …)": _READABLE,
    "…: … cannot be read (…)": _READABLE,
    "--config …: expected mappings named inputs, outputs and options, and nothing else": "Leave other keys out.",
    "…: config.json is not JSON (…)": "Copy the model again.",
    (
        "…: no local folder of that name and no such model on the Hugging Face Hub, or a private one that HF_TOKEN "
        "gives no access to"
    ): "Correct the name; or accept the model's licence on the Hub and give the stages its token as HF_TOKEN.",
    "--config …: inputs and outputs must be …": "Give those that are missing, and leave out those that are unknown.",
    "…: … is a private model of Google's, its weights were never published": "Take an open model.",
    "…: holds data of digest …, data_validation described it as …": "Run the pipeline again with caching off.",
    # Data
    "…: a JSON array that cannot be read (…)": _COPY,
    "…: cannot be listed (…: …)": "Correct the URI, or give the stage credentials that may list it.",
    "…: cannot be read as Parquet (…)": _COPY,
    "chat_template: the model's chat template refuses a conversation of … (…)": _TEMPLATE,
    "… has a chat template in … that cannot be rendered (…)": _TEMPLATE,
    "… has a chat template in … that leaves out what the user says": _TEMPLATE,
    "…: column … cannot hold a value (…)": "Correct the value that stands in brackets.",
    "…: is named twice, its rows would count double": "Name the file, or the glob that matches it, once.",
    "…: is not Parquet, though named so": "Name it by what it is: `.jsonl`, `.json` or `.parquet`.",
    "…: needs a package that is not installed where data_validation runs (…)": (
        "Take a store that it reads (`gs://`, `s3://`, `hf://`, `https://`), or install the package there."
    ),
    "…: no row is left to train on, as these were to be put in quarantine: …": (
        "Give other rows, or set what put them there (`duplicates`, `contradictions`, `shared_prompts`) to `keep`."
    ),
    "…: not a dataset manifest (…)": _MEANT,
    "…: not a prompt template (…)": _MEANT,
    # Models
    "…: not a model card (…)": _MEANT,
    "adapter …: cannot be put on its base (…)": "Give the base model that it was trained on, unchanged.",
    "lora.target_modules: …": "Name linear layers that the model has, or leave it unset: all of them are adapted then.",
    "model of type …: it has no attention heads, which memory is counted by": "Take a transformer.",
    "model …: … cannot load it (…)": "Take a model of the kind that the stage needs; the reason is in brackets.",
    "publish_to: found …, …": "Give a folder on disk, `gs://` or `s3://` that the stages may write to.",
    "reward model …: its adapter holds no …, which its base lacks too": "Copy the adapter again, or train it again.",
    "publish_to …: found a file": "Name a folder.",
    "publish_to: found …, which names no folder": "Name a folder below it.",
    # Training
    "deepspeed: …": "Correct `ppo.deepspeed` by what DeepSpeed says there.",
    "Kubernetes: may not …: …": "Give the pod's service account a Role that lets it: see [platforms.md](platforms.md).",
    "preference …: …": "Shorten the sequence lengths, or take a model with more positions; the line says which row.",
    "TrainJob …: somebody deleted it": "Run again.",
    # Graders
    "--data …, row …: found no … among …": "Rename the field that holds the prompt.",
    "--data …: cannot be read as rows (…: …)": "Give JSON Lines, JSON or Parquet.",
    "--grader …: cannot be read as YAML (…)": "Correct the file at the place that stands in brackets.",
    "… during …, so its process was ended": "Mend the grader; the first words say what it did.",
    "evaluation.grader: it gave no completion a grade (…)": "Try it with `rlhf grade` first.",
    "… took more than … s, so its process was ended": "Make it faster, or give it more `timeout_seconds`.",
    # Evaluation and curves
    "BERTScore: bert-score cannot be imported (…)": "`pip install bert-score`.",
    "evaluation.others.…: …": "Name a file of predictions that the stages can read, as bulk_inference writes it.",
    "predictions and evaluation do not pair up: … ids are in all of them": (
        "Run bulk_inference for both models on the evaluation's dataset."
    ),
    "--out …: cannot be written (…)": "Name a file that can be written.",
    "… …: cannot be read as a .csv of scalars (…)": "Give a `.csv` of `step,tag,value`, or TensorBoard's own.",
    "…: cannot be read as predictions of bulk_inference (…: …)": "Name the file that bulk_inference wrote.",
    "…: … ids stand in more than one row (…)": "Keep one completion of each prompt, with an `id` of its own.",
    "judge.vertex_project: no credentials of Google Cloud on this machine (…)": _LOGIN,
    "judge.vertex_project: the credentials give no token (…)": _LOGIN,
    "run …: cannot be read (…)": _READABLE,
    "run …: found no event files (events.out.tfevents.*) there": "Name the folder that a trainer wrote them to.",
    "runs: no two of them logged the same tag, so nothing can be compared: …": "Name runs of the same stage.",
    # Publishing and serving
    "InferenceService … in … cannot become ready: …": "Mend what KServe says at the end: bucket, key or accelerators.",
    "Model Registry …: …": _ASK_AGAIN,
    "Model Registry …: … (…)": _ASK_AGAIN,
    "not there, trying to … in …: …": "Correct the namespace in the profile.",
    "the cluster refuses to … in … (…): …": "Mend what the cluster says at the end, most often in the profile.",
    "the cluster's API does not answer, trying to …: …": _ASK_AGAIN,
    # Images and submitting
    "templates: … did not take the pipelines: …": "Correct the registry's address, or log in to it.",
    "…: KFP does not load it (…)": "Mend the component or pipeline; what KFP said is in brackets.",
    "… was pushed, but the engine named no digest: …": "Push again.",
    "aiplatform refuses to …: …": "Mend what Vertex AI says at the end.",
    "Vertex AI refuses to … (…): …": "Mend what Vertex AI says at the end.",
    "host: its login at … is not encrypted, so no password is sent there": "Give Dex TLS, or log in with a token.",
    "login: Google Cloud does not take it any more: it has expired or was revoked": _LOGIN,
    "login: no usable credentials of Google Cloud here": _LOGIN,
    "login: Vertex AI does not take it (401): the token has expired": _LOGIN,
    # Others
    "…: expected JSON of variables and versions of secrets": "Leave it to the compiled pipeline.",
    "report: the text is not a page written by rlhf.report, so no section can be added to it": "Write it again.",
    "secrets.…: Secret Manager answers … for …: …": _ASK_AGAIN,
    "secrets.…: … cannot be read (400), it may be disabled or destroyed: …": "Enable that version, or name another.",
    "secrets: Secret Manager does not answer (…), asked for …": _ASK_AGAIN,
}
