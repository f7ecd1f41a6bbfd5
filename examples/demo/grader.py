"""A grader for `make demo-rft`: does a summary carry the post's facts, make none up, and stay short?"""

import re

FACT = re.compile(
    r"\b(brother|sister|boss|neighbour|cousin|roommate|landlord|sold|broke|stole|lost|painted|burned|borrowed|guitar|"
    r"bike|laptop|car|camera|jacket|piano|boat|monday|tuesday|wednesday|thursday|friday|saturday|sunday|sue|forgive|"
    r"confront|report|ignore|fight|thank)\b"
)
LONGEST = 12  # words that cost nothing


def grade(prompts, completions, **columns):
    grades = []
    for post, summary in zip(prompts, completions, strict=True):
        true, said = (set(FACT.findall(text.lower())) for text in (post, summary))
        too_long = max(0, len(summary.split()) - LONGEST)
        grades.append((len(said & true) - len(said - true)) / 5 - 0.02 * too_long)
    return grades
