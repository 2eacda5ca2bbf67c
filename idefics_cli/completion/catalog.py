"""Name, repository and summary of each model; made by `.ci/make_completions.py`."""

MODELS = (
    (
        "demo",
        "demo",
        "built in; knows drawn scenes only",
    ),
    (
        "smolvlm-256m",
        "HuggingFaceTB/SmolVLM-256M-Instruct",
        "the smallest; fast without a GPU",
    ),
    (
        "smolvlm-500m",
        "HuggingFaceTB/SmolVLM-500M-Instruct",
        "small; good without a GPU",
    ),
    (
        "smolvlm-2.2b",
        "HuggingFaceTB/SmolVLM-Instruct",
        "the best of the small ones",
    ),
    (
        "smolvlm2-256m",
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "takes videos, too",
    ),
    (
        "smolvlm2-500m",
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "takes videos, too",
    ),
    (
        "smolvlm2-2.2b",
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "takes videos, too",
    ),
    (
        "idefics2-8b",
        "HuggingFaceM4/idefics2-8b",
        "answers in few words; reads text in images",
    ),
    (
        "idefics2-8b-chatty",
        "HuggingFaceM4/idefics2-8b-chatty",
        "tuned for long conversations",
    ),
    (
        "idefics2-8b-base",
        "HuggingFaceM4/idefics2-8b-base",
        "completes prompts; for fine-tuning",
    ),
    (
        "idefics3-8b",
        "HuggingFaceM4/Idefics3-8B-Llama3",
        "the strongest on documents and fine detail",
    ),
    (
        "idefics-9b",
        "HuggingFaceM4/idefics-9b",
        "the first IDEFICS, of 2023",
    ),
    (
        "idefics-9b-instruct",
        "HuggingFaceM4/idefics-9b-instruct",
        "the first IDEFICS, of 2023",
    ),
    (
        "idefics-80b",
        "HuggingFaceM4/idefics-80b",
        "the first IDEFICS, of 2023",
    ),
    (
        "idefics-80b-instruct",
        "HuggingFaceM4/idefics-80b-instruct",
        "the first IDEFICS, of 2023",
    ),
)
